"""Long videos as windows: records of spans of equal length that cover a video, at even distances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from fastvtp.data.records import VideoRecord
from fastvtp.data.timespans import TimeSpan
from fastvtp.data.video.decoding import Video, VideoDecodeError
from fastvtp.errors import UserError

_DIGITS = 6  # of seconds: exact to less than any moment is told apart


@dataclass(frozen=True)
class Windows:
    """How videos are cut into windows.

    The first window begins with the video, or with the span of it that a record is, each further one `hop` later. The
    last is the first that reaches its end; where it would go beyond, it is moved back to end with it, so that all
    windows are equally long and the end is not left out. What is not longer than a window is one window, as it is.

    Attributes:
        seconds: length of a window.
        hop: seconds from the beginning of a window to that of the next; None: `seconds`, so that they touch. A longer
            one leaves gaps.

    Raises:
        UserError: a length that is not positive.
    """

    seconds: float
    hop: float | None = None

    def __post_init__(self) -> None:
        for name, length in (("window", self.seconds), ("hop", self.hop)):
            if length is not None and not 0 < length < math.inf:
                raise UserError(f"{name} must be a positive number of seconds, got {length}")

    def within(self, start: float, end: float, frame: float) -> list[tuple[float, float]]:
        """Return the bounds of the windows from `start` to `end`, in seconds; what is left over counts from the length
        of a `frame` on."""
        hop = self.hop or self.seconds
        further = max(0, math.ceil((end - frame - start - self.seconds) / hop))  # windows after the first
        starts = [start + number * hop for number in range(further + 1)]
        starts[-1] = max(start, min(starts[-1], end - self.seconds))
        return [(round(first, _DIGITS), round(min(first + self.seconds, end), _DIGITS)) for first in starts]


def windows_of(
    records: Sequence[VideoRecord], seconds: float, hop: float | None = None, *, progress: bool = False
) -> list[VideoRecord]:
    """Cut the videos of records into windows of `seconds`, each `hop` after the one before, see `Windows`.

    A window is a record like any other, with the captions of the one that it is a window of: its id is that id and the
    bounds, "movie 60-70", in seconds from the first frame of the video. A record of which there is one window stays as
    it is, and so does that of a file that cannot be opened, which the loader will name. Only headers are read, where
    the container has an index of its frames.

    Raises:
        UserError: lengths that make no windows.
    """
    return [window for own in windows_by_record(records, Windows(seconds, hop), progress=progress) for window in own]


def windows_by_record(
    records: Sequence[VideoRecord], windows: Windows, *, progress: bool = False
) -> list[list[VideoRecord]]:
    """Return the windows of each record, as `windows_of` does for all in a row."""
    shown = tqdm(records, desc="windows", unit="video", disable=not progress)
    return [_windows(record, windows) for record in shown]


def _windows(record: VideoRecord, windows: Windows) -> list[VideoRecord]:
    try:
        with Video(record.video) as video:
            frames = range(video.num_frames) if record.span is None else record.span.frames_of(video)
            if not frames:
                return [record]
            duration, frame = video.duration, video.duration / video.num_frames
            if isinstance(record.span, TimeSpan):
                start, end = record.span.start, min(duration, record.span.end or duration)
            else:
                seconds = video.seconds
                start = float(seconds[frames.start])
                end = float(seconds[frames.stop]) if frames.stop < len(seconds) else duration
    except VideoDecodeError:
        return [record]
    bounds = windows.within(start, end, frame)
    if len(bounds) == 1:
        return [record]
    spans = [TimeSpan(*each) for each in bounds]
    return [replace(record.within(span), id=f"{record.id} {span}") for span in spans]
