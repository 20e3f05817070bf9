"""Which RGB a decoder makes of a file's YUV, and the way from the RGB of a wrong matrix back to the right one.

A file says by which matrix (ITU-R BT.601, BT.709, BT.2020 ...) and in which range (luma 16 to 235, or 0 to 255) its
colours were coded. DALI's decoders convert all files as BT.601, which shifts those of BT.709 by up to 40 of 255 levels.
Both conversions are affine, so one affine map of RGB repairs what the wrong one did, but for the colours that it cut
off at 0 or 255.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_LUMA = {  # shares of red and blue in luma (ITU-T H.273, table 4), by libav's number of the colour space
    1: (0.2126, 0.0722),  # BT.709
    2: (0.299, 0.114),  # not said: BT.601, as libswscale takes it
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.470 BG
    6: (0.299, 0.114),  # SMPTE 170M
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020, non-constant luminance
}
_SHARE_THAT_COUNTS = 0.999


@dataclass(frozen=True)
class Colours:
    """How YUV becomes RGB.

    Attributes:
        space: libav's number of the colour space (`AVColorSpace`, ITU-T H.273 table 4).
        full: whether 0 is black and 255 white; otherwise 16 and 235.
    """

    space: int
    full: bool

    @property
    def is_known(self) -> bool:
        """Whether the conversion is an affine one that this module knows."""
        return self.space in _LUMA

    def __str__(self) -> str:
        names = {1: "BT.709", 4: "FCC", 7: "SMPTE 240M", 9: "BT.2020"}
        name = names.get(self.space, "BT.601" if self.is_known else f"colour space {self.space}")
        return f"{name}, {'full' if self.full else 'limited'} range"

    def to_rgb(self) -> np.ndarray:
        """Return the affine map from (Y, U, V) to (R, G, B), all in levels of 0 to 255: float64 `[4, 4]`, the last row
        0 0 0 1."""
        red, blue = _LUMA[self.space]
        green = 1 - red - blue
        matrix = np.eye(4)
        matrix[:3, 1] = 0, -2 * blue * (1 - blue) / green, 2 * (1 - blue)
        matrix[:3, 2] = 2 * (1 - red), -2 * red * (1 - red) / green, 0
        matrix[:3, 0] = 1
        scale, offset = np.eye(4), np.array([0.0, 128, 128])
        if not self.full:
            offset[0] = 16
            scale[:3, :3] = np.diag([255 / 219, 255 / 224, 255 / 224])
        scale[:3, 3] = -scale[:3, :3] @ offset
        return matrix @ scale


def correction(colours: Colours, decoded_as: Colours) -> np.ndarray:
    """Return the affine map from the RGB of a decoder that took a file's colours for `decoded_as` to what they are:
    float32 `[3, 4]`, a matrix and an offset in levels."""
    return (colours.to_rgb() @ np.linalg.inv(decoded_as.to_rgb()))[:3].astype(np.float32)


def levels_lost(pictures: np.ndarray, repair: np.ndarray) -> float:
    """Tell how far `repair` can bring pictures back, given their true colours.

    Args:
        pictures: uint8 `[..., 3]`, RGB as it should be.
        repair: what `correction` returned.

    Returns:
        The error in levels that 999 of 1000 of all values stay within, because the wrong conversion cut values off.
    """
    true = pictures.reshape(-1, 3).astype(np.float32)
    matrix, offset = repair[:, :3], repair[:, 3]
    wrong = (true - offset) @ np.linalg.inv(matrix).T.astype(np.float32)
    repaired = np.clip(wrong, 0, 255) @ matrix.T + offset
    return float(np.quantile(np.abs(repaired.clip(0, 255) - true).max(axis=1), _SHARE_THAT_COUNTS))
