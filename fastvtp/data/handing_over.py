"""Which files DALI is given to decode, and what it has to be told about each; all others PyAV decodes in the workers.

A file goes to PyAV when DALI cannot read its container or decode its codec and pixel format on the device, when its
colours would come out wrong, or when it is too large to be handed over whole. All this follows from the file alone.
What else DALI stumbles over shows only when it does: the loader then tries file by file, and notes those that fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastvtp.data.sampling import CropWindow
from fastvtp.data.storage.finding import UnreadableError, read_file
from fastvtp.data.video.colours import Colours, correction, levels_lost
from fastvtp.data.video.decoding import Video, VideoDecodeError, VideoInfo
from fastvtp.data.video.frame_times import FrameTimes

GAVE_UP = "left to PyAV, DALI cannot decode it"
"""How the reason begins of a file that counts as one for PyAV since DALI failed at it."""
_NOT_READ = ("flv", "mpeg")  # containers in which DALI's demuxer finds no video stream
_MOST_BYTES = 1 << 28
_MOST_LOST = 3.0  # levels of colour
_UNCHANGED = np.eye(3, 4, dtype=np.float32)
_LOOKED_AT = 8  # every so many pixels of a picture, in each direction


@dataclass(frozen=True)
class DaliFormats:
    """What DALI decodes on a device.

    Attributes:
        pairs: (codec, pixel format), as libav names them.
        conversions: how it makes RGB of what is tagged BT.709, by codec and whether a file is of full range; see
            `fastvtp.data.dali_trial.conversions`.
    """

    pairs: frozenset[tuple[str, str]]
    conversions: Mapping[tuple[str, bool], Colours]

    def taken_for(self, info: VideoInfo) -> Colours | None:
        """Return as what DALI converts the colours of a file; None where that is not known."""
        taken, space = self.conversions.get((info.codec, info.full_range)), info.colorspace
        if taken is None:
            usual = Colours(2, False)
            own = Colours(space, info.full_range)
            return usual if own.is_known and np.allclose(own.to_rgb(), usual.to_rgb()) else None
        return Colours(space if taken.space == 1 else taken.space, taken.full)


@dataclass(frozen=True)
class HandedOver:
    """What DALI has to know of a file.

    Attributes:
        info: about it.
        shown: the frames that the record shows.
        repair: the map from DALI's RGB to the right one, float32 `[3, 4]`, or None where they are the same.
        times: of the frames shown, where sampling needs them.
    """

    info: VideoInfo
    shown: range
    repair: np.ndarray | None
    times: FrameTimes | None = None


def hand_over(video: Video, shown: range, formats: DaliFormats, *, whole: bool = False) -> HandedOver | str:
    """Decide on an opened video; decodes its first frame, and three more where colours have to be repaired.

    Args:
        video: opened.
        shown: the frames that the record shows.
        formats: what DALI decodes.
        whole: whether whole pictures are shown, which DALI does not scale to the proportions they are meant for.

    Returns:
        What DALI has to know; or, where PyAV is to decode it, the kind of files that this one is of, in words.

    Raises:
        VideoDecodeError: its first frame cannot be decoded.
    """
    info = video.info()
    if (info.codec, info.pix_fmt) not in formats.pairs:
        return f"{info.codec} ({info.pix_fmt}), which DALI does not decode on this device"
    if info.container in _NOT_READ:
        return f"files of the format {info.container}, which DALI does not read"
    if info.mirrored or (whole and info.stretch != 1):
        return "videos to be shown mirrored" if info.mirrored else "whole pictures of pixels that are not square"
    if video.stored is None:
        return "videos that are not one file"
    if video.stored.size > _MOST_BYTES:
        return f"files larger than {_MOST_BYTES >> 20} MiB, which DALI would have to be handed whole"
    own, taken = Colours(info.colorspace, info.full_range), formats.taken_for(info)
    if taken is None or not own.is_known:
        return f"{info.codec} coded as {own}, whose colours DALI may get wrong"
    repair = correction(own, taken)
    if np.allclose(repair, _UNCHANGED, atol=1e-3):
        return HandedOver(info, shown, None)
    try:
        some = video.read(sorted({shown.start, shown[len(shown) // 2], shown[-1]}))
    except VideoDecodeError:
        return "files with damage, whose colours DALI may get wrong"
    if levels_lost(some[:, ::_LOOKED_AT, ::_LOOKED_AT], repair) > _MOST_LOST:
        return f"{info.codec} coded as {own} with vivid colours, which DALI cuts off"
    return HandedOver(info, shown, repair)


def encoded_bytes(location: str) -> np.ndarray:
    """Read a whole file: uint8 `[N]`.

    Raises:
        VideoDecodeError: it cannot be read.
    """
    try:
        return np.frombuffer(read_file(location), np.uint8)
    except UnreadableError as error:
        raise VideoDecodeError(location, error.reason) from None


NO_BYTES, NO_FRAMES = np.empty(0, np.uint8), np.empty(0, np.int32)
NO_PICTURES = np.empty((0, 0, 0, 3), np.uint8)
BY_DALI, BY_DALI_REPAIRED, BY_PYAV = 0, 1, 2


def for_dali(
    encoded: np.ndarray, frames: np.ndarray, known: HandedOver, window: CropWindow | None
) -> tuple[np.ndarray, ...]:
    """Return the arrays of a clip that DALI is to decode.

    These are: the road int32 `[]`; the bytes of the file uint8 `[N]`; frames int32 `[T]`; counterclockwise rotation
    float32 `[]` in degrees; repair of colours float32 `[3, 4]`; no pictures; and, where a `window` is shown and not
    all, its top left and bottom right corner, float32 `[2]` each (y, x), fractions of the upright picture, and int32
    `[]`, 1 to mirror.
    """
    road = BY_DALI if known.repair is None else BY_DALI_REPAIRED
    rotation = np.array(known.info.rotation, np.float32)
    repair = _UNCHANGED if known.repair is None else known.repair
    arrays = np.array(road, np.int32), encoded, frames.astype(np.int32), rotation, repair, NO_PICTURES
    return arrays if window is None else (*arrays, *_shown(window))


def _shown(window: CropWindow) -> tuple[np.ndarray, ...]:
    corners = np.array([[window.y0, window.x0], [window.y1, window.x1]], np.float32)
    return *corners, np.array(window.flip, np.int32)


def beside_dali(pictures: np.ndarray, *, whole: bool) -> tuple[np.ndarray, ...]:
    """Return the arrays of a clip that PyAV decoded and cropped, uint8 `[T, H, W, 3]`, for the same graph."""
    arrays = np.array(BY_PYAV, np.int32), NO_BYTES, NO_FRAMES, np.array(0, np.float32), _UNCHANGED, pictures
    return arrays if whole else (*arrays, *_shown(CropWindow(0.0, 0.0, 1.0, 1.0)))
