"""A picture of what an ALPRO and its prompter see in crops: frame, crop and the likeliest entities as bars."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

from PIL import Image, ImageDraw

from fastvtp.evaluation.entities import EntityExample
from fastvtp.visualization.drawing import (
    INK,
    LABEL,
    LINE_HEIGHT,
    PAPER,
    draw_page,
    draw_words,
    label,
    picture_font,
    stack,
)

_CROP_COLOUR = "#d4351c"
_BAR_COLOURS = {"model": "#54aeff", "prompter": "#8c959f"}
_SEES = {"model": "model, reads clip and caption", "prompter": "prompter, sees the crop alone"}
_NAME_WIDTH, _BAR_WIDTH, _BAR_GAP = 110, 150, 4


def entity_picture(examples: Sequence[EntityExample], *, frame_size: int = 216, columns: int = 2) -> Image.Image:
    """RGB picture with a panel per clip: a frame, `frame_size` pixels high, with the crop outlined; beside it the
    entities of the model and of the prompter, with probabilities; below it the caption.
    """

    def panel(example: EntityExample) -> Image.Image:
        guesses = [_bars(name, getattr(example, name), name == "prompter" and example.ignored) for name in _BAR_COLOURS]
        above = stack([_cropped(example, frame_size), stack(guesses, vertical=True)], gap=2 * LINE_HEIGHT // 3)
        words = example.caption.split()
        return stack([above, draw_words(words, ["plain"] * len(words), above.width)], vertical=True)

    return draw_page([panel(example) for example in examples], columns)


def save_entity_picture(
    path: Path | str, examples: Sequence[EntityExample], *, frame_size: int = 216, columns: int = 2
) -> None:
    """Write `entity_picture` to `path`, a .png."""
    if Path(path).suffix != ".png":
        raise ValueError(f"{path}: a picture of entities is a .png")
    entity_picture(examples, frame_size=frame_size, columns=columns).save(path)


def _cropped(example: EntityExample, size: int) -> Image.Image:
    """The frame, paler outside the crop."""
    frame, (top, left, bottom, right) = Image.fromarray(example.frame), example.crop
    pale = Image.blend(frame, Image.new("RGB", frame.size, PAPER), 0.5)
    pale.paste(frame.crop((left, top, right, bottom)), (left, top))
    scale = size / frame.height
    image = pale.resize((round(frame.width * scale), size), Image.Resampling.LANCZOS)
    # the last pixels inside, so that an outline at the frame's edge shows
    corners = (left * scale, top * scale, right * scale - 1, bottom * scale - 1)
    ImageDraw.Draw(image).rectangle(corners, outline=_CROP_COLOUR, width=3)
    return image


def _bars(name: str, likely: dict[str, float], ignored: bool) -> Image.Image:
    """Entities below each other under the name of who sees them."""
    width = _NAME_WIDTH + _BAR_WIDTH + _BAR_GAP + ceil(picture_font(False).getlength("100 %")) + 1
    rows = [label(f"{name}, too unsure to teach" if ignored else _SEES[name], LINE_HEIGHT, width)]
    for entity, probability in likely.items():
        row = Image.new("RGB", (width, LINE_HEIGHT - 6), PAPER)
        draw, middle = ImageDraw.Draw(row), row.height / 2
        draw.text((0, middle), entity, INK, picture_font(False), anchor="lm")
        end = _NAME_WIDTH + max(1, round(probability * _BAR_WIDTH))
        # names that are too long run under their bar
        draw.rectangle((_NAME_WIDTH, 2, end, row.height - 3), fill=_BAR_COLOURS[name])
        share = f"{100 * probability:.0f} %" if probability >= 0.005 else "< 1 %"
        draw.text((end + _BAR_GAP, middle), share, LABEL, picture_font(False), anchor="lm")
        rows.append(row)
    return stack(rows, vertical=True, gap=0)
