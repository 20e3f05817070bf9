"""What recipes show of real footage: windows, frames and operations, against what the releases do."""

import itertools

import numpy as np
import pytest

from fastvtp.data.rand_augment import OPERATIONS
from fastvtp.systems.recipes import get_recipe, recipes

WIDE, TALL, FOUR_TO_THREE = (336, 597), (640, 272), (240, 320)
MULTI_SCALE = ("simvtp_base", "videomae_pretrain_base", "videomae_pretrain_ssv2", "videomae_pretrain_ucf101")
RELEASED_POLICY = ("classification_finetune", "classification_finetune_ssv2", "retrieval_finetune")


def windows(name, preset, height, width, draws=200):
    """y0, x0, y1, x1 in pixels [draws, 4] of training windows, and of the window of evaluation [4]."""
    reading = get_recipe(name, preset).data.reading
    crop = reading.window(224, 224)
    drawn = [crop.window(height, width, np.random.default_rng(seed)) for seed in range(draws)]
    scale = np.array([height, width, height, width])
    corners = np.array(
        [(window.y0, window.x0, window.y1, window.x1) for window in [*drawn, crop.window(height, width, None)]]
    )
    return corners[:-1] * scale, corners[-1] * scale


@pytest.mark.parametrize("name", sorted(recipes()))
@pytest.mark.parametrize("size", [WIDE, TALL], ids=str)
def test_no_recipe_crops_wide_or_tall_footage_to_the_centre(name, size):
    drawn, centre = windows(name, "fastvtp", *size, draws=40)
    assert np.abs(drawn - centre).max(1).min() > 1e-6
    assert len(np.unique(drawn.round(6), axis=0)) == 40


@pytest.mark.parametrize("name", MULTI_SCALE)
@pytest.mark.parametrize("size", [WIDE, TALL, FOUR_TO_THREE], ids=str)
def test_windows_of_masked_pretraining_span_the_releases_four_scales(name, size):
    drawn, _ = windows(name, "official", *size, draws=800)
    tall, wide = drawn[:, 2] - drawn[:, 0], drawn[:, 3] - drawn[:, 1]
    shares, sides = tall * wide / min(size) ** 2, (0.66, 0.75, 0.875, 1)
    assert 0.66**2 * 0.999 <= shares.min() < 0.45
    assert 0.97 < shares.max() <= 1.001
    neighbours = [a / b for a, b in itertools.pairwise(sides)]
    shapes = wide / tall
    assert min(neighbours) * 0.999 <= shapes.min()
    assert shapes.max() <= 1.001 / min(neighbours)


@pytest.mark.parametrize("name", ["alpro_prompter", "alpro_pretrain"])
def test_windows_of_squashed_pretraining_are_224_of_256_pixels_anywhere(name):
    drawn, _ = windows(name, "official", *WIDE)
    sides = (drawn[:, 2:] - drawn[:, :2]) / WIDE
    np.testing.assert_allclose(sides, 224 / 256)
    assert (drawn[:, :2].min(0) < 0.01 * np.array(WIDE)).all()
    assert (drawn[:, 2:].max(0) > 0.99 * np.array(WIDE)).all()
    squares, _ = windows(name, "fastvtp", *WIDE)
    np.testing.assert_allclose(squares[:, 2:] - squares[:, :2], min(WIDE) * 224 / 256)


@pytest.mark.parametrize("name", ["alpro_msrvtt_retrieval", "alpro_msrvtt_qa"])
def test_fine_tuning_on_squashed_frames_shows_the_whole_of_them(name):
    drawn, whole = windows(name, "official", *WIDE, draws=20)
    np.testing.assert_allclose(drawn, np.broadcast_to(whole, drawn.shape))
    np.testing.assert_allclose(whole, (0, 0, *WIDE))


def test_captioning_crops_288_of_346_pixels():
    drawn, _ = windows("videoprism_captioning", "fastvtp", *WIDE)
    np.testing.assert_allclose(drawn[:, 2:] - drawn[:, :2], min(WIDE) * 288 / 346, rtol=5e-3)


@pytest.mark.parametrize("name", RELEASED_POLICY)
def test_two_of_four_operations_act_in_the_recipes_that_follow_videomae(name):
    augmentation, rng = get_recipe(name, "official").data.reading.augmentation, np.random.default_rng(5)
    acting = [np.count_nonzero(augmentation.draw(1.0, rng)[0] != OPERATIONS.index("identity")) for _ in range(1000)]
    assert np.mean(acting) == pytest.approx(2.0, abs=0.12)
    assert np.bincount(acting, minlength=5) == pytest.approx(1000 / 16 * np.array([1, 4, 6, 4, 1]), abs=75)


@pytest.mark.parametrize(
    ("name", "preset", "released"),
    [
        ("alpro_msrvtt_qa", "official", lambda n, t: np.arange(0, n, n / t, dtype=int)),
        ("alpro_didemo_retrieval", "official", lambda n, t: np.arange(0, n, n / t, dtype=int)),
        ("videoprism_stage1", "official", lambda n, t: np.linspace(0, n, t, endpoint=False, dtype=np.int32)),
        ("classification_finetune_ssv2", "fastvtp", lambda n, t: [int(n / t * place) for place in range(t)]),
        ("alpro_msrvtt_qa", "fastvtp", lambda n, t: [int(n / t * (place + 0.5)) for place in range(t)]),
    ],
)
def test_test_frames_are_those_of_the_releases(name, preset, released):
    config = get_recipe(name, preset)
    count = config.model.num_frames
    for total in (17, 59, 301):
        segments = config.data.test_views[0]
        frames = config.data.test_reading.frames(count).indices(total, None, 0, segments)
        assert frames.tolist() == list(released(total, count))
