"""Pictures checked where something is to be seen: tiles, colours, frames, words."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from fastvtp.visualization import drawing
from fastvtp.visualization.reconstruction import (
    ReconstructionExample,
    reconstruction_grid,
    save_reconstruction_animation,
    save_reconstruction_grid,
)


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


def test_a_mask_token_in_the_caption_itself_is_a_word_like_any_other():
    right, pill = (218, 251, 225), (128, 128, 128)
    text = "draw [MASK] here"
    picture = reconstruction_grid([example(caption=text, masked_caption=text, predicted_caption=text)])
    assert not has_color(picture, right)  # it was not hidden, so nothing was guessed
    assert not has_color(picture, pill)
    blank, literal = (drawing.draw_words(["[MASK]"], [style], 200) for style in ("masked", "plain"))
    assert (np.asarray(blank) >= 128).all()  # the pill without its word
    assert (np.asarray(literal) < 100).any()


def test_long_captions_wrap_and_word_pieces_stay_together():
    words = " ".join(["word"] * 60)
    captions: dict[str, Any] = {"caption": words, "masked_caption": words, "predicted_caption": words}
    short, long = reconstruction_grid([example()]), reconstruction_grid([example(**captions)])
    assert long.height > short.height + 3 * 2 * drawing.LINE_HEIGHT
    assert long.width == short.width
    apart = drawing.draw_words(["left", "ward", "."], ["plain"] * 3, 200)
    attached = drawing.draw_words(["left", "##ward", "."], ["plain"] * 3, 200)
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
    nothing = "a picture needs at least one example and one column, got 0 and 2"
    with pytest.raises(ValueError, match=nothing):
        reconstruction_grid([])
    with pytest.raises(ValueError, match=nothing):
        save_reconstruction_grid(tmp_path / "grid.png", [])
    with pytest.raises(ValueError, match=nothing):
        save_reconstruction_animation(tmp_path / "clip.gif", [])
    with pytest.raises(ValueError, match="got 1 and 0"):
        save_reconstruction_animation(tmp_path / "clip.gif", [example()], columns=0)
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(RuntimeError, match="built without WebP"):
        save_reconstruction_animation(tmp_path / "clip.webp", [example()])
    assert not list(tmp_path.iterdir())
