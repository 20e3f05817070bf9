"""Parts of pictures: text, labels, stacks and pages."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

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


@cache
def picture_font(bold: bool) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, of matplotlib."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), FONT_SIZE)


def stack(images: Sequence[Image.Image], *, vertical: bool = False, gap: int = GAP) -> Image.Image:
    """Lay images beside or below each other, aligned left and top."""
    widths, heights = [image.width for image in images], [image.height for image in images]
    gaps = gap * (len(images) - 1)
    size = (max(widths), sum(heights) + gaps) if vertical else (sum(widths) + gaps, max(heights))
    canvas = Image.new("RGB", size, PAPER)
    offset = 0
    for image in images:
        canvas.paste(image, (0, offset) if vertical else (offset, 0))
        offset += (image.height if vertical else image.width) + gap
    return canvas


def draw_page(panels: Sequence[Image.Image], columns: int) -> Image.Image:
    """Draw panels in rows of `columns`, with margins."""
    rows = [stack(panels[start : start + columns], gap=2 * MARGIN) for start in range(0, len(panels), columns)]
    content = stack(rows, vertical=True, gap=2 * MARGIN)
    page = Image.new("RGB", (content.width + 2 * MARGIN, content.height + 2 * MARGIN), PAPER)
    page.paste(content, (MARGIN, MARGIN))
    return page


def label(text: str, height: int, width: int | None = None) -> Image.Image:
    """Return a line of pale text, by default as wide as the longest label of a reconstruction."""
    width = round(picture_font(False).getlength("reconstruction")) + 2 * GAP if width is None else width
    image = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(image).text((0, height / 2), text, LABEL, picture_font(False), anchor="lm")
    return image


def draw_words(tokens: Sequence[str], styles: Sequence[str], width: int) -> Image.Image:
    """Draw tokens in their styles, wrapped at `width`."""
    space = picture_font(False).getlength(" ")
    texts = [
        "" if (token, style) == (MASK_TOKEN, "masked") else token.removeprefix("##")
        for token, style in zip(tokens, styles, strict=True)
    ]
    fonts = [picture_font(style in ("right", "wrong")) for style in styles]
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
