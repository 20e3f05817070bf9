"""Turns decoded frames into RGB pictures: upright, cropped, scaled and mirrored, in one pass of libswscale.

A frame that is scaled goes from the decoder's own planes straight to planes of red, green and blue of the size asked
for: libswscale computes those with chroma at full resolution, several times as fast as packed pixels, and the picture
is turned and mirrored as the planes are laid into the clip. A frame that is not scaled is converted as PyAV's
`to_ndarray` does it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from fastvtp.data.sampling import CropWindow

_MOST_STRETCH = 10
_SCALED_AS = ("gbrp", (1, 2, 0))  # format and the channel that each of its planes holds


@dataclass(frozen=True)
class Turn:
    """One of the eight ways in which a stored picture becomes an upright one: rows and columns change places, then the
    order of the rows is turned over, then that of the columns."""

    transposed: bool = False
    rows: bool = False
    columns: bool = False

    @staticmethod
    def of_matrix(matrix: Sequence[int]) -> Turn:
        """Read a display matrix (ISO/IEC 14496-12, `tkhd`), a b u c d v x y w.

        One that is none of the eight, within a degree, leaves the picture as it is: all zeros, as some writers leave
        it, or a slant.
        """
        a, b, _, c, d, *_ = matrix
        along, across = min(abs(a), abs(d)), min(abs(b), abs(c))
        if along > 57 * max(abs(b), abs(c)):
            return Turn(False, d < 0, a < 0)
        if across > 57 * max(abs(a), abs(d)):
            return Turn(True, b < 0, c < 0)
        return Turn()

    @property
    def degrees(self) -> int:
        """Counterclockwise turn, before the columns are turned over if `is_mirrored`."""
        columns = self.columns != self.is_mirrored
        return {(False, False): 0, (True, False): 90, (False, True): 180, (True, True): 270}[self.transposed, columns]

    @property
    def is_mirrored(self) -> bool:
        return (self.transposed + self.rows + self.columns) % 2 == 1

    def mirrored(self) -> Turn:
        """Return this turn, and left and right exchanged after it."""
        return replace(self, columns=not self.columns)

    def stored(self, window: CropWindow) -> tuple[float, float, float, float]:
        """Return the corners y0, x0, y1, x1 that a window of the upright picture has in the stored one."""
        (y0, y1), (x0, x1) = (window.y0, window.y1), (window.x0, window.x1)
        if self.rows:
            y0, y1 = 1 - y1, 1 - y0
        if self.columns:
            x0, x1 = 1 - x1, 1 - x0
        return (x0, y0, x1, y1) if self.transposed else (y0, x0, y1, x1)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the one picture from those of the other."""
        return (width, height) if self.transposed else (height, width)

    def laid_into(self, picture: np.ndarray) -> np.ndarray:
        """Return a view of an upright picture `[h, w, ...]` in which a stored one is to be written."""
        view = picture[:: -1 if self.rows else 1, :: -1 if self.columns else 1]
        return view.swapaxes(0, 1) if self.transposed else view


def turn_of(frame: Any) -> Turn:
    """Return how a frame becomes upright, as far as its own side data say."""
    from av.sidedata.sidedata import Type

    try:
        matrix = next((bytes(data) for data in frame.side_data if data.type is Type.DISPLAYMATRIX), None)
    except ValueError:  # PyAV lists none where there is one that it does not know, such as Exif; it knows the angle
        turns = round(frame.rotation / 90) % 4
        return Turn(transposed=turns % 2 == 1, rows=turns in (1, 2), columns=turns in (2, 3))
    return Turn() if matrix is None else Turn.of_matrix(struct.unpack("=9i", matrix[:36]))


def stretch_of(ratio: Fraction | None) -> Fraction:
    """Return how much wider than high a pixel is shown: the sample aspect ratio, 1 where it is unknown, or so far from
    1 that it must be a mistake."""
    if not ratio or ratio <= 0 or not 1 / _MOST_STRETCH <= ratio <= _MOST_STRETCH:
        return Fraction(1)
    return ratio


def displayed_size(height: int, width: int, stretch: Fraction, turn: Turn) -> tuple[int, int]:
    """Return height and width of the upright picture, whose stored one is widened (or narrowed) by `stretch`."""
    return turn.size(height, max(1, round(width * stretch)))


class PictureMaker:
    """Makes RGB pictures of frames; keeps libswscale's tables from one to the next, so one per clip or video."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._converter, self._scaler = VideoReformatter(), VideoReformatter()
        self._cropped: Any = None

    def draw(self, frame: Any, turn: Turn, window: CropWindow, whole: tuple[int, int], picture: np.ndarray) -> None:
        """Draw the part of a frame that `window` shows.

        Args:
            frame: of PyAV, in any pixel format.
            turn: makes it upright.
            window: of the upright picture; its `flip` mirrors.
            whole: height and width of the whole picture, upright and displayed; the part keeps its pixels as they are
                where the frame has that size, and the part that of `picture`.
            picture: uint8 `[h, w, 3]`, filled.
        """
        laid = (turn.mirrored() if window.flip else turn).laid_into(picture)
        box = whole_box(window, *whole)
        if (box[2] - box[0], box[3] - box[1]) == picture.shape[:2] and turn.size(*whole) == (frame.height, frame.width):
            y0, x0, y1, x1 = _stored_box(turn, box, whole)
            rgb = self._converter.reformat(frame, format="rgb24", threads=1)
            pixels = _plane(rgb.planes[0], 1).reshape(frame.height, -1)[:, : 3 * frame.width]
            pixels = pixels.reshape(frame.height, frame.width, 3)[y0:y1, x0:x1]
            if turn == Turn() and not window.flip:
                laid[:] = pixels
            else:
                for channel in range(3):  # a reversed copy of packed pixels takes five times as long
                    laid[..., channel] = pixels[..., channel]
            return
        self._draw_scaled(frame, turn.stored(window), laid)

    def _draw_scaled(self, frame: Any, corners: tuple[float, float, float, float], laid: np.ndarray) -> None:
        height, width = laid.shape[:2]
        name, channels = _SCALED_AS
        part = self._part(frame, corners)
        scaled = self._scaler.reformat(part, width, height, format=name, interpolation="BILINEAR", threads=1)
        for plane, channel in zip(scaled.planes, channels, strict=True):
            laid[..., channel] = _plane(plane, 1)[:, :width]

    def _part(self, frame: Any, corners: tuple[float, float, float, float]) -> Any:
        """Return the part of a frame between the corners, which move to where chroma can be cut."""
        steps = _plane_steps(frame.format.name)
        if (steps is None and corners != (0, 0, 1, 1)) or any(plane.line_size < 0 for plane in frame.planes):
            frame = self._converter.reformat(frame, format=_SCALED_AS[0], threads=1)
            steps = _plane_steps(frame.format.name)
        if steps is None:
            return frame
        down, across = max(step[1] for step in steps), max(step[2] for step in steps)
        y0, y1 = _on_grid(corners[0], corners[2], frame.height, down)
        x0, x1 = _on_grid(corners[1], corners[3], frame.width, across)
        if (y0, x0, y1, x1) == (0, 0, frame.height, frame.width):
            return frame
        part = self._empty(x1 - x0, y1 - y0, frame.format.name)
        part.colorspace, part.color_range = frame.colorspace, frame.color_range
        for (size, down, across), source, target in zip(steps, frame.planes, part.planes, strict=True):
            rows, columns = -(-(y1 - y0) // down), -(-(x1 - x0) // across)
            top, left = y0 // down, x0 // across
            _plane(target, size)[:rows, :columns] = _plane(source, size)[top : top + rows, left : left + columns]
        return part

    def _empty(self, width: int, height: int, name: str) -> Any:
        from av import VideoFrame

        kept = self._cropped
        if kept is None or (kept.width, kept.height, kept.format.name) != (width, height, name):
            self._cropped = VideoFrame(width, height, name)
        return self._cropped


def whole_box(window: CropWindow, height: int, width: int) -> tuple[int, int, int, int]:
    """Return y0, x0, y1, x1 of a window in whole pixels, at least one each way."""
    y0, y1 = _on_grid(window.y0, window.y1, height, 1)
    x0, x1 = _on_grid(window.x0, window.x1, width, 1)
    return y0, x0, y1, x1


def _stored_box(turn: Turn, box: tuple[int, int, int, int], whole: tuple[int, int]) -> tuple[int, int, int, int]:
    (y0, x0, y1, x1), (height, width) = box, whole
    if turn.rows:
        y0, y1 = height - y1, height - y0
    if turn.columns:
        x0, x1 = width - x1, width - x0
    return (x0, y0, x1, y1) if turn.transposed else (y0, x0, y1, x1)


def _on_grid(low: float, high: float, length: int, step: int) -> tuple[int, int]:
    """Round fractions of a side to multiples of `step` pixels, or its end; at least one step, or the side."""
    ends = [min(max(round(share * length / step), 0) * step, length) for share in (low, high)]
    if ends[0] >= ends[1]:
        ends[0] = min(int(low * length / step), (length - 1) // step) * step
        ends[0] = max(ends[0], 0)
        ends[1] = min(ends[0] + step, length)
    elif length - ends[1] < step and length - high * length < step / 2:
        ends[1] = length  # of an odd side the last pixel has no partner
    return ends[0], ends[1]


def _plane(plane: Any, size: int) -> np.ndarray:
    """Return the rows of a plane, padding included, as items of `size` bytes."""
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
    return rows if size == 1 else rows.view(f"u{size}")


@lru_cache(maxsize=64)
def _plane_steps(name: str) -> tuple[tuple[int, int, int], ...] | None:
    """Return of each plane the bytes of a sample and how many rows and columns of pixels share one; None for formats
    whose planes hold more than one component or less than a byte a sample."""
    from av import VideoFormat

    side = 64
    format_ = VideoFormat(name, side, side)
    parts = sorted(format_.components, key=lambda part: part.plane)
    if format_.has_palette or [part.plane for part in parts] != list(range(len(parts))):
        return None
    if any(part.bits < 8 or part.bits > 32 for part in parts):
        return None
    sizes = [1 if part.bits <= 8 else 2 if part.bits <= 16 else 4 for part in parts]
    return tuple((size, side // part.height, side // part.width) for size, part in zip(sizes, parts, strict=True))
