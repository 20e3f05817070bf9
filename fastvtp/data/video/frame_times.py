"""When the frames of a video are on screen, and which is at a given moment. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

_FINE_TICK, _NEARNESS = Fraction(1, 1000), Fraction(1, 2_000_000)  # seconds
_TICKS_A_FRAME = 4  # from which on a frame that is a tick off counts as rounded


def nearness(tick: Fraction) -> Fraction:
    """Return how near, in seconds, a moment must be to the time of a frame to count as that time.

    A container counts time in ticks. Where these are a millisecond or less the time of a frame is rounded to them, and
    half a tick is near, so that a time rounded to milliseconds means what it says. Longer ticks are those of the frames
    themselves, and exact to half a microsecond.
    """
    return max(tick / 2 if tick <= _FINE_TICK else Fraction(0), _NEARNESS)


@dataclass(frozen=True, eq=False)
class FrameTimes:
    """When the frames of a video, or of a span of it, are shown.

    Attributes:
        count: number of frames, F.
        duration: seconds from the first to the end of the last.
        near: seconds by which a moment may come before the time of a frame and still count as that time.
        rate: frames a second where they stand at even distances, as far as ticks can tell; None at a variable rate.
        uneven: at a variable rate, float64 `[F]`, rising: the time of each frame from the first, whose time is 0.
    """

    count: int
    duration: float
    near: float
    rate: float | None
    uneven: np.ndarray | None = None

    @property
    def seconds(self) -> np.ndarray:
        """The time of each frame from the first of them, float64 `[F]`; at even distances without the rounding."""
        return np.arange(self.count) / (self.rate or 1.0) if self.uneven is None else self.uneven

    def on_screen(self, moments: np.ndarray) -> np.ndarray:
        """Return the index of the frame that is on screen at each moment, in seconds from the first frame: the last
        one whose time has come, int64 like `moments`; before the first frame that one."""
        return np.maximum(np.searchsorted(self.seconds, moments + self.near, side="right") - 1, 0)


def frame_times(ticks: np.ndarray, tick: Fraction, rate: Fraction | None, shown: range) -> FrameTimes:
    """Return when the frames `shown` of a video are on screen.

    The last frame of a video counts as long as the others are in the mean.

    Args:
        ticks: int64, rising, when each frame of the video is shown, from the first one on.
        tick: seconds.
        rate: of the frames, as the container says; None if it does not.
        shown: some of the frames, in a row.
    """
    near, total = float(nearness(tick)), len(ticks)
    if (even := _even_rate(ticks, tick, rate)) is not None:
        return FrameTimes(len(shown), len(shown) / float(even), near, float(even))
    of_shown = ticks[shown.start : shown.stop]
    if shown.stop < total:
        duration = float(int(ticks[shown.stop] - of_shown[0]) * tick)
    else:
        end = Fraction(int(ticks[-1]) * total, total - 1) if total > 1 else Fraction(0)
        duration = float((end - int(of_shown[0])) * tick)
    return FrameTimes(len(shown), duration, near, None, (of_shown - of_shown[0]) * float(tick))


def _even_rate(ticks: np.ndarray, tick: Fraction, rate: Fraction | None) -> Fraction | None:
    """Return the rate at which the frames stand at even distances, but for the rounding to ticks; None at none."""
    total = len(ticks)
    measured = Fraction(total - 1, int(ticks[-1])) / tick if total > 1 else None
    for candidate in (rate, measured):
        if candidate:
            step = 1 / (candidate * tick)  # ticks in a frame
            off = np.abs(ticks - np.arange(total) * float(step)).max()
            if off <= (1 if step >= _TICKS_A_FRAME else 1e-6 * total):
                return candidate
    return None
