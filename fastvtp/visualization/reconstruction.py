"""What a masked video-text model saw and what it filled in: stills, animations, and tubelets painted into a clip.

Shape legend: T, H, W, C = clip; t, h, w = tubelet grid; pt, ph, pw = tubelet; K = tokens, P = pt*ph*pw*C their values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont, features

MASK_TOKEN = "[MASK]"
FONT_SIZE = 15
LINE_HEIGHT = 24
MASK_WIDTH = 36  # the same for every hidden word, so that its length is not given away
GAP = 5
MARGIN = 24
INK, LABEL, PAPER = "#1f2328", "#6e7781", "#ffffff"
# Text colour and pill colour of a word; right and wrong differ in lightness too, and the wrong are underlined.
WORD_COLORS = {
    "plain": (INK, None),
    "masked": ("#ffffff", "#808080"),
    "right": ("#116329", "#dafbe1"),
    "wrong": ("#a40e26", "#ffdcd7"),
}


@dataclass(frozen=True)
class ReconstructionExample:
    """One clip with its caption, before masking, after masking and after prediction.

    frames, visible, reconstruction: uint8 [T, H, W, 3]; `hide_tubelets` and `tokens_to_video` make the last two.
    caption, masked_caption, predicted_caption: the same number of tokens separated by blanks. masked_caption has
        [MASK] (or a substitute) at the hidden tokens, predicted_caption the model's choice there; WordPiece
        continuations keep their "##" and are drawn attached.

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


def reconstruction_grid(
    examples: Sequence[ReconstructionExample], *, num_frames: int = 4, scale: float = 1.5, columns: int = 2
) -> Image.Image:
    """RGB picture with a panel per clip: `num_frames` evenly spaced frames of input, visible part and reconstruction,
    then the three captions. Frames are enlarged `scale` times; `columns` panels stand side by side.
    """

    def panel(example: ReconstructionExample) -> Image.Image:
        if not 1 <= num_frames <= len(example.frames):
            raise ValueError(f"num_frames must be 1 to {len(example.frames)}, the frames of the clip, got {num_frames}")
        picked = np.linspace(0, len(example.frames) - 1, num_frames).round().astype(int)
        rows = []
        for name, video in _videos(example):
            tiles = [_tile(video[frame], scale) for frame in picked]
            rows.append(_stack([_label(name, tiles[0].height), *tiles]))
        return _stack([*rows, _captions(example, rows[0].width)], vertical=True)

    return _page([panel(example) for example in examples], columns)


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
    lengths = sorted({len(example.frames) for example in examples})
    if len(lengths) != 1:
        raise ValueError(f"an animation needs clips of one and the same number of frames, got {lengths}")

    def panel_at(example: ReconstructionExample) -> Callable[[int], Image.Image]:
        width = 3 * _tile(example.frames[0], scale).width + 2 * GAP
        captions = _captions(example, width)

        def panel(frame: int) -> Image.Image:
            tiles = [(name, _tile(video[frame], scale)) for name, video in _videos(example)]
            titled = [_stack([_label(name, LINE_HEIGHT, tile.width), tile], vertical=True) for name, tile in tiles]
            return _stack([_stack(titled), captions], vertical=True)

        return panel

    panels = [panel_at(example) for example in examples]
    pages = [_page([panel(frame) for panel in panels], columns) for frame in range(lengths[0])]
    Path(path).write_bytes(encode_animation(pages, Path(path).suffix, fps=fps, quality=85))


def encode_animation(images: Sequence[Image.Image], suffix: str, *, fps: float, quality: int) -> bytes:
    """Endless animation as the bytes of a ".gif" or ".webp" (`quality` 0 to 100 is WebP's)."""
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


def tokens_to_video(
    tokens: ArrayLike,
    index: ArrayLike,
    video: np.ndarray,
    *,
    tubelet: tuple[int, int, int] = (2, 16, 16),
    normalize: Literal["patch_channel", "patch"] | None = None,
    eps: float = 1e-6,
) -> np.ndarray:
    """A copy of the true clip `video` with the listed tubelets replaced by predictions.

    tokens: float [K, P], numpy or a CPU tensor numpy can read; value order inside a token (pt, ph, pw, C).
    index: int [K], token index (t*h + y)*w + x on the tubelet grid. video: uint8, or float in [0, 1], [T, H, W, C].
    normalize: what the model was trained to predict. None: pixels in [0, 1]. "patch_channel" or "patch": values
        normalised by a tubelet's own mean and unbiased deviation (per channel, or over all), `eps` beside the
        deviation. A model cannot know these two numbers, so as in VideoMAE's pictures they are taken from the *true*
        tubelets: colour and contrast of such a picture are given, its structure is predicted.

    Returns the dtype of `video`; uint8 is rounded and clipped. Raises ValueError for shapes that do not fit.
    """
    index = np.asarray(index, dtype=np.int64)
    sizes = (*tubelet, video.shape[-1])
    if video.ndim != 4 or any(size % step for size, step in zip(video.shape[:3], tubelet, strict=True)):
        raise ValueError(f"video must be [T, H, W, C] in whole tubelets {tubelet}, got {video.shape}")
    grid = tuple(size // step for size, step in zip(video.shape[:3], tubelet, strict=True))
    values = np.asarray(tokens, dtype=np.float64)
    if index.ndim != 1 or values.shape != (len(index), np.prod(sizes)):
        raise ValueError(f"tokens must be [K, {np.prod(sizes)}] and index [K], got {values.shape} and {index.shape}")
    if len(index) and not 0 <= index.min() <= index.max() < np.prod(grid):
        raise ValueError(f"index must lie in 0 to {np.prod(grid) - 1}, got {index.min()} to {index.max()}")

    painted = video.copy()
    split = (grid[0], tubelet[0], grid[1], tubelet[1], grid[2], tubelet[2], -1)
    cells = painted.reshape(split).transpose(0, 2, 4, 1, 3, 5, 6)  # a view: [t, h, w, pt, ph, pw, C]
    cell = np.unravel_index(index, grid)
    values = values.reshape(-1, *sizes)
    peak = 255.0 if video.dtype == np.uint8 else 1.0
    if normalize is not None:
        truth = cells[cell] / peak
        axes = {"patch_channel": (1, 2, 3), "patch": (1, 2, 3, 4)}[normalize]
        values = values * (truth.std(axes, ddof=1, keepdims=True) + eps) + truth.mean(axes, keepdims=True)
    values = values * peak
    cells[cell] = values.round().clip(0, 255) if video.dtype == np.uint8 else values
    return painted


def hide_tubelets(
    video: np.ndarray, masked: ArrayLike, *, tubelet: tuple[int, int, int] = (2, 16, 16), grey: float = 0.5
) -> np.ndarray:
    """A copy of `video` [T, H, W, C] with the tubelets of `masked`, int [Km], painted `grey` (0 black to 1 white)."""
    values = int(np.prod(tubelet)) * video.shape[-1]
    return tokens_to_video(np.full((len(np.asarray(masked)), values), grey), masked, video, tubelet=tubelet)


def _videos(example: ReconstructionExample) -> list[tuple[str, np.ndarray]]:
    return [("input", example.frames), ("visible", example.visible), ("reconstruction", example.reconstruction)]


@cache
def _font(bold: bool) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), FONT_SIZE)


def _tile(frame: np.ndarray, scale: float) -> Image.Image:
    image = Image.fromarray(frame)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _stack(images: Sequence[Image.Image], *, vertical: bool = False, gap: int = GAP) -> Image.Image:
    """Images beside or below each other, aligned left and top."""
    widths, heights = [image.width for image in images], [image.height for image in images]
    gaps = gap * (len(images) - 1)
    size = (max(widths), sum(heights) + gaps) if vertical else (sum(widths) + gaps, max(heights))
    canvas = Image.new("RGB", size, PAPER)
    offset = 0
    for image in images:
        canvas.paste(image, (0, offset) if vertical else (offset, 0))
        offset += (image.height if vertical else image.width) + gap
    return canvas


def _page(panels: Sequence[Image.Image], columns: int) -> Image.Image:
    if not panels or columns < 1:
        raise ValueError(f"needs at least one example and one column, got {len(panels)} and {columns}")
    rows = [_stack(panels[start : start + columns], gap=2 * MARGIN) for start in range(0, len(panels), columns)]
    content = _stack(rows, vertical=True, gap=2 * MARGIN)
    page = Image.new("RGB", (content.width + 2 * MARGIN, content.height + 2 * MARGIN), PAPER)
    page.paste(content, (MARGIN, MARGIN))
    return page


def _label(text: str, height: int, width: int | None = None) -> Image.Image:
    width = round(_font(False).getlength("reconstruction")) + 2 * GAP if width is None else width
    image = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(image).text((0, height / 2), text, LABEL, _font(False), anchor="lm")
    return image


def _captions(example: ReconstructionExample, width: int) -> Image.Image:
    """The three captions below each other, each behind its label."""
    truth, masked, predicted = (
        text.split() for text in (example.caption, example.masked_caption, example.predicted_caption)
    )
    hidden = [seen != true or seen == MASK_TOKEN for seen, true in zip(masked, truth, strict=True)]
    verdicts = ["right" if guess == true else "wrong" for guess, true in zip(predicted, truth, strict=True)]
    score = f"{sum(h and v == 'right' for h, v in zip(hidden, verdicts, strict=True))}/{sum(hidden)}"
    lines = [
        ("caption", truth, ["plain"] * len(truth)),
        ("masked", masked, ["masked" if hide else "plain" for hide in hidden]),
        (f"predicted {score}", predicted, [v if h else "plain" for h, v in zip(hidden, verdicts, strict=True)]),
    ]
    labels = [_label(name, LINE_HEIGHT) for name, _, _ in lines]
    blocks = [_words(tokens, styles, width - labels[0].width - GAP) for _, tokens, styles in lines]
    return _stack([_stack(pair) for pair in zip(labels, blocks, strict=True)], vertical=True)


def _words(tokens: Sequence[str], styles: Sequence[str], width: int) -> Image.Image:
    """Tokens in their styles, wrapped at `width`."""
    space = _font(False).getlength(" ")
    texts = ["" if token == MASK_TOKEN else token.removeprefix("##") for token in tokens]
    fonts = [_font(style in ("right", "wrong")) for style in styles]
    advances = [font.getlength(text) if text else MASK_WIDTH for font, text in zip(fonts, texts, strict=True)]
    attached = [token.startswith("##") or token in ".,;:!?" for token in tokens]
    positions, x, line = [], 0.0, 0
    for token in range(len(tokens)):
        if not attached[token] and x > 0:
            word_end = next((end for end in range(token + 1, len(tokens)) if not attached[end]), len(tokens))
            x += space
            if x + sum(advances[token:word_end]) > width:
                x, line = 0.0, line + 1
        positions.append((x, (line + 0.5) * LINE_HEIGHT))
        x += advances[token]
    image = Image.new("RGB", (width, (line + 1) * LINE_HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    for (x, y), text, style, font, advance in zip(positions, texts, styles, fonts, advances, strict=True):
        ink, pill = WORD_COLORS[style]
        if pill is not None:
            draw.rounded_rectangle((x - 1, y - 9, x + advance + 1, y + 8), radius=4, fill=pill)
        draw.text((x, y), text, ink, font, anchor="lm")
        if style == "wrong":
            draw.line((x, y + 8, x + advance, y + 8), fill=ink)
    return image
