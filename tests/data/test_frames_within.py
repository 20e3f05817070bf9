"""Which frames of a video a span of seconds holds, told by the numbers that the frames carry."""

from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from fastvtp.data.video.decoding import Video
from tests.data.clips import frame_numbers, write_clip
from tests.data.test_decoding import CLIPS, IRREGULAR, VP9, X264_B_FRAMES, shifted_copy
from tests.data.test_real_footage import NAMES, footage

FIRST = 40  # the number that the first frame carries


def shown_within(path, start, end):
    """The places of the frames of a span, by what is seen in them."""
    with Video(path) as video:
        frames = video.frames_within(start, end)
        return [number - FIRST for number in frame_numbers(video.read(frames))] if frames else []


def expected_within(times, start, end):
    """Places of the exact `times` (seconds) with start <= time < end."""
    last = max(times) + 1
    return [i for i, time in enumerate(times) if (start or 0) <= time < (last if end is None else end)]


def odd_spans(times, count=12):
    """Spans with bounds a millisecond and more from all `times`, some open, some beyond the end."""
    rng, last = np.random.default_rng(5), float(times[-1])
    drawn = rng.uniform(0, 1.3 * last, 8 * count)
    clear = [float(second) for second in drawn if min(abs(second - float(time)) for time in times) > 1e-3]
    yield from (tuple(sorted(pair)) for pair in zip(clear[0 : 2 * count : 2], clear[1 : 2 * count : 2], strict=True))
    yield from [(None, clear[0]), (clear[1], None), (None, None), (2 * last, 3 * last)]


@pytest.mark.parametrize("name", [name for name in CLIPS if name not in ("h264_variable_rate", "mpeg2_ps")])
def test_a_span_holds_the_frames_shown_in_it_whatever_the_container(tmp_path, name):
    file_name, arguments = CLIPS[name]
    path = write_clip(tmp_path / file_name, 13, first=FIRST, **arguments)
    times = [Fraction(i, 8) for i in range(13)]
    for span in odd_spans(times):
        assert shown_within(path, *span) == expected_within(times, *span), span


@pytest.mark.parametrize(
    ("file_name", "encoding"),
    [("a.mp4", {"options": X264_B_FRAMES}), ("a.webm", {"codec": "libvpx-vp9", "options": VP9})],
)
def test_a_variable_rate_is_followed_to_the_frame(tmp_path, file_name, encoding):
    pts = [8 * (time // 8) for time in IRREGULAR]  # whole milliseconds, which WebM can say
    path = write_clip(tmp_path / file_name, first=FIRST, pts=pts, **encoding)
    times = [Fraction(time, 8000) for time in pts]
    for span in odd_spans(times, 30):
        assert shown_within(path, *span) == expected_within(times, *span), span


def test_neighbouring_spans_divide_the_frames_where_bounds_are_times_of_frames(tmp_path):
    """30 frames a second are 33.33 ms each, of which WebM says 33, 67 and 100."""
    encodings: dict[str, Any] = {
        "a.webm": {"codec": "libvpx", "options": VP9},
        "a.mp4": {"options": X264_B_FRAMES},
    }
    for file_name, encoding in encodings.items():
        path = write_clip(tmp_path / file_name, 30, first=FIRST, fps=30, **encoding)
        with Video(path) as video:
            for i in range(30):
                for rounded in (i / 30, round(i / 30, 6)):
                    assert video.frames_within(rounded, None) == range(i, 30)
                    assert video.frames_within(None, rounded) == range(i)


def test_coarse_ticks_are_those_of_the_frames(tmp_path):
    """The clock of an AVI ticks once a frame: half a tick would be half a frame."""
    path = write_clip(tmp_path / "a.avi", 8, first=FIRST, codec="mjpeg", pix_fmt="yuvj420p")
    assert shown_within(path, 0.06, 0.19) == [1]


def test_seconds_count_from_the_first_frame_that_is_shown(tmp_path):
    whole = write_clip(tmp_path / "whole.mp4", 24, gop=12, first=FIRST, options=X264_B_FRAMES)
    edited = shifted_copy(whole, tmp_path / "edited.mp4", 5)  # an edit list hides the first five
    assert shown_within(edited, 0.5, 1.0) == [9, 10, 11, 12]
    with Video(edited) as video:
        assert video.duration == pytest.approx(19 / 8)
    transport = write_clip(tmp_path / "a.ts", 16, first=FIRST, options=X264_B_FRAMES)  # its clock starts at 250 ms
    assert shown_within(transport, 0.5, 1.0) == [4, 5, 6, 7]


def test_a_span_between_two_frames_and_one_beyond_the_end_hold_none(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 16, first=FIRST)
    with Video(path) as video:
        assert not video.frames_within(0.51, 0.6)
        assert not video.frames_within(2.0, 3.0)
        assert not video.frames_within(1.9, 60.0)
        assert video.frames_within(1.875, 60.0) == range(15, 16)
        assert video.duration == 2.0


@pytest.mark.parametrize("name", NAMES)
def test_spans_of_real_footage_hold_the_frames_of_the_plain_decode(name):
    path = footage(name)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [frame.pts * stream.time_base for frame in container.decode(stream)]
    times = [time - times[0] for time in times]
    with Video(path) as video:
        for start, end in odd_spans(times, 20):
            assert list(video.frames_within(start, end)) == expected_within(times, start, end)


def test_a_raw_stream_has_evenly_spaced_frames(tmp_path):
    """It has no container that could say when they are shown; libav takes it for 25 frames a second."""
    path = write_clip(tmp_path / "a.h264", 20, first=FIRST, fps=25, options=X264_B_FRAMES)
    assert shown_within(path, 0.15, 0.41) == [4, 5, 6, 7, 8, 9, 10]
