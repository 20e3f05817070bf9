"""What is measured of a clip's pictures: how much moves, and a hash that clips that look alike share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

_GREY = np.array([77, 150, 29], np.int32)  # of 256: BT.601
_SIDE = 32  # of the pictures that motion is seen in
_APART = 0.125  # seconds
HASHED_FRAMES, _HASH_SIDE = 4, 8
_BANDS = 16


def small_grey(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the mean brightness of the cells of a grid: uint8 `[H, W, 3]` -> float64 `[height, width]`, 0 to 255.

    A picture with fewer pixels than cells repeats them. Values are whole multiples of 1/256, and so are exact, as are
    their sums: what is computed of floats differs in its last digits from one place in memory to another, and scores
    are to be the same whoever computes them.
    """
    total = frame.astype(np.int32) @ _GREY
    pixels = np.ones((1, 1), np.int64)
    for axis, cells in enumerate((height, width)):
        edges = np.arange(cells + 1) * frame.shape[axis] // cells
        total = np.add.reduceat(total, edges[:-1], axis, dtype=np.int64)
        pixels = pixels * np.expand_dims(np.maximum(np.diff(edges), 1), 1 - axis)
    return (total // pixels) / 256


class MotionMeter:
    """Measures how much moves in a clip: the mean absolute difference of successive pictures.

    The pictures are grey, of 32 x 32 cells, and at least 1/8 s apart, so that the rate of frames counts little. A
    still clip has 0, the largest difference is 255.
    """

    def __init__(self) -> None:
        self._last: tuple[float, np.ndarray] | None = None
        self._sum, self._pairs = 0.0, 0

    def see(self, second: float, frame: np.ndarray) -> None:
        """Take the next frame, uint8 `[H, W, 3]`, shown at `second`."""
        if self._last is not None and second - self._last[0] < _APART - 1e-6:
            return
        grey = small_grey(frame, _SIDE, _SIDE)
        if self._last is not None:
            self._sum += float(np.abs(grey - self._last[1]).mean())
            self._pairs += 1
        self._last = second, grey

    @property
    def motion(self) -> float:
        """The mean over all pairs of pictures; 0 for a clip of one."""
        return round(self._sum / self._pairs, 3) if self._pairs else 0.0


def hashed_frames(frames: range) -> list[int]:
    """Choose the frames that are hashed: the middles of four equal parts."""
    return [frames.start + len(frames) * (2 * part + 1) // (2 * HASHED_FRAMES) for part in range(HASHED_FRAMES)]


def look_of(frames: Sequence[np.ndarray]) -> str:
    """Compute the look of a clip by its four `hashed_frames`: 72 hexadecimal digits.

    First the difference hash of each frame, 64 bits that say where its brightness rises from one cell of a 9 x 8 grid
    to the next (N. Krawetz, "Kind of like that", 2013); then the mean brightness of each, a byte.
    """
    bits, brightness = [], []
    for frame in frames:
        grey = small_grey(frame, _HASH_SIDE, _HASH_SIDE + 1)
        bits.append(grey[:, 1:] > grey[:, :-1] + 0.5)  # what is flat but for noise has no bits
        brightness.append(round(float(grey.mean())))
    return np.packbits(np.concatenate([each.ravel() for each in bits])).tobytes().hex() + bytes(brightness).hex()


class LookAlikes:
    """Finds clips that look like an earlier one.

    Two looks are alike if their hashes differ in at most `most_bits` of 256, and their brightness by at most 16 levels
    in each frame, for flat pictures have empty hashes. Hashes are kept by parts, more than may differ, so that alike
    ones share a part: none is missed, and few are compared.
    """

    def __init__(self, most_bits: int):
        self._most = most_bits
        self._parts = max(most_bits + 1, _BANDS)
        self._kept: dict[tuple[int, int], list[tuple[str, int, bytes]]] = {}

    def find(self, name: str, look: str) -> tuple[str, int] | None:
        """Return an earlier clip that looks alike, and in how many bits they differ; where there is none, keep
        this one."""
        number, brightness = int(look[:64], 16), bytes.fromhex(look[64:])
        edges = [256 * part // self._parts for part in range(self._parts + 1)]
        keys = [(part, number >> low & ((1 << high - low) - 1)) for part, (low, high) in enumerate(pairwise(edges))]
        for key in keys:
            for other, known, light in self._kept.get(key, ()):
                apart = (number ^ known).bit_count()
                if apart <= self._most and all(abs(a - b) <= 16 for a, b in zip(brightness, light, strict=True)):
                    return other, apart
        for key in keys:
            self._kept.setdefault(key, []).append((name, number, brightness))
        return None
