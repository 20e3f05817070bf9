"""Pictures of what a masked video-text model saw and what it filled in: stills and animations."""

from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from fastvtp.evaluation.reconstruction import ReconstructionExample

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


def reconstruction_grid(
    examples: Sequence[ReconstructionExample], *, num_frames: int = 4, scale: float = 1.5, columns: int = 2
) -> Image.Image:
    """RGB picture with a panel per clip: `num_frames` evenly spaced frames of input, visible part and reconstruction,
    then the three captions. Frames are enlarged `scale` times; `columns` panels stand side by side.
    """

    _check_page(examples, columns)

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
    _check_page(examples, columns)
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


def _check_page(examples: Sequence[ReconstructionExample], columns: int) -> None:
    if not examples or columns < 1:
        raise ValueError(f"a picture needs at least one example and one column, got {len(examples)} and {columns}")


def _page(panels: Sequence[Image.Image], columns: int) -> Image.Image:
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
    hidden = [seen != true for seen, true in zip(masked, truth, strict=True)]
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
    texts = [
        "" if (token, style) == (MASK_TOKEN, "masked") else token.removeprefix("##")
        for token, style in zip(tokens, styles, strict=True)
    ]
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
