"""Spans of time in lists: the fields "start" and "end" of a line, which make its clip a part of its video."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from fastvtp.errors import UserError

MOST_SECONDS = 1e9
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


def span_of_line(fields: Mapping[str, Any], place: str) -> TimeSpan | None:
    """Read the fields "start" and "end" of a line at `place`: the span that they say, or None for the whole video.

    Seconds as a number or text (12.5, "12.5"), or by the clock ("00:01:02.5", "1:02.5"). A missing or null start is
    the beginning, a missing or null end the end.

    Raises:
        UserError: another value, a negative one, or an end that is not after the start; names the field.
    """
    start, end = (_seconds(fields.get(name), f"{place}: field '{name}'") for name in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        expected = f"more than its start {_shortest(start or 0.0)}"
        raise UserError(f"{place}: field 'end': expected {expected}, got {fields['end']!r}")
    return None if not start and end is None else TimeSpan(start or 0.0, end)


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
