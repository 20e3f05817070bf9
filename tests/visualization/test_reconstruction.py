"""Tubelets painted into a clip, and pictures checked where something is to be seen: tiles, colours, frames."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from fastvtp.visualization import reconstruction
from fastvtp.visualization.reconstruction import (
    ReconstructionExample,
    hide_tubelets,
    reconstruction_grid,
    save_reconstruction_animation,
    save_reconstruction_grid,
    tokens_to_video,
)
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


def example(frames: int = 4, predicted: str = "a red star turns left", **changes: Any) -> ReconstructionExample:
    """Input all red, visible all green, reconstruction all blue, so that a picture's tiles tell their source."""
    fields: dict[str, Any] = {
        "caption": "a red star turns right",
        "masked_caption": "a red [MASK] turns [MASK]",
        "predicted_caption": predicted,
    }
    for channel, name in enumerate(("frames", "visible", "reconstruction")):
        fields[name] = np.zeros((frames, 32, 32, 3), np.uint8)
        fields[name][..., channel] = 40 * np.arange(1, frames + 1)[:, None, None]
    return ReconstructionExample(**(fields | changes))


def has_color(image: Image.Image, color: tuple[int, int, int]) -> bool:
    return bool((np.asarray(image.convert("RGB")) == color).all(-1).any())


def test_grid_shows_the_picked_frames_of_all_three_videos():
    picture = reconstruction_grid([example(frames=4)], num_frames=2, scale=1)
    for channel in range(3):
        for frame, expected in enumerate([True, False, False, True]):
            color = [0, 0, 0]
            color[channel] = 40 * (frame + 1)
            assert has_color(picture, (color[0], color[1], color[2])) is expected


def test_predicted_words_are_coloured_right_or_wrong():
    right, wrong = (218, 251, 225), (255, 220, 215)
    both = reconstruction_grid([example()])
    assert has_color(both, right)
    assert has_color(both, wrong)
    all_right = reconstruction_grid([example(predicted="a red star turns right")])
    assert has_color(all_right, right)
    assert not has_color(all_right, wrong)
    nothing_hidden = reconstruction_grid([example(predicted="a blue star sits here", masked_caption=example().caption)])
    assert not has_color(nothing_hidden, right)
    assert not has_color(nothing_hidden, wrong)  # nobody asked for these words


def test_long_captions_wrap_and_word_pieces_stay_together():
    words = " ".join(["word"] * 60)
    captions: dict[str, Any] = {"caption": words, "masked_caption": words, "predicted_caption": words}
    short, long = reconstruction_grid([example()]), reconstruction_grid([example(**captions)])
    assert long.height > short.height + 3 * 2 * reconstruction.LINE_HEIGHT
    assert long.width == short.width
    apart = reconstruction._words(["left", "ward", "."], ["plain"] * 3, 200)
    attached = reconstruction._words(["left", "##ward", "."], ["plain"] * 3, 200)
    ink_width = [np.flatnonzero(np.asarray(image).min(axis=(0, 2)) < 128)[-1] for image in (apart, attached)]
    assert ink_width[0] > ink_width[1]


def test_panels_stand_in_columns(tmp_path):
    single, pair, triple = (reconstruction_grid([example()] * count, columns=2) for count in (1, 2, 3))
    assert pair.width > 1.7 * single.width
    assert pair.height == single.height
    assert triple.width == pair.width
    assert triple.height > 1.7 * single.height
    save_reconstruction_grid(tmp_path / "grid.png", [example()] * 3)
    with Image.open(tmp_path / "grid.png") as saved:
        assert saved.format == "PNG"
        assert np.array_equal(np.asarray(saved), np.asarray(triple))


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animation_plays_every_frame_in_an_endless_loop(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    save_reconstruction_animation(path, [example(frames=5), example(frames=5)], fps=10, scale=2)
    with Image.open(path) as animation:
        assert animation.n_frames == 5  # pyright: ignore[reportAttributeAccessIssue]
        assert animation.info["loop"] == 0
        for frame in range(5):
            animation.seek(frame)
            animation.load()  # WebP knows a frame's duration only then
            assert animation.info["duration"] == 100
            pixels = np.asarray(animation.convert("RGB")).astype(int)
            # The left tile of the first panel is the input, red at a strength that names the frame.
            tile = pixels[60:90, 40:70]
            assert np.abs(tile[..., 0] - 40 * (frame + 1)).max() < 12
            assert tile[..., 1:].max() < 12


def test_bad_requests_get_one_clear_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"grid\.jpg: a reconstruction grid is a \.png"):
        save_reconstruction_grid(tmp_path / "grid.jpg", [example()])
    with pytest.raises(ValueError, match=r"an animation is a \.gif or \.webp, got '\.mp4'"):
        save_reconstruction_animation(tmp_path / "clip.mp4", [example()])
    with pytest.raises(ValueError, match=r"same number of frames, got \[2, 4\]"):
        save_reconstruction_animation(tmp_path / "clip.gif", [example(2), example(4)])
    with pytest.raises(ValueError, match="num_frames must be 1 to 4"):
        reconstruction_grid([example()], num_frames=5)
    with pytest.raises(ValueError, match="at least one example"):
        reconstruction_grid([])
    with pytest.raises(ValueError, match="visible must be uint8"):
        example(visible=np.zeros((4, 32, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="masked_caption has 2 tokens, caption 5"):
        example(masked_caption="too short")
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(RuntimeError, match="built without WebP"):
        save_reconstruction_animation(tmp_path / "clip.webp", [example()])
    assert not list(tmp_path.iterdir())
