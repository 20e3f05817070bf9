"""The operations of RandAugment on clips inside a DALI graph, as Pillow does them, on the CPU or the GPU alike.

Greys and colours are Pillow's, to one level where float32 and float64 round to different sides, and in equalising to
a few, because Pillow counts pixels in whole steps there. Rotations, shears and translations are bilinear, rounded to
the nearest level, and blend with the fill at the border of the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fastvtp.data.rand_augment import OPERATIONS

FILL = 128
_GREY = np.array([19595, 38470, 7471], np.float32)  # of 65536: Pillow's weights of red, green and blue
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_TIE = 1 / 1024  # less than any fraction that stretching of contrast can leave, more than float32 loses


def rand_augmented(video: Any, places: Any, arguments: Any, number: int, size: tuple[int, int]) -> Any:
    """Return the clips after the operations drawn for each; for use in a pipeline with conditionals.

    Args:
        video: uint8 clips, layout FHWC, of height and width `size`.
        places, arguments: int32 and float32 `[number]` a clip, on the CPU, see `RandAugment.draw`.
        number: operations a clip.
        size: height and width.
    """
    from nvidia.dali.auto_aug.core import select

    operations: Any = [_on_pixels(name, size) for name in OPERATIONS]
    for slot in range(number):
        video = select(operations, places[slot], video, arguments[slot])
    return video


def _on_pixels(name: str, size: tuple[int, int]) -> Callable[[Any, Any], Any]:
    """Return the function of clips and arguments that does the operation `name`."""
    height, width = size
    sources = {  # what a pixel's source gains per unit of the argument: [x by x, y, 1], [y by x, y, 1]
        "shear_x": (0, 1, 0, 0, 0, 0),
        "shear_y": (0, 0, 0, 1, 0, 0),
        "translate_x": (0, 0, width, 0, 0, 0),
        "translate_y": (0, 0, 0, 0, 0, height),
    }
    if name in sources:
        return partial(_warped, gain=np.array(sources[name], np.float32))
    if name == "sharpness":
        return partial(_sharpened, size=size)
    return {
        "identity": _unchanged,
        "auto_contrast": _stretched,
        "equalize": _equalized,
        "invert": _inverted,
        "rotate": _rotated,
        "posterize": _posterized,
        "solarize": _solarized,
        "solarize_add": _lightened,
        "color": _colored,
        "contrast": _contrasted,
        "brightness": _brightened,
        "mirror": _mirrored,
    }[name]


def _fn() -> Any:
    import nvidia.dali.fn

    return nvidia.dali.fn  # its stubs do not know several outputs


def _whole(values: Any) -> Any:
    """Return float values as Pillow stores them in a picture: within 0 to 255, rounded down."""
    from nvidia.dali import math
    from nvidia.dali.types import DALIDataType

    return _fn().cast(math.floor(math.clamp(values, 0.0, 255.0)), dtype=DALIDataType.UINT8)


def _as_float(video: Any) -> Any:
    from nvidia.dali.types import DALIDataType

    return _fn().cast(video, dtype=DALIDataType.FLOAT)


def _grey(video: Any) -> Any:
    """Return the luma of pixels, as Pillow rounds it: float `[..., 1]`, whole numbers."""
    from nvidia.dali import math
    from nvidia.dali.types import Constant

    luma = _fn().reductions.sum(_as_float(video) * Constant(_GREY, device=video.device), axis_names="C", keep_dims=True)
    return math.floor(luma / 65536.0 + 0.5)


def _unchanged(video: Any, argument: Any) -> Any:
    return video


def _mirrored(video: Any, argument: Any) -> Any:
    return _fn().flip(video, horizontal=1)


def _stretched(video: Any, argument: Any) -> Any:
    from nvidia.dali import math

    low = _as_float(_fn().reductions.min(video, axis_names="HW", keep_dims=True))
    high = _as_float(_fn().reductions.max(video, axis_names="HW", keep_dims=True))
    flat = high == low  # a channel of one value stays
    stretched = (video - low) * 255.0 / math.max(high - low, 1.0) + _TIE
    return _whole(stretched * (flat == 0) + video * flat)


def _equalized(video: Any, argument: Any) -> Any:
    """Equalize the negative, and take its negative: DALI gives a grey the share of pixels up to it, less the darkest
    ones, and Pillow the share of those below it, of all but the brightest."""
    return _inverted(_fn().equalize(_inverted(video, argument)), argument)


def _inverted(video: Any, argument: Any) -> Any:
    return _whole(255.0 - video)


def _rotated(video: Any, argument: Any) -> Any:
    return _fn().rotate(video, angle=argument, fill_value=FILL, keep_size=True)


def _warped(video: Any, argument: Any, *, gain: np.ndarray) -> Any:
    from nvidia.dali.types import Constant

    still = np.array([1, 0, 0, 0, 1, 0], np.float32)
    matrix = _fn().reshape(Constant(gain) * argument + Constant(still), shape=[2, 3])
    return _fn().warp_affine(video, matrix=matrix, fill_value=FILL)


def _posterized(video: Any, argument: Any) -> Any:
    from nvidia.dali import math

    step = math.pow(2.0, 8.0 - argument)
    return _whole(math.floor(video / step) * step)


def _solarized(video: Any, argument: Any) -> Any:
    kept = _as_float(video) < argument
    return _whole(video * kept + (255.0 - video) * (kept == 0))


def _lightened(video: Any, argument: Any) -> Any:
    return _whole(video + argument * (video < 128))


def _brightened(video: Any, argument: Any) -> Any:
    return _whole(video * argument)


def _contrasted(video: Any, argument: Any) -> Any:
    from nvidia.dali import math

    mean = math.floor(_fn().reductions.mean(_grey(video), axis_names="HW", keep_dims=True) + 0.5)
    return _whole(mean + argument * (video - mean))


def _colored(video: Any, argument: Any) -> Any:
    grey = _grey(video)
    return _whole(grey + argument * (video - grey))


def _sharpened(video: Any, argument: Any, *, size: tuple[int, int]) -> Any:
    """Blend with the smoothed picture; the outermost pixels, to which the filter does not reach, stay."""
    from nvidia.dali.types import Constant

    inside = np.zeros((*size, 1), np.float32)
    inside[1:-1, 1:-1] = 1
    smooth = _fn().filter(video, Constant(_SMOOTH, device=video.device))
    change = Constant(inside, device=video.device) * (_as_float(video) - smooth)
    return _whole(video - change + argument * change)
