"""Lines of lists that are of a span of their video."""

from dataclasses import replace

import pytest
import torch

from fastvtp.data.annotations import VideoRecord, annotations_digest, load_annotations, load_videos
from fastvtp.data.classes import load_classes, load_targets
from fastvtp.data.formats.lists import ListColumns, VideoList
from fastvtp.data.questions import load_questions
from fastvtp.data.timespans import FrameSpan
from fastvtp.errors import UserError
from fastvtp.frozen.spans import load_spans
from tests.data.clips import write_lines

MOVIE = {"video": "movie.mp4"}
SPANS = ({"start": 7.25, "end": 19}, {"start": 19, "end": 40.5}, {"start": 40.5}, {"end": 7.25}, {})
BOUNDS = [(7.25, 19.0), (19.0, 40.5), (40.5, None), (0.0, 7.25), (None, None)]
IDS = ["movie.mp4 7.25-19", "movie.mp4 19-40.5", "movie.mp4 40.5-end", "movie.mp4 0-7.25", "movie.mp4"]


def read(kind, path):
    readers = {
        "captions": load_annotations,
        "videos": load_videos,
        "questions": lambda path: load_questions(path).records,
        "classes": lambda path: load_classes(path).records,
        "several classes": lambda path: load_targets(path).records,
        "segments": lambda path: load_spans(path).records,
        "boxes": lambda path: load_spans(path).records,
    }
    return list(readers[kind](path))


FIELDS = {
    "captions": {"caption": "a dog runs"},
    "videos": {},
    "questions": {"question": "what runs?", "answer": "a dog"},
    "classes": {"label": "run"},
    "several classes": {"labels": ["run", "bark"]},
    "segments": {"duration": 100, "segments": [{"start": 0, "end": 100, "label": "run"}]},
    "boxes": {"width": 64, "height": 64, "boxes": [{"box": [1, 2, 30, 40], "labels": ["run"]}]},
}


@pytest.mark.parametrize("kind", FIELDS)
def test_lines_of_other_spans_of_one_video_are_records_of_their_own_in_every_list(tmp_path, kind):
    path = write_lines(tmp_path / "list.jsonl", *({**MOVIE, **FIELDS[kind], **span} for span in SPANS))
    records = read(kind, path)
    assert [(record.start, record.end) for record in records] == BOUNDS
    assert [record.id for record in records] == IDS
    assert {record.video for record in records} == {str(tmp_path / "movie.mp4")}


FRAME_SPANS = ({"start_frame": 7, "end_frame": 19}, {"start_frame": 19}, {"end_frame": 7}, {"start_frame": 0})


@pytest.mark.parametrize("kind", [kind for kind in FIELDS if kind not in ("segments", "boxes")])
def test_lines_may_say_frames(tmp_path, kind):
    path = write_lines(tmp_path / "list.jsonl", *({**MOVIE, **FIELDS[kind], **span} for span in FRAME_SPANS))
    records = read(kind, path)
    assert [record.frames for record in records] == [FrameSpan(7, 19), FrameSpan(19, None), FrameSpan(0, 7), None]
    assert [(record.start, record.end) for record in records] == [(None, None)] * 4
    names = [f"movie.mp4{span}" for span in (" frames 7-19", " frames 19-end", " frames 0-7", "")]
    assert [record.id for record in records] == names
    assert [record.source for record in records] == [str(tmp_path / name) for name in names]
    assert records[0].named() == {**MOVIE, "id": names[0], "video": records[0].video, "start_frame": 7, "end_frame": 19}


def test_seconds_and_frames_of_the_same_numbers_are_two_clips(tmp_path):
    spans = ({"start": 7, "end": 19}, {"start_frame": 7, "end_frame": 19})
    path = write_lines(tmp_path / "list.jsonl", *({**MOVIE, **FIELDS["captions"], **span} for span in spans))
    records = load_annotations(path)
    assert len(records) == 2
    assert annotations_digest(records[:1]) != annotations_digest(records[1:])


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"start_frame": 3, "end_frame": 3}, "field 'end_frame': expected more than its start_frame 3, got 3"),
        ({"start_frame": -1}, "field 'start_frame': expected the number of a frame, from 0 on, got -1"),
        ({"end_frame": 2.5}, "field 'end_frame': expected the number of a frame, from 0 on, got 2.5"),
        ({"start_frame": True}, "field 'start_frame': expected the number of a frame, from 0 on, got True"),
        ({"start": 1, "end_frame": 9}, "fields 'start' and 'end_frame': expected seconds or frames, not both"),
    ],
)
def test_frames_that_are_none_are_refused_by_line_and_field(tmp_path, fields, complaint):
    path = write_lines(tmp_path / "list.jsonl", {**MOVIE, **FIELDS["captions"], **fields})
    with pytest.raises(UserError) as error:
        load_annotations(path)
    assert str(error.value) == f"{path}, line 1: {complaint}"


def test_a_table_may_say_frames(tmp_path):
    (tmp_path / "list.csv").write_text("video,caption,start_frame,end_frame\na.mp4,x,5,30\na.mp4,y,,9\na.mp4,z,,\n")
    records = load_annotations(tmp_path / "list.csv")
    assert [record.frames for record in records] == [FrameSpan(5, 30), FrameSpan(0, 9), None]
    (tmp_path / "other.csv").write_text("video,caption,first\na.mp4,x,7\n")
    (record,) = load_annotations(VideoList(str(tmp_path / "other.csv"), columns=ListColumns(start_frame="first")))
    assert record.frames == FrameSpan(7, None)


def test_segments_are_not_counted_from_frames(tmp_path):
    path = write_lines(tmp_path / "list.jsonl", {**MOVIE, **FIELDS["segments"], "start_frame": 4})
    with pytest.raises(UserError, match="field 'start_frame': expected a span in seconds, as the annotations are"):
        read("segments", path)


@pytest.mark.parametrize("kind", FIELDS)
def test_an_id_that_a_line_gives_is_kept(tmp_path, kind):
    lines = [{**MOVIE, **FIELDS[kind], **span, "id": f"clip {i}"} for i, span in enumerate(SPANS)]
    records = read(kind, write_lines(tmp_path / "list.jsonl", *lines))
    assert [record.id for record in records] == [f"clip {i}" for i in range(5)]


def test_captions_of_equal_spans_alone_are_merged(tmp_path):
    path = write_lines(
        tmp_path / "list.jsonl",
        {**MOVIE, "start": 60, "end": 70, "caption": "a dog runs", "id": "first"},
        {**MOVIE, "start": 120, "end": 130.5, "caption": "a cat sleeps"},
        {"video": "./movie.mp4", "start": "60.0", "end": "00:01:10", "caption": ["a man cooks", "a dog runs"]},
        {**MOVIE, "caption": "a film"},
        {**MOVIE, "start": 0, "caption": "a long film"},
        {**MOVIE, "start": None, "end": 60, "caption": "titles"},
        {**MOVIE, "start": 0.0, "end": 60, "caption": "music"},
    )
    movie = str(tmp_path / "movie.mp4")
    assert load_annotations(path) == [
        VideoRecord("first", movie, ("a dog runs", "a man cooks"), start=60.0, end=70.0),
        VideoRecord("movie.mp4 120-130.5", movie, ("a cat sleeps",), start=120.0, end=130.5),
        VideoRecord("movie.mp4", movie, ("a film", "a long film")),
        VideoRecord("movie.mp4 0-60", movie, ("titles", "music"), start=0.0, end=60.0),
    ]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *((3, 3.0), (2.125, 2.125), ("12.5", 12.5), (" 7 ", 7.0), (".5", 0.5)),
        *(("1:02", 62.0), ("00:00:45.280", 45.28), ("100:00:59.9", 360059.9)),
    ],
)
def test_seconds_are_numbers_or_texts(tmp_path, value, seconds):
    path = write_lines(tmp_path / "list.jsonl", {**MOVIE, "start": value, "end": 400000})
    assert load_videos(str(path))[0].start == seconds


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize(
    ("span", "complaint"),
    [
        ({"start": -1}, "field 'start': expected seconds from 0 on, such as 62.5 or \"00:01:02.5\", got -1"),
        ({"start": 1, "end": "soon"}, "field 'end': expected seconds from 0 on"),
        ({"start": True}, "field 'start': expected seconds from 0 on"),
        ({"start": "-3"}, "field 'start': expected seconds from 0 on"),
        ({"start": "1:75"}, "field 'start': expected seconds from 0 on"),
        ({"start": [1, 2]}, "field 'start': expected seconds from 0 on"),
        ({"start": 3, "end": float("nan")}, "field 'end': expected seconds from 0 on"),
        ({"end": float("inf")}, "field 'end': expected seconds from 0 on"),
        ({"end": 10**400}, "field 'end': expected seconds from 0 on"),
        ({"start": 7.5, "end": 7.5}, "field 'end': expected more than its start 7.5, got 7.5"),
        ({"start": 9, "end": "8"}, "field 'end': expected more than its start 9, got '8'"),
        ({"end": 0}, "field 'end': expected more than its start 0, got 0"),
    ],
)
def test_a_span_that_is_none_is_refused_by_file_line_and_field(tmp_path, kind, span, complaint):
    path = write_lines(tmp_path / "list.jsonl", {**MOVIE, **FIELDS[kind]}, {**MOVIE, **FIELDS[kind], **span})
    with pytest.raises(UserError) as caught:
        read(kind, path)
    assert str(caught.value).startswith(f"{path}, line 2: {complaint}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bounds", [(-1.0, 2.0), (3.0, 3.0), (3.0, 2.0), (float("nan"), None), (0.0, float("inf"))])
def test_a_record_made_by_hand_takes_no_other_bounds(bounds):
    start, end = bounds
    with pytest.raises(UserError, match=r"^/a.mp4: expected 0 <= start < end, in seconds, got"):
        VideoRecord("a", "/a.mp4", ("x",), start=start, end=end)


@pytest.mark.parametrize("picture", [{"image": "a.dat"}, {"video": "a.JPG"}, {"image": "a.png"}])
def test_a_span_of_a_picture_is_refused(tmp_path, picture):
    path = write_lines(tmp_path / "list.jsonl", {**picture, "end": 5, "caption": "a cat"})
    with pytest.raises(UserError, match=r"line 1: field 'end': a span of time needs a video, got the picture"):
        load_annotations(path)


def test_the_digest_changes_with_a_span_and_with_nothing_else():
    whole = [VideoRecord("a", "/data/a.mp4", ("one",)), VideoRecord("b", "/data/b.mp4", ("two",))]
    first, second = whole
    others = [
        [replace(first, start=1.0), second],
        [replace(first, start=1.0, end=2.0), second],
        [replace(first, start=1.0, end=2.5), second],
        [first, replace(second, start=1.0)],
        [replace(first, end=1.0), second],
    ]
    assert len({annotations_digest(records) for records in (whole, *others)}) == 6
    assert annotations_digest([replace(first, start=0.0), second]) == annotations_digest(whole)


def test_segments_of_a_span_are_shares_of_it_and_those_outside_are_counted(tmp_path):
    segments = [(2, 20), (22, 25), (30, 47), (4, 12), (49, 50)]
    line = {**MOVIE, "start": 20, "end": 40, "duration": 50}
    line["segments"] = [{"start": start, "end": end, "label": "run"} for start, end in segments]
    open_end = {**line, "end": None}
    found = load_spans(write_lines(tmp_path / "list.jsonl", line, open_end))
    expected = [[2 / 20, 5 / 20], [10 / 20, 1.0]], [[2 / 30, 5 / 30], [10 / 30, 27 / 30], [29 / 30, 1.0]]
    for shares, wanted in zip(found.spans, expected, strict=True):
        torch.testing.assert_close(shares, torch.tensor(wanted))
    assert found.outside == 3 + 2
    path = write_lines(tmp_path / "late.jsonl", {**line, "start": 50, "end": 60})
    with pytest.raises(UserError, match="line 1: field 'start': expected less than the duration 50, got 50"):
        load_spans(path)
