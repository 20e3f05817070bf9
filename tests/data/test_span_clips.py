"""Clips of records that are spans of a video: the loader treats a span as a video of its own.

What it should show is told by a file that holds the frames of the span and no others.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.handing_over import GAVE_UP
from fastvtp.data.sampling import SAMPLING_KINDS
from fastvtp.data.timespans import FrameSpan
from tests.data.clips import damage_packet, decode_sequentially, frame_numbers, write_clip
from tests.data.loaders import make_loader
from tests.data.test_decoding import VP9, X264_B_FRAMES
from tests.data.test_real_footage import footage

FPS, TOTAL = 8, 90
# frames first to last - 1 are shown within the seconds of the span
SPANS = {
    (2.31, 6.06): (19, 49),
    (0.0, 1.13): (0, 10),
    (9.75, None): (78, 90),
    (5.0, 5.26): (40, 43),
    (10.9, 13.0): (88, 90),
}
H264: dict[str, Any] = {"gop": 12, "options": X264_B_FRAMES}
WEBM: dict[str, Any] = {"gop": 12, "codec": "libvpx-vp9", "options": VP9}


@pytest.fixture(scope="module")
def movies(tmp_path_factory):
    """Records of the spans of one video, and of files that hold the frames of a span each, by decoder."""
    folder = tmp_path_factory.mktemp("movies")
    made = {}
    for decoder, suffix, encoding in (("pyav", "mp4", H264), ("dali", "webm", WEBM)):
        movie = str(write_clip(folder / f"movie.{suffix}", TOTAL, fps=FPS, **encoding))
        spans = [VideoRecord(str(i), movie, ("x",), start=start, end=end) for i, (start, end) in enumerate(SPANS)]
        cut = [
            str(write_clip(folder / f"{first}.{suffix}", last - first, first=first, fps=FPS, **encoding))
            for first, last in SPANS.values()
        ]
        made[decoder] = spans, [VideoRecord(str(i), path, ("x",)) for i, path in enumerate(cut)]
    return made


def shown(records, **settings):
    """The numbers of the frames of every clip, with the place of its record, and what could not be shown."""
    defaults = {"num_frames": 5, "image_size": None, "num_workers": 0, "batch_size": 4, "seed": 3}
    with make_loader(records, None, **{**defaults, **settings}) as loader:
        clips = [
            (index, frame_numbers(clip))
            for batch in loader
            for index, clip in zip(batch.sample_ids.tolist(), batch.video.numpy(), strict=True)
        ]
        return clips, loader.bad_files


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
@pytest.mark.parametrize("kind", SAMPLING_KINDS)
def test_training_draws_frames_from_the_span_as_from_a_video_of_its_own(movies, decoder, kind):
    spans, cut = movies[decoder]
    settings = {"train": True, "num_steps": 6, "sampling": kind, "frame_stride": 3, "decoder": decoder}
    clips, bad = shown(spans, **settings)
    assert bad == {}
    assert len({index for index, _ in clips}) == len(SPANS)
    assert clips == shown(cut, **settings)[0]
    for index, numbers in clips:
        first, last = list(SPANS.values())[index]
        assert first <= min(numbers) <= max(numbers) < last


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
@pytest.mark.parametrize("kind", ["uniform", "strided"])
@pytest.mark.parametrize("views", [(1, 1), (3, 1)])
def test_scores_are_of_the_frames_of_the_span(movies, decoder, kind, views):
    spans, cut = movies[decoder]
    settings = {"train": False, "sampling": kind, "frame_stride": 2, "views": views, "decoder": decoder}
    clips, bad = shown(spans, **settings)
    assert bad == {}
    assert [index for index, _ in clips] == [index for index in range(len(SPANS)) for _ in range(views[0])]
    assert clips == shown(cut, **settings)[0]


def test_workers_show_what_this_process_shows(movies):
    spans, _ = movies["pyav"]
    settings = {"train": True, "num_steps": 3}
    assert shown(spans, **settings) == shown(spans, **settings, num_workers=1)


def test_a_variable_rate_is_followed(tmp_path):
    rng = np.random.default_rng(11)
    pts = np.cumsum(rng.integers(20, 900, 40)) * 8  # milliseconds, in ticks of 1/8000 s
    pts -= pts[0]
    path = str(write_clip(tmp_path / "a.mp4", 40, fps=FPS, pts=pts.tolist(), **H264))
    seconds = pts / 8000
    for start, end in ((3.3333, 9.1), (0.0, 2.2), (11.0, None)):
        expected = [i for i, time in enumerate(seconds) if start <= time < (np.inf if end is None else end)]
        record = VideoRecord("a", path, ("x",), start=start, end=end)
        ((_, numbers),), _ = shown([record], train=False, num_frames=len(expected))
        assert numbers == expected


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
def test_a_span_in_frames_is_that_of_the_same_frames_in_seconds(movies, decoder):
    spans, _ = movies[decoder]
    by_frame = [
        VideoRecord(span.id, span.video, ("x",), frames=FrameSpan(first, None if span.end is None else last))
        for span, (first, last) in zip(spans, SPANS.values(), strict=True)
    ]
    for settings in ({"train": True, "num_steps": 4}, {"train": False, "fps": 3.0, "sampling": "strided"}):
        assert shown(by_frame, decoder=decoder, **settings) == shown(spans, decoder=decoder, **settings)


def test_a_span_in_frames_that_is_not_there_is_named(movies, caplog):
    movie = movies["pyav"][0][0].video
    spans = [FrameSpan(TOTAL, None), FrameSpan(80, 80 + TOTAL), FrameSpan(TOTAL - 1, TOTAL)]
    records = [VideoRecord(str(i), movie, ("x",), frames=span) for i, span in enumerate(spans)]
    with caplog.at_level(logging.WARNING, logger="fastvtp.data.loader"):
        clips, bad = shown(records, train=False, num_frames=10)
    assert clips == [(1, list(range(80, 90))), (2, [89] * 10)]
    assert bad == {f"{movie} frames 90-end": "span frames 90-end is outside its 90 frames"}
    assert f"{movie} frames 80-170: the span ends 10.0 s after its video and is cut there" in caplog.text


def test_a_span_of_real_footage_shows_its_own_frames():
    path = footage("bikes.mp4")  # 250 frames at 25 a second
    reference = decode_sequentially(path)
    record = VideoRecord("a", str(path), ("x",), start=3.19, end=6.07)  # frames 80 to 151
    with make_loader([record], None, num_frames=6, image_size=None, num_workers=0, batch_size=1, train=False) as loader:
        (batch,) = list(loader)
    np.testing.assert_array_equal(batch.video[0], reference[[86, 98, 110, 122, 134, 146]])


# --- Spans that cannot be shown


@pytest.fixture(scope="module")
def unusable(movies):
    """By decoder: two good spans of a video, and between them one after its end and one between two frames."""
    made = {}
    for decoder, (spans, _) in movies.items():
        movie = spans[0].video
        bad = [VideoRecord("late", movie, ("x",), start=60.0, end=70.0)]
        bad += [VideoRecord("short", movie, ("x",), start=3.01, end=3.1)]
        made[decoder] = [spans[0], *bad, spans[1]]
    return made


@pytest.mark.parametrize(("decoder", "num_workers"), [("pyav", 0), ("dali", 0), ("dali", 1)])
def test_a_span_that_shows_nothing_is_replaced_and_other_spans_of_its_file_are_not(unusable, decoder, num_workers):
    records = unusable[decoder]
    settings = {"train": True, "num_steps": 5, "decoder": decoder, "num_workers": num_workers}
    clips, bad = shown(records, **settings)
    assert {index for index, _ in clips} == {0, 3}
    movie = records[0].video
    assert bad == {
        f"{movie} 60-70 s": "span 60-70 s is outside its 11.25 s",
        f"{movie} 3.01-3.1 s": "span 3.01-3.1 s holds no frame: none is first shown within it",
    }
    assert shown(records, **settings, known_bad=bad) == (clips, bad)  # as a run that is resumed


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
def test_scores_leave_out_a_span_that_shows_nothing(unusable, decoder, caplog):
    with caplog.at_level(logging.WARNING, logger="fastvtp.data.notes"):
        clips, bad = shown(unusable[decoder], train=False, decoder=decoder)
    assert [index for index, _ in clips] == [0, 3]
    assert sorted(bad) == sorted(record.getMessage().split(": span")[0] for record in caplog.records)


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
def test_damage_within_one_span_leaves_the_others_good(tmp_path, decoder):
    path = write_clip(tmp_path / "a.webm", 24, codec="libvpx-vp9", options={"lag-in-frames": "0"}, gop=8, fps=FPS)
    damage_packet(path, 9)
    records = [VideoRecord(str(i), str(path), ("x",), start=float(i), end=i + 1.0) for i in range(3)]
    good, bad_span = [0, 2], f"{path} 1-2 s"  # DALI decodes nothing behind the damage, PyAV does
    clips, bad = shown(records, train=False, decoder=decoder, num_frames=8)
    assert clips == [(i, list(range(8 * i, 8 * i + 8))) for i in good]
    assert list(bad) == [bad_span]
    clips, bad = shown(records, train=True, num_steps=4, decoder=decoder)
    assert {index for index, _ in clips} == set(good)
    assert [name for name, reason in bad.items() if not reason.startswith(GAVE_UP)] == [bad_span]


def test_an_end_after_the_video_is_cut_and_said_once_where_it_is_not_rounding(movies, caplog):
    movie = movies["pyav"][0][0].video  # 11.25 s
    spans = [(10.0, 12.0), (9.0, 20.0), (8.0, 1e9)]
    records = [VideoRecord(str(i), movie, ("x",), start=start, end=end) for i, (start, end) in enumerate(spans)]
    with caplog.at_level(logging.WARNING, logger="fastvtp.data.notes"):
        clips, bad = shown(records, train=False, num_frames=10)
    assert (bad, clips[0]) == ({}, (0, list(range(80, 90))))
    assert [max(numbers) for _, numbers in clips] == [89, 89, 88]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{movie} 9-20 s: the span ends 8.8 s after its video and is cut there")


def test_the_whole_of_a_damaged_file_is_named_by_its_path(tmp_path):
    path = Path(tmp_path / "a.mp4")
    path.touch()
    records = [VideoRecord("a", str(path), ("x",), start=1.0), VideoRecord("b", str(path), ("x",), end=1.0)]
    good = VideoRecord("c", str(write_clip(tmp_path / "good.mp4")), ("x",))
    assert shown([*records, good], train=False)[1] == {str(path): "zero bytes"}
