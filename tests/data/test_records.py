"""Many records in little memory: a table is the list that it was made of, to whoever reads it."""

import copy
import gc
import json
import pickle
import random
import tracemalloc

import numpy as np
import pytest

from fastvtp.data.annotations import VideoRecord, annotations_digest, load_annotations, load_videos
from fastvtp.data.clip_table import ClipTable
from fastvtp.data.records import RecordTable
from fastvtp.data.text_column import Locations, texts_of
from fastvtp.data.timespans import FrameSpan
from tests.data.clips import write_lines

RECORDS = [
    VideoRecord("a.mp4", "/films/a.mp4", ("a cat",)),
    VideoRecord("1", "s3://bucket/é ü.mp4", ("one", "zwei, größer", "to the left")),
    VideoRecord("2", "/films/\udcff\ud800.mp4", ("",), mirrorable=False),
    VideoRecord("b.mp4 0.1-60.25", "/t.tar::b.mp4", ("left",), mirrorable=True, start=0.1, end=60.25),
    VideoRecord("films/a.mp4 5-end", "/films/a.mp4", ("x",), start=5.0),
    VideoRecord("a.mp4 0-7", "/films/a.mp4", ("x",), end=7.0),
    VideoRecord("a.mp4", "/films/a.mp4", ("x",), start=0.0),
    VideoRecord("a.mp4 frames 3-end", "/films/a.mp4", ("x",), frames=FrameSpan(3, None)),
    VideoRecord("8", "/films/a.mp4", ("x",), frames=FrameSpan(2**31 - 2, 2**31 - 1)),
    VideoRecord("", "bare.mp4", ("日本", "\0")),
    VideoRecord("/t/dir.tar::x/y.mp4", "/t/dir.tar::x/y.mp4", ("x",)),
    VideoRecord("a.mp4 ", "/films/a.mp4", ("x",), start=1.5, end=2.0),
    VideoRecord("frame", "/films/frames", ("x",), start=1.5, end=2.0),
]


def exact(record):
    """All that a record is, with the types of what it holds."""
    values = [getattr(record, name) for name in ("id", "video", "captions", "mirrorable", "start", "end", "frames")]
    return [(type(value), value) for value in values]


def many(count, spans=False):
    rng = random.Random(0)
    for number in range(count):
        path = f"train/{number % 97:04d}/{1_012_345_678 + number}.mp4"
        caption = " ".join(rng.choices(["a", "woman", "walks", "her", "small", "dog", "along", "the", "beach"], k=13))
        record = VideoRecord(path, f"/data/web/videos/{path}", (caption,))
        if spans:
            start = rng.randrange(10_000) / 1000
            record = VideoRecord(f"{path} {start}-{start + 7}", record.video, (caption,), None, start, start + 7)
        yield record


@pytest.mark.parametrize(
    "records", [RECORDS, RECORDS[:1], RECORDS[5:6], [], [*many(3000)], [*many(50, True), *RECORDS]]
)
def test_a_table_is_the_list_that_it_was_made_of(records):
    table = RecordTable(iter(records))
    for other in (table, pickle.loads(pickle.dumps(table)), copy.deepcopy(table)):
        assert len(other) == len(records)
        assert [exact(record) for record in other] == [exact(record) for record in records]
        assert [exact(other[place]) for place in range(len(records))] == [exact(record) for record in records]
        assert other == records
        assert records == other
        assert [*other.ids()] == [record.id for record in records]
    for given in (slice(None), slice(2, 5), slice(None, None, -1), slice(-3, None)):
        assert table[given] == records[given]
    assert table.num_captions == sum(len(record.captions) for record in records)
    assert [*reversed(table)] == records[::-1]
    if records:
        assert table[-1] == records[-1]
        assert table[np.int64(0)] == records[0]
        assert table != records[1:]
        assert table != "text"
        assert annotations_digest(table) == annotations_digest(records)
        assert records[0] in table
    for outside in (len(records), -len(records) - 1):
        with pytest.raises(IndexError):
            table[outside]


def test_a_table_shows_as_its_first_records_and_their_number():
    assert repr(RecordTable([])) == "RecordTable([])"
    assert repr(RecordTable(RECORDS[:3])) == f"RecordTable({RECORDS[:3]!r})"
    first = ", ".join(map(repr, RECORDS[:3]))
    assert repr(RecordTable(RECORDS)) == f"RecordTable([{first}, and {len(RECORDS) - 3} more])"
    assert repr(RecordTable(many(2000))).endswith(", and 1,997 more])")


def test_what_workers_know_is_the_same_of_a_table_and_of_a_list():
    of_list, of_table = ClipTable(RECORDS), ClipTable(RecordTable(RECORDS))
    for place in range(len(RECORDS)):
        for name in ("video", "span", "source", "num_captions", "may_be_mirrored"):
            assert getattr(of_list, name)(place) == getattr(of_table, name)(place)


def test_texts_and_locations_come_back_and_no_others():
    texts = ["", "a", "", "日本", "\0", "x" * 70_000, "/a/b", "/a/c", "/a/d::e", "/a/d::f/g", "t.tar::u"]
    for made in (
        texts_of(texts),
        Locations(texts_of(texts)),
        Locations(texts_of([*texts * 3])),
        pickle.loads(pickle.dumps(Locations(texts_of(texts * 9)))),
    ):
        assert [*made][: len(texts)] == [made[place] for place in range(len(texts))] == texts
        assert made.part(6, 9) == texts[6:9]
        with pytest.raises((IndexError, ValueError)):
            made[len(made) + 3]
    assert len(texts_of([])) == 0


def test_reading_all_locations_of_many_folders_keeps_few_of_them():
    """A worker that saw all videos of a list of millions, each in a folder of its own clips, would grow with it."""
    locations = Locations(texts_of(f"/data/{number // 8:08d}/{number % 8}.mp4" for number in range(40_000)))
    tracemalloc.start()
    try:
        assert [locations[place] for place in (0, 39_999)] == ["/data/00000000/0.mp4", "/data/00004999/7.mp4"]
        assert all(locations[place] for place in range(0, 40_000, 8))
        assert tracemalloc.get_traced_memory()[0] < 250_000
    finally:
        tracemalloc.stop()


def test_lines_about_one_clip_are_one_record_wherever_they_stand(tmp_path):
    rows = [{"video": f"{n % 7}.mp4", "caption": [f"c{n}", "same"], "id": f"line {n}"} for n in range(30)]
    rows += [{"video": "./3.mp4", "caption": "again"}, {"video": "3.mp4", "caption": "of a part", "start": 1}]
    loaded = load_annotations(write_lines(tmp_path / "a.jsonl", *rows))
    assert [record.id for record in loaded] == [*(f"line {n}" for n in range(7)), "3.mp4 1-end"]
    assert loaded[3].captions == ("c3", "same", "c10", "c17", "c24", "again")
    assert loaded[2].captions == ("c2", "same", "c9", "c16", "c23")
    assert [record.id for record in load_videos(tmp_path / "a.jsonl")] == [record.id for record in loaded]


def test_equal_hashes_do_not_make_clips_one():
    table = RecordTable(many(6))
    assert table.merged([7, 7, 7, 7, 7, 7]) == table
    twice = RecordTable([*many(4), *many(4)])
    assert twice.merged([7] * 8) == [*many(4)]


@pytest.mark.parametrize(("spans", "most"), [(False, 150), (True, 180)])
def test_a_list_takes_few_bytes_a_record(tmp_path, spans, most):
    """150 MB a million; spans take two numbers more."""
    count, path = 20_000, tmp_path / "a.jsonl"
    with path.open("w") as file:
        for record in many(count, spans):
            bounds = {"start": record.start, "end": record.end} if spans else {}
            row = {"video": record.video.removeprefix("/data/web/videos/"), "caption": record.captions[0], **bounds}
            file.write(json.dumps(row) + "\n")
    load_annotations(write_lines(tmp_path / "b.jsonl", {"video": "x.mp4", "caption": "x"}))  # what is imported once
    tracemalloc.start()
    try:
        records = load_annotations(path)
        gc.collect()
        own = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/fastvtp/data/*")])
    finally:
        tracemalloc.stop()
    assert len(records) == count
    assert sum(each.size for each in own.statistics("filename")) < most * count
