"""Tubelets painted into a clip: the right values, at the right places, and nothing else touched."""

import numpy as np
import pytest
import torch

from fastvtp.systems.simvtp.pictures import hide_tubelets, tokens_to_video
from fastvtp_kernels import gather_tubelets

TUBELET = (2, 4, 6)


def random_clip(seed: int = 0, shape: tuple[int, int, int, int] = (4, 8, 18, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tubelets_of(video: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Values in [0, 1] of the listed tubelets, cut out one by one: [K, pt, ph, pw, C]."""
    _, rows, columns = (size // step for size, step in zip(video.shape[:3], TUBELET, strict=True))
    cut = []
    for token in index:
        t, y, x = token // (rows * columns), token // columns % rows, token % columns
        pt, ph, pw = TUBELET
        cut.append(video[t * pt : (t + 1) * pt, y * ph : (y + 1) * ph, x * pw : (x + 1) * pw])
    return np.stack(cut) / 255


@pytest.mark.parametrize(("normalize", "axes"), [(None, ()), ("patch_channel", (1, 2, 3)), ("patch", (1, 2, 3, 4))])
def test_true_tokens_painted_back_give_the_clip(normalize, axes):
    video, index = random_clip(), np.array([11, 0, 4, 7])
    tokens = tubelets_of(video, index)
    if normalize:
        deviation = np.sqrt(tokens.var(axes, ddof=1, keepdims=True))
        tokens = (tokens - tokens.mean(axes, keepdims=True)) / (deviation + 1e-6)
    tokens = tokens.reshape(len(index), -1).astype(np.float32)
    assert np.array_equal(tokens_to_video(tokens, index, video, tubelet=TUBELET, normalize=normalize), video)


def test_tokens_land_on_their_own_tubelets_only():
    video, other, index = random_clip(0), random_clip(1), np.array([2, 9])
    painted = tokens_to_video(tubelets_of(other, index).reshape(2, -1), index, video, tubelet=TUBELET)
    rest = np.setdiff1d(np.arange(12), index)
    assert np.array_equal(tubelets_of(painted, index), tubelets_of(other, index))
    assert np.array_equal(tubelets_of(painted, rest), tubelets_of(video, rest))
    assert not np.array_equal(painted, video)


def test_value_order_is_that_of_the_kernels():
    video, index = random_clip(), torch.tensor([[5, 1, 10]])
    tokens = gather_tubelets(
        torch.from_numpy(video)[None], index, tubelet=TUBELET, mean=(0, 0, 0), std=(1, 1, 1), dtype=torch.float32
    )[0]
    blank = np.zeros_like(video)
    painted = tokens_to_video(tokens, index[0], blank, tubelet=TUBELET)
    assert np.array_equal(tubelets_of(painted, index[0].numpy()), tubelets_of(video, index[0].numpy()))


def test_normalised_predictions_take_mean_and_contrast_from_the_true_tubelet():
    video = random_clip()
    flat = tokens_to_video(np.zeros((1, 144)), [3], video, tubelet=TUBELET, normalize="patch_channel")
    true, painted = tubelets_of(video, np.array([3]))[0], tubelets_of(flat, np.array([3]))[0]
    assert np.abs(painted - true.mean((0, 1, 2))).max() < 0.51 / 255
    assert np.unique(painted.reshape(-1, 3), axis=0).shape == (1, 3)


def test_uint8_clips_and_float_keeps():
    tokens = np.stack([np.full(144, 1.5), np.full(144, -0.5)])
    painted = tubelets_of(tokens_to_video(tokens, [0, 1], random_clip(), tubelet=TUBELET), np.array([0, 1]))
    assert painted[0].min() == 1
    assert painted[1].max() == 0
    video = random_clip().astype(np.float32) / 255
    assert tokens_to_video(tokens, [0, 1], video, tubelet=TUBELET)[0, 0, 0, 0] == 1.5


def test_hidden_tubelets_are_grey_and_the_rest_untouched():
    video = random_clip()
    visible = hide_tubelets(video, torch.tensor([1, 8]), tubelet=TUBELET)
    assert (tubelets_of(visible, np.array([1, 8])) * 255 == 128).all()
    rest = np.setdiff1d(np.arange(12), [1, 8])
    assert np.array_equal(tubelets_of(visible, rest), tubelets_of(video, rest))


@pytest.mark.parametrize(
    ("tokens", "index", "shape", "message"),
    [
        ((2, 143), [0, 1], (4, 8, 18, 3), r"tokens must be \[K, 144\]"),
        ((2, 144), [0], (4, 8, 18, 3), r"and index \[K\]"),
        ((1, 144), [12], (4, 8, 18, 3), "index must lie in 0 to 11, got 12 to 12"),
        ((1, 144), [-1], (4, 8, 18, 3), "got -1 to -1"),
        ((1, 144), [0], (4, 9, 18, 3), r"whole tubelets \(2, 4, 6\)"),
    ],
)
def test_bad_tokens_get_one_clear_line(tokens, index, shape, message):
    with pytest.raises(ValueError, match=message):
        tokens_to_video(np.zeros(tokens), index, random_clip(shape=shape), tubelet=TUBELET)
