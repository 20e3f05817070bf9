"""The table of a data set that workers share says of each record what the record itself says."""

import pickle

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.clip_table import ClipTable
from fastvtp.data.reading import ClipReading, ClipShape
from fastvtp.data.source import ClipSource
from fastvtp.data.stream import Batches, SampleStream
from fastvtp.data.timespans import FrameSpan, TimeSpan

RECORDS = [
    VideoRecord("0", "/films/a.mp4", ("a cat",)),
    VideoRecord("1", "s3://bucket/é ü.mp4", ("one", "two", "to the left")),
    VideoRecord("2", "/films/\udcff\ud800.mp4", ("",), mirrorable=False),
    VideoRecord("3", "/t.tar::b.mp4", ("left",), mirrorable=True, start=0.1, end=60.25),
    VideoRecord("4", "/films/a.mp4", ("x",), start=5),
    VideoRecord("5", "/films/a.mp4", ("x",), end=7.0),
    VideoRecord("6", "/films/a.mp4", ("x",), start=0.0),
    VideoRecord("7", "/films/a.mp4", ("x",), frames=FrameSpan(2**31 - 2, 2**31 - 1)),
    VideoRecord("8", "/films/a.mp4", ("x",), frames=FrameSpan(3, None)),
]


def test_a_table_says_what_the_records_say():
    table = ClipTable(RECORDS)
    assert len(table) == len(RECORDS)
    for index, record in enumerate(RECORDS):
        assert table.video(index) == record.video
        assert table.span(index) == record.span
        assert type(table.span(index)) is type(record.span)
        assert table.source(index) == record.source
        assert table.num_captions(index) == len(record.captions)
        assert table.may_be_mirrored(index) is record.may_be_mirrored
    assert [table.span(index) for index in (0, 3, 6)] == [None, TimeSpan(0.1, 60.25), None]


def test_a_source_is_a_few_arrays_however_many_records_it_has():
    """What is not in its arrays each worker has for itself."""
    sizes = []
    for count in (10, 10_000):
        records = [VideoRecord(f"{n}", f"/films/{n}.mp4", (f"clip {n}",), start=n + 0.5) for n in range(count)]
        stream = SampleStream(count, Batches(batch_size=1, train=True))
        source = ClipSource(records, stream, reading=ClipReading(), shape=ClipShape(2, 32))
        arrays = []
        sizes.append(len(pickle.dumps(source, protocol=5, buffer_callback=arrays.append)))
        assert sum(each.raw().nbytes for each in arrays) < 64 * count + 1000
    assert sizes[1] < sizes[0] + 100
