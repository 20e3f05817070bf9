"""Pixels of every operation against Pillow's, on frames of real footage."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from fastvtp.data.dali_operations import FILL, rand_augmented
from fastvtp.data.rand_augment import OPERATIONS
from tests.data.clips import decode_sequentially
from tests.data.test_real_footage import footage

HEIGHT, WIDTH = 87, 131
AFFINE = {
    "shear_x": lambda argument: (1, argument, 0, 0, 1, 0),
    "shear_y": lambda argument: (1, 0, 0, argument, 1, 0),
    "translate_x": lambda argument: (1, 0, argument * WIDTH, 0, 1, 0),
    "translate_y": lambda argument: (1, 0, 0, 0, 1, argument * HEIGHT),
}
ENHANCERS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}
EXACT = [
    *(("identity", 0), ("mirror", 0), ("invert", 0), ("solarize", 0), ("solarize", 77), ("solarize", 256)),
    *(("posterize", bits) for bits in (1, 2, 3, 4, 8)),
    *(("solarize_add", added) for added in (0, 77, 110)),
    *((name, factor) for name in ENHANCERS for factor in (0.1, 0.37, 1.0, 1.63, 1.9)),
]
WARPED = [
    *(("rotate", angle) for angle in (-7.5, 21.0, 30.0)),
    *((name, share) for name in AFFINE for share in (-0.21, 0.3)),
]
CASES = [*EXACT, *WARPED, ("auto_contrast", 0), ("equalize", 0)]


@pytest.fixture(scope="module")
def frames():
    clip = decode_sequentially(footage("bikes.mp4"))[[3, 60]]
    return np.stack([np.array(Image.fromarray(frame).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)) // 2 + 40
                     for frame in clip])  # fmt: skip


@pytest.fixture(scope="module")
def changed(frames):
    """The two frames after each of the cases, every case a clip of one batch."""
    import nvidia.dali.fn
    from nvidia.dali.pipeline import pipeline_def

    def sample(info):
        name, argument = CASES[info.idx_in_batch]
        return frames, np.array([OPERATIONS.index(name)], np.int32), np.array([argument], np.float32)

    @pipeline_def(enable_conditionals=True, batch_size=len(CASES), num_threads=1, device_id=None)
    def clips():
        inputs = nvidia.dali.fn.external_source(sample, num_outputs=3, batch=False, layout=["FHWC", "", ""])
        return rand_augmented(*inputs, 1, (HEIGHT, WIDTH))

    pipeline = clips()
    pipeline.build()
    (video,) = pipeline.run()
    return {case: np.array(video[place]).astype(int) for place, case in enumerate(CASES)}


def pillow(frame, name, argument):
    image, how = Image.fromarray(frame), {"resample": Image.Resampling.BILINEAR, "fillcolor": (FILL,) * 3}
    if name in ENHANCERS:
        return ENHANCERS[name](image).enhance(argument)
    if name in AFFINE:
        return image.transform(image.size, Image.Transform.AFFINE, AFFINE[name](argument), **how)
    return {
        "identity": lambda: image,
        "mirror": lambda: ImageOps.mirror(image),
        "invert": lambda: ImageOps.invert(image),
        "solarize": lambda: ImageOps.solarize(image, argument),
        "posterize": lambda: ImageOps.posterize(image, argument),
        "solarize_add": lambda: image.point([grey + argument * (grey < 128) for grey in range(256)] * 3),
        "rotate": lambda: image.rotate(argument, **how),
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }[name]()


def difference(frames, changed, case):
    return np.abs(changed[case] - np.stack([np.array(pillow(frame, *case)) for frame in frames]).astype(int))


def test_every_operation_is_tried():
    assert {name for name, _ in CASES} == set(OPERATIONS)


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_greys_and_colours_are_pillows(frames, changed, case):
    off = difference(frames, changed, case)
    assert off.max() <= 1
    assert (off > 0).mean() < 1e-3  # where float32 and float64 round to different sides


@pytest.mark.parametrize("case", WARPED, ids=str)
def test_moved_pictures_are_pillows_but_for_rounding_and_the_border(frames, changed, case):
    off = difference(frames, changed, case)
    assert (off > 1).mean() < 0.02
    assert off.mean() < 1


def test_contrast_is_stretched_as_by_pillow_channel_by_channel(frames, changed):
    off = difference(frames, changed, ("auto_contrast", 0))
    assert off.max() <= 1
    assert (off > 0).mean() < 0.02
    video = changed["auto_contrast", 0]
    assert (video.min((1, 2)) == 0).all()
    assert (video.max((1, 2)) == 255).all()


def test_equalized_greys_are_near_pillows(frames, changed):
    off = difference(frames, changed, ("equalize", 0))
    assert off.max() <= 255**2 / (HEIGHT * WIDTH) + 2  # Pillow counts the pixels of a step in whole ones
    assert off.mean() < 2.5
