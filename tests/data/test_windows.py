"""Long videos as windows of equal length."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.timespans import FrameSpan
from fastvtp.data.windows import Windows, windows_of
from fastvtp.errors import UserError
from tests.data.clips import write_clip
from tests.data.test_frame_times import UNEVEN_MS
from tests.data.test_span_clips import FPS, H264, TOTAL, shown


@pytest.fixture(scope="module")
def movie(tmp_path_factory):
    """90 frames in 11.25 s."""
    return str(write_clip(tmp_path_factory.mktemp("movie") / "movie.mp4", TOTAL, fps=FPS, width=128, **H264))


def bounds(records):
    return [(record.start, record.end) for record in records]


@pytest.mark.parametrize(
    ("record", "lengths", "expected"),
    [
        ({}, (4.0, None), [(0, 4), (4, 8), (7.25, 11.25)]),
        ({}, (4.0, 2.5), [(0, 4), (2.5, 6.5), (5, 9), (7.25, 11.25)]),
        ({}, (5.625, None), [(0, 5.625), (5.625, 11.25)]),
        ({}, (2.0, 5.0), [(0, 2), (5, 7), (9.25, 11.25)]),
        ({"start": 1.5, "end": 6.0}, (2.0, None), [(1.5, 3.5), (3.5, 5.5), (4, 6)]),
        ({"start": 6.0, "end": 99.0}, (3.0, None), [(6, 9), (8.25, 11.25)]),
        ({"frames": FrameSpan(8, 32)}, (2.0, None), [(1, 3), (2, 4)]),
        ({"frames": FrameSpan(64, None)}, (2.0, None), [(8, 10), (9.25, 11.25)]),
    ],
)
def test_windows_cover_the_record_and_the_last_ends_with_it(movie, record, lengths, expected):
    made = windows_of([VideoRecord("m", movie, ("x", "y"), mirrorable=False, **record)], *lengths)
    assert bounds(made) == expected
    assert [each.frames for each in made] == [None] * len(made)
    names = [f"m {start:g}-{end:g}" for start, end in expected]
    assert [each.id for each in made] == names
    assert {(each.captions, each.mirrorable, each.video) for each in made} == {(("x", "y"), False, movie)}


def test_a_rest_shorter_than_a_frame_is_no_window(movie):
    assert bounds(windows_of([VideoRecord("m", movie, ("x",))], 2.8)) == [
        (0, 2.8), (2.8, 5.6), (5.6, 8.4), (8.4, 11.2)
    ]  # fmt: skip


def test_what_is_short_or_cannot_be_opened_stays_as_it_is(movie, tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    records = [
        VideoRecord("short", movie, ("x",), start=9.0),
        VideoRecord("whole", movie, ("x",)),
        VideoRecord("empty", str(empty), ("x",)),
        VideoRecord("outside", movie, ("x",), start=60.0, end=70.0),
    ]
    assert windows_of(records, 11.25) == records
    assert [each.id for each in windows_of(records, 8)] == [
        "short",
        "whole 0-8",
        "whole 3.25-11.25",
        "empty",
        "outside",
    ]


@settings(deadline=None)  # a busy machine
@given(
    length=st.floats(0.2, 200), seconds=st.floats(0.5, 50), hop=st.none() | st.floats(0.5, 40), start=st.floats(0, 50)
)
def test_any_windows_are_equally_long_and_leave_no_end_out(length, seconds, hop, start):
    frame, end, step = 0.04, start + length, hop or seconds
    found = np.array(Windows(seconds, hop).within(start, end, frame))
    assert abs(found[0, 0] - start) < 1e-5
    assert abs(found[-1, 1] - end) < frame + 1e-5
    assert len(found) == 1 or np.abs(found[:, 1] - found[:, 0] - seconds).max() < 1e-5
    assert (np.diff(found[:, 0]) <= step + 1e-5).all()
    assert np.abs(found[:-1, 0] - start - step * np.arange(len(found) - 1)).max(initial=0) < 1e-4


def test_windows_show_every_frame_of_a_variable_rate(tmp_path):
    path = str(write_clip(tmp_path / "a.mp4", 90, width=160, pts=(UNEVEN_MS * 8).tolist(), **H264))
    made = windows_of([VideoRecord("a", path, ("x",))], 10.0)
    numbers = {number for record in made for _, clip in [shown([record], train=False, num_frames=90)[0][0]]
               for number in clip}  # fmt: skip
    assert numbers == set(range(90))


@pytest.mark.parametrize(("lengths", "complaint"), [((0.0,), "window must be"), ((2.0, -1.0), "hop must be")])
def test_lengths_that_make_no_windows_are_refused(movie, lengths, complaint):
    with pytest.raises(UserError, match=f"{complaint} a positive number of seconds"):
        windows_of([VideoRecord("m", movie, ("x",))], *lengths)
