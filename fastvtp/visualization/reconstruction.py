"""Pictures of what a masked video-text model saw and what it filled in: stills and animations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, features

from fastvtp.visualization.drawing import GAP, LINE_HEIGHT, draw_page, draw_words, label, stack


def reconstruction_grid(
    examples: Sequence[ReconstructionExample], *, num_frames: int = 4, scale: float = 1.5, columns: int = 2
) -> Image.Image:
    """Draw an RGB picture with a panel per clip: `num_frames` evenly spaced frames of input, visible part and
    reconstruction, then the three captions. Frames are enlarged `scale` times; `columns` panels stand side by side.
    """

    _check_page(examples, columns)

    def panel(example: ReconstructionExample) -> Image.Image:
        if not 1 <= num_frames <= len(example.frames):
            raise ValueError(f"num_frames must be 1 to {len(example.frames)}, the frames of the clip, got {num_frames}")
        picked = np.linspace(0, len(example.frames) - 1, num_frames).round().astype(int)
        rows = []
        for name, video in _videos(example):
            tiles = [_tile(video[frame], scale) for frame in picked]
            rows.append(stack([label(name, tiles[0].height), *tiles]))
        return stack([*rows, _captions(example, rows[0].width)], vertical=True)

    return draw_page([panel(example) for example in examples], columns)


def save_reconstruction_grid(
    path: Path | str,
    examples: Sequence[ReconstructionExample],
    *,
    num_frames: int = 4,
    scale: float = 1.5,
    columns: int = 2,
) -> None:
    """Write `reconstruction_grid` to `path`, a .png."""
    if Path(path).suffix != ".png":
        raise ValueError(f"{path}: a reconstruction grid is a .png")
    reconstruction_grid(examples, num_frames=num_frames, scale=scale, columns=columns).save(path)


def save_reconstruction_animation(
    path: Path | str,
    examples: Sequence[ReconstructionExample],
    *,
    fps: float = 8.0,
    scale: float = 1.5,
    columns: int = 2,
) -> None:
    """Write all frames as an endless animation, a .gif or .webp: input, visible part and reconstruction side by side.

    Raises ValueError for another suffix or clips of different lengths, RuntimeError for .webp without Pillow's WebP.
    """
    _check_page(examples, columns)
    lengths = sorted({len(example.frames) for example in examples})
    if len(lengths) != 1:
        raise ValueError(f"an animation needs clips of one and the same number of frames, got {lengths}")

    def panel_at(example: ReconstructionExample) -> Callable[[int], Image.Image]:
        width = 3 * _tile(example.frames[0], scale).width + 2 * GAP
        captions = _captions(example, width)

        def panel(frame: int) -> Image.Image:
            tiles = [(name, _tile(video[frame], scale)) for name, video in _videos(example)]
            titled = [stack([label(name, LINE_HEIGHT, tile.width), tile], vertical=True) for name, tile in tiles]
            return stack([stack(titled), captions], vertical=True)

        return panel

    panels = [panel_at(example) for example in examples]
    pages = [draw_page([panel(frame) for panel in panels], columns) for frame in range(lengths[0])]
    Path(path).write_bytes(encode_animation(pages, Path(path).suffix, fps=fps, quality=85))


def encode_animation(images: Sequence[Image.Image], suffix: str, *, fps: float, quality: int) -> bytes:
    """Return an endless animation as the bytes of a ".gif" or ".webp" (`quality` 0 to 100 is WebP's)."""
    formats = {".gif": "GIF", ".webp": "WEBP"}
    if suffix not in formats:
        raise ValueError(f"an animation is a .gif or .webp, got {suffix!r}")
    if suffix == ".webp" and not features.check("webp"):
        raise RuntimeError("this Pillow is built without WebP: install a Pillow wheel from PyPI, or write a .gif")
    buffer = BytesIO()
    images[0].save(
        buffer,
        formats[suffix],
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / fps),
        loop=0,
        quality=quality,
    )
    return buffer.getvalue()


def _videos(example: ReconstructionExample) -> list[tuple[str, np.ndarray]]:
    return [("input", example.frames), ("visible", example.visible), ("reconstruction", example.reconstruction)]


def _tile(frame: np.ndarray, scale: float) -> Image.Image:
    image = Image.fromarray(frame)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _check_page(examples: Sequence[ReconstructionExample], columns: int) -> None:
    if not examples or columns < 1:
        raise ValueError(f"a picture needs at least one example and one column, got {len(examples)} and {columns}")


def _captions(example: ReconstructionExample, width: int) -> Image.Image:
    """Return the three captions below each other, each behind its label."""
    truth, masked, predicted = (
        text.split() for text in (example.caption, example.masked_caption, example.predicted_caption)
    )
    hidden = [seen != true for seen, true in zip(masked, truth, strict=True)]
    verdicts = ["right" if guess == true else "wrong" for guess, true in zip(predicted, truth, strict=True)]
    score = f"{sum(h and v == 'right' for h, v in zip(hidden, verdicts, strict=True))}/{sum(hidden)}"
    lines = [
        ("caption", truth, ["plain"] * len(truth)),
        ("masked", masked, ["masked" if hide else "plain" for hide in hidden]),
        (f"predicted {score}", predicted, [v if h else "plain" for h, v in zip(hidden, verdicts, strict=True)]),
    ]
    labels = [label(name, LINE_HEIGHT) for name, _, _ in lines]
    blocks = [draw_words(tokens, styles, width - labels[0].width - GAP) for _, tokens, styles in lines]
    return stack([stack(pair) for pair in zip(labels, blocks, strict=True)], vertical=True)


@dataclass(frozen=True)
class ReconstructionExample:
    """One clip with its caption, before masking, after masking and after prediction.

    frames, visible, reconstruction: uint8 [T, H, W, 3]; of the last two, the first is grey where the model saw
        nothing, the second has the model's pixels there.
    caption, masked_caption, predicted_caption: the same number of tokens separated by blanks. masked_caption has
        [MASK] (or a substitute) at the hidden tokens and is the caption elsewhere, predicted_caption has the model's
        choice there; WordPiece continuations keep their "##" and are drawn attached.

    Raises ValueError naming the field whose shape, dtype or number of tokens does not fit.
    """

    frames: np.ndarray
    visible: np.ndarray
    reconstruction: np.ndarray
    caption: str
    masked_caption: str
    predicted_caption: str

    def __post_init__(self) -> None:
        for name in ("frames", "visible", "reconstruction"):
            video = getattr(self, name)
            if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3 or video.shape != self.frames.shape:
                raise ValueError(f"{name} must be uint8 [T, H, W, 3] as the others, got {video.dtype} {video.shape}")
        for name in ("masked_caption", "predicted_caption"):
            tokens, expected = len(getattr(self, name).split()), len(self.caption.split())
            if tokens != expected:
                raise ValueError(f"{name} has {tokens} tokens, caption {expected}: join all tokens by blanks")
