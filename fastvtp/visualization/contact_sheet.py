"""Clips as a model sees them, on one page: a row of frames a clip, with what was drawn for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fastvtp.visualization.drawing import (
    GAP,
    INK,
    LABEL,
    LINE_HEIGHT,
    PAPER,
    draw_page,
    draw_words,
    picture_font,
    stack,
)

MOST_PIXELS_ACROSS = 4096
MOST_CHARACTERS = 1000
_LEAST_TEXT_WIDTH = 640


@dataclass(frozen=True, eq=False)
class SheetClip:
    """A row of a contact sheet.

    frames: uint8 [T, H, W, 3]. marks: a short text under each frame, or none. title: what the clip is. details: how it
    was made. caption: what is said of it, in any number of words.
    """

    frames: np.ndarray
    marks: Sequence[str]
    title: str
    details: str
    caption: str


def can_be_written(path: Path) -> bool:
    """Tell whether a picture can be saved under that name, by its suffix."""
    return Image.registered_extensions().get(path.suffix.lower()) in Image.SAVE


def contact_sheet(clips: Sequence[SheetClip], heading: str = "") -> Image.Image:
    """Draw clips below each other, the frames of each in a row, at their own size or, where they would go beyond
    `MOST_PIXELS_ACROSS`, all of the sheet's smaller by one factor, which the heading says. Captions of more than
    `MOST_CHARACTERS` are cut there, and say so.

    Raises ValueError for no clip, or frames of another shape or dtype.
    """
    if not clips:
        raise ValueError("a contact sheet needs a clip")
    for clip in clips:
        if clip.frames.dtype != np.uint8 or clip.frames.ndim != 4 or clip.frames.shape[3] != 3 or not clip.frames.size:
            raise ValueError(f"frames must be uint8 [T, H, W, 3], got {clip.frames.dtype} {clip.frames.shape}")
    across = max(len(clip.frames) * (clip.frames.shape[2] + GAP) for clip in clips)
    scale = min(1.0, MOST_PIXELS_ACROSS / across)
    rows = [_row(clip, scale) for clip in clips]
    reduced = f" (frames drawn at {scale:.0%} of their size)" if scale < 1 else ""
    if heading or reduced:
        width = max(_LEAST_TEXT_WIDTH, *(row.width for row in rows))
        rows = [_line(heading + reduced, width, LABEL), *rows]
    return draw_page(rows, columns=1)


def _row(clip: SheetClip, scale: float) -> Image.Image:
    height, width = (max(1, round(side * scale)) for side in clip.frames.shape[1:3])
    pictures = []
    for place, frame in enumerate(clip.frames):
        picture = Image.fromarray(frame)
        picture = picture if scale == 1 else picture.resize((width, height), Image.Resampling.LANCZOS)
        under = [_line(clip.marks[place], width, LABEL)] if clip.marks else []
        pictures.append(stack([picture, *under], vertical=True, gap=0))
    frames = stack(pictures)
    text_width = max(frames.width, _LEAST_TEXT_WIDTH)
    texts = [_paragraph(text, text_width) for text in (clip.details, clip.caption or "(no caption)")]
    return stack([_line(clip.title, text_width, INK, bold=True), texts[0], frames, texts[1]], vertical=True)


def _paragraph(text: str, width: int) -> Image.Image:
    if len(text) > MOST_CHARACTERS:
        text = f"{text[:MOST_CHARACTERS]} ... (the first {MOST_CHARACTERS} of {len(text)} characters)"
    words = text.split()
    return draw_words(words, ["plain"] * len(words), width)


def _line(text: str, width: int, colour: str, *, bold: bool = False) -> Image.Image:
    """Return a line of text, cut where it is wider than `width`."""
    image = Image.new("RGB", (width, LINE_HEIGHT), PAPER)
    ImageDraw.Draw(image).text((0, LINE_HEIGHT / 2), text, colour, picture_font(bold), anchor="lm")
    return image
