"""Training windows as random variables: areas and places uniform, shapes log-uniform, whatever the picture."""

import math
from itertools import product

import numpy as np
import pytest

from fastvtp.data.sampling import CropSampling, CropWindow

PICTURES = [(240, 320), (336, 597), (274, 640), (597, 336), (211, 211), (137, 413)]  # height, width
SCALES = [(0.08, 1.0), (0.77, 1.0), (1.0, 1.0), (0.5, 0.5)]
ASPECTS = [1.0, 1.6, 0.7]
RATIO = (3 / 4, 4 / 3)
DRAWS = 600


def drawn(crop, height, width, draws=DRAWS):
    """Area as a share of the picture, shape in pixels, and place as a share of the room left, of many windows."""
    rng = np.random.default_rng(7)
    windows = [crop.window(height, width, rng) for _ in range(draws)]
    y0, x0, y1, x1 = np.array([(one.y0, one.x0, one.y1, one.x1) for one in windows]).T
    assert min(y0.min(), x0.min()) >= 0
    assert max(y1.max(), x1.max()) <= 1
    tall, wide = y1 - y0, x1 - x0
    return tall * wide, wide * width / (tall * height), tall, wide, y0, x0


def largest_share(height, width, low, high):
    """Share of the picture that the largest window covers, by trying shapes."""
    return max(
        min(width / shape, height) * min(width, height * shape) / (height * width)
        for shape in np.exp(np.linspace(math.log(low), math.log(high), 20_001))
    )


def assert_uniform(values, low, high):
    """Kolmogorov and Smirnov's test, which a uniform sample fails once in ten thousand times."""
    steps = np.arange(len(values) + 1) / len(values)
    expected = (np.sort(values) - low) / (high - low)
    distance = max(np.abs(steps[1:] - expected).max(), np.abs(steps[:-1] - expected).max())
    assert distance < 2.23 / math.sqrt(len(values))


@pytest.mark.parametrize(("height", "width"), PICTURES)
def test_areas_and_places_are_uniform_and_shapes_are_those_allowed(height, width):
    for scale, aspect in product(SCALES, ASPECTS):
        low, high = (edge * aspect for edge in RATIO)
        area, shape, tall, wide, y0, x0 = drawn(CropSampling(aspect, scale, RATIO), height, width)
        assert low * (1 - 1e-9) <= shape.min()
        assert shape.max() <= high * (1 + 1e-9)
        largest = largest_share(height, width, low, high)
        if scale[0] < scale[1]:
            assert_uniform(area / largest, *scale)
        else:
            np.testing.assert_allclose(area / largest, scale[0], rtol=1e-4)
        for place, size in ((y0, tall), (x0, wide)):
            free = size < 1 - 1e-9
            if free.sum() > 50:
                assert_uniform(place[free] / (1 - size[free]), 0, 1)


@pytest.mark.parametrize(("height", "width"), PICTURES)
def test_shapes_are_log_uniform_among_those_that_fit(height, width):
    """As if shapes had been drawn anew, for the same area, until one fitted."""
    scale, rng, expected = (0.6, 0.95), np.random.default_rng(3), []
    largest = largest_share(height, width, *RATIO) * height * width
    while len(expected) < 4 * DRAWS:
        area, fits = largest * rng.uniform(*scale), False
        while not fits:
            shape = math.exp(rng.uniform(*np.log(RATIO)))
            fits = math.sqrt(area * shape) <= width and math.sqrt(area / shape) <= height
        expected.append(shape)
    _, shapes, *_ = drawn(CropSampling(1.0, scale, RATIO), height, width)
    grid = np.sort([*shapes, *expected])
    shares = [np.searchsorted(np.sort(some), grid, "right") / len(some) for some in (shapes, expected)]
    assert np.abs(shares[0] - shares[1]).max() < 2.23 * math.sqrt(1 / len(shapes) + 1 / len(expected))


@pytest.mark.parametrize(("height", "width"), [(336, 597), (274, 640), (597, 336), (137, 413)])
@pytest.mark.parametrize("low", [0.5, 0.77, 1.0])
def test_no_window_is_the_one_of_evaluation(height, width, low):
    crop = CropSampling(scale=(low, 1.0), flip=False)
    centre, windows = crop.window(height, width, None), set()
    for seed in range(200):
        windows.add(crop.window(height, width, np.random.default_rng(seed)))
    assert centre not in windows
    assert len(windows) == 200


def test_the_whole_picture_where_it_has_an_allowed_shape():
    for height, width in ((240, 320), (320, 240), (211, 211)):
        crop = CropSampling(scale=(1.0, 1.0), flip=False)
        for seed in range(20):
            window = crop.window(height, width, np.random.default_rng(seed))
            assert (window.y0, window.x0) == pytest.approx((0, 0), abs=1e-9)
            assert (window.y1, window.x1) == pytest.approx((1, 1), abs=1e-9)


def squashed(aspect_free_scale, ratio, flips, rng):
    """Windows of squashed frames, as they have always been: ten tries, then the whole."""
    flip = flips and bool(rng.random() < 0.5)
    for _ in range(10):
        area = rng.uniform(*aspect_free_scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        tall, wide = math.sqrt(area / shape), math.sqrt(area * shape)
        if tall <= 1 and wide <= 1:
            y0, x0 = (float(share) for share in rng.random(2) * (1 - tall, 1 - wide))
            return CropWindow(y0, x0, y0 + tall, x0 + wide, flip)
    return CropWindow(0.0, 0.0, 1.0, 1.0, flip)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.77, 1.0), (1.0, 1.0), (0.765625, 0.765625)])
@pytest.mark.parametrize("ratio", [RATIO, (1.0, 1.0)])
def test_windows_of_squashed_frames_stay_as_they_were(scale, ratio):
    for seed, (height, width) in product(range(40), PICTURES[:3]):
        rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
        crop = CropSampling(1.3, scale, ratio, framing="squash")
        assert crop.window(height, width, rng) == squashed(scale, ratio, True, other)
        assert rng.random() == other.random()  # and whatever is drawn after them
