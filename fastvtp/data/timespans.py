"""Spans in lists: the fields "start" and "end" of a line, or "start_frame" and "end_frame", which make its clip a part
of its video."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from fastvtp.errors import UserError

if TYPE_CHECKING:
    from fastvtp.data.video.decoding import Video

MOST_SECONDS = 1e9
MOST_FRAMES = 2**31 - 1
# hours may be left out; minutes and seconds count to 59
_CLOCK = re.compile(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:\.\d+)?)", re.ASCII)
_SECONDS = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)


class TimeSpan(NamedTuple):
    """The part of a video from `start` to before `end`, seconds from its first frame; `end` None: to the last frame.

    See `Video.frames_within` for the frames that belong to it.
    """

    start: float
    end: float | None

    def __str__(self) -> str:
        """Return the span as ids write it: "60-70", "2.5-end"; different spans differ."""
        return f"{_shortest(self.start)}-{'end' if self.end is None else _shortest(self.end)}"

    @property
    def said(self) -> str:
        """The span with its unit: "60-70 s"."""
        return f"{self} s"

    def fields(self) -> dict[str, Any]:
        """Return the fields of a line that says the span."""
        return {"start": self.start, "end": self.end}

    def frames_of(self, video: Video) -> range:
        """Return the indices of the frames of `video` that belong to the span; none: an empty range."""
        return video.frames_within(self.start, self.end)

    def begins_after(self, video: Video) -> str | None:
        """Return how long `video` is, where the span begins when it is over; else None."""
        return f"{video.duration:.6g} s" if self.start >= video.duration else None

    def seconds_beyond(self, video: Video) -> float:
        """Return by how many seconds the span ends after `video`; 0 where it does not."""
        return 0.0 if self.end is None else max(0.0, self.end - video.duration)


@dataclass(frozen=True)
class FrameSpan:
    """The part of a video from the frame `start` to before the frame `end`, counted from 0 in the order in which they
    are shown; `end` None: to the last frame."""

    start: int
    end: int | None

    def __str__(self) -> str:
        """Return the span as ids write it: "frames 60-70", "frames 3-end"."""
        return f"frames {self.start}-{'end' if self.end is None else self.end}"

    @property
    def said(self) -> str:
        """The span with its unit: "frames 60-70"."""
        return str(self)

    def fields(self) -> dict[str, Any]:
        """Return the fields of a line that says the span."""
        return {"start_frame": self.start, "end_frame": self.end}

    def frames_of(self, video: Video) -> range:
        """Return the indices of the frames of `video` that belong to the span; none: an empty range."""
        last = video.num_frames
        return range(min(self.start, last), last if self.end is None else min(self.end, last))

    def begins_after(self, video: Video) -> str | None:
        """Return how long `video` is, where the span begins when it is over; else None."""
        return f"{video.num_frames} frames" if self.start >= video.num_frames else None

    def seconds_beyond(self, video: Video) -> float:
        """Return by how many seconds the span ends after `video`, whose frames count as long as they are in the mean;
        0 where it does not."""
        beyond = 0 if self.end is None else max(0, self.end - video.num_frames)
        return beyond * video.duration / video.num_frames if beyond else 0.0


Span = TimeSpan | FrameSpan


def span_of_line(fields: Mapping[str, Any], place: str) -> Span | None:
    """Read the fields "start" and "end" of a line at `place`, or "start_frame" and "end_frame": the span that they say,
    or None for the whole video.

    Seconds as a number or text (12.5, "12.5"), or by the clock ("00:01:02.5", "1:02.5"); frames as whole numbers from
    0 on, the end being the first that does not belong to the span. A missing or null start is the beginning, a missing
    or null end the end.

    Raises:
        UserError: another value, a negative one, an end that is not after the start, or both seconds and frames; names
            the field.
    """
    by_frame = [name for name in ("start_frame", "end_frame") if fields.get(name) is not None]
    if by_frame:
        if by_second := [name for name in ("start", "end") if fields.get(name) is not None]:
            raise UserError(
                f"{place}: fields '{by_second[0]}' and '{by_frame[0]}': expected seconds or frames, not both"
            )
        return _frames_of_line(fields, place)
    start, end = (_seconds(fields.get(name), f"{place}: field '{name}'") for name in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        expected = f"more than its start {_shortest(start or 0.0)}"
        raise UserError(f"{place}: field 'end': expected {expected}, got {fields['end']!r}")
    return None if not start and end is None else TimeSpan(start or 0.0, end)


def _frames_of_line(fields: Mapping[str, Any], place: str) -> FrameSpan | None:
    start, end = (_frame(fields.get(name), f"{place}: field '{name}'") for name in ("start_frame", "end_frame"))
    start = start or 0
    if end is not None and end <= start:
        raise UserError(f"{place}: field 'end_frame': expected more than its start_frame {start}, got {end}")
    return None if not start and end is None else FrameSpan(start, end)


def _frame(value: Any, place: str) -> int | None:
    if value is None:
        return None
    text = value.strip() if isinstance(value, str) else ""
    number = int(text) if text.isascii() and text.isdecimal() else value
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MOST_FRAMES:
        raise UserError(f"{place}: expected the number of a frame, from 0 on, got {value!r}")
    return number


def _seconds(value: Any, place: str) -> float | None:
    if value is None:
        return None
    seconds = math.nan
    if isinstance(value, str):
        text = value.strip()
        if _SECONDS.fullmatch(text):
            seconds = float(text)
        elif match := _CLOCK.fullmatch(text):
            seconds = float(3600 * int(match[1] or 0) + 60 * int(match[2]) + Decimal(match[3]))
    elif isinstance(value, int | float) and not isinstance(value, bool) and value <= MOST_SECONDS:
        seconds = float(value)
    if not 0 <= seconds <= MOST_SECONDS:
        raise UserError(f'{place}: expected seconds from 0 on, such as 62.5 or "00:01:02.5", got {value!r}')
    return seconds


def _shortest(seconds: float) -> str:
    return repr(seconds).removesuffix(".0")
