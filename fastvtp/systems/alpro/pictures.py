"""What a pretrained ALPRO and its prompter see in crops of clips, ready to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fastvtp.data.loader import VideoTextBatch
from fastvtp.errors import UserError
from fastvtp.evaluation.inference import inference
from fastvtp.model_folder import OpenedModel
from fastvtp.systems.alpro.entities import entity_targets
from fastvtp.systems.alpro.model import Alpro
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


@dataclass(frozen=True)
class EntityExample:
    """One clip and the entities in a crop of it.

    frame: uint8 [H, W, 3], the middle one. crop: (top, left, bottom, right) in its pixels, the ends excluded. caption:
    the clip's. model, prompter: probabilities of the entities by name, the likeliest first. ignored: whether such a
    crop teaches the model nothing.
    """

    frame: np.ndarray
    crop: tuple[int, int, int, int]
    caption: str
    model: dict[str, float]
    prompter: dict[str, float]
    ignored: bool


def predict_entities(
    model: Alpro, batch: VideoTextBatch, entities: Sequence[str], *, seed: int, top: int = 4
) -> list[EntityExample]:
    """Crop every clip of `batch` as in training and ask model and prompter for the `top` likeliest of `entities`.

    seed: of the crops. The model, which also reads the caption, is run in evaluation mode and left as it was.

    Raises:
        UserError: the model was trained without entities.
        ValueError: another number of entities than the model has.
    """
    config = model.config
    if not config.entity_weight:
        raise UserError("this alpro was trained without entities (entity_weight 0)")
    if len(entities) != config.num_entities:
        raise ValueError(f"entities must be the model's {config.num_entities}, got {len(entities)}")
    video = batch.video.to(model.device)
    with inference(model):
        plan = model.plan(batch.input_ids.cpu(), batch.text_lengths, batch.sample_ids.cpu(), seed=seed, step=0)
        output = model(video, plan, kind=batch.kind)
        assert plan.crop is not None  # because entity_weight is not 0
        assert output.entity_logits is not None
        crops = model.prompter.video_features(model.prompter.video_tokens(video, plan.crop))
        prompts = model.prompts(batch.kind)
        targets = entity_targets(crops, prompts, 1 / model.prompter.logit_scale(), ignore_rule=config.ignore_rule)
    seen = output.entity_logits.float().softmax(-1).cpu().numpy(), targets.probabilities.cpu().numpy()
    inside = plan.crop.cpu().numpy().reshape(-1, *config.grid)
    return [
        EntityExample(
            frame=frames[len(frames) // 2],
            crop=_rectangle(inside[i], config.patch_size),
            caption=batch.captions[i],
            model=_likeliest(seen[0][i], entities, top),
            prompter=_likeliest(seen[1][i], entities, top),
            ignored=bool(targets.ignored[i]),
        )
        for i, frames in enumerate(batch.video.cpu().numpy())
    ]


def _rectangle(inside: np.ndarray, patch: int) -> tuple[int, int, int, int]:
    """Return the rectangle of the patches that are True, in pixels."""
    rows, columns = (np.flatnonzero(inside.any(axis=axis)).tolist() for axis in (1, 0))
    return rows[0] * patch, columns[0] * patch, (rows[-1] + 1) * patch, (columns[-1] + 1) * patch


def _likeliest(probabilities: np.ndarray, entities: Sequence[str], top: int) -> dict[str, float]:
    best = np.argsort(-probabilities, kind="stable")[:top]
    return {entities[int(place)]: float(probabilities[place]) for place in best}


_CROP_COLOUR = "#d4351c"


_BAR_COLOURS = {"model": "#54aeff", "prompter": "#8c959f"}


_SEES = {"model": "model, reads clip and caption", "prompter": "prompter, sees the crop alone"}


_NAME_WIDTH, _BAR_WIDTH, _BAR_GAP = 110, 150, 4


def entity_picture(examples: Sequence[EntityExample], *, frame_size: int = 216, columns: int = 2) -> Image.Image:
    """Draw an RGB picture with a panel per clip: a frame, `frame_size` pixels high, with the crop outlined; beside it
    the entities of the model and of the prompter, with probabilities; below it the caption.
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
    """Return the frame, paler outside the crop."""
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
    """Draw entities below each other under the name of who sees them."""
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


def draw_entities(opened: OpenedModel, batch: VideoTextBatch, output: Path, *, seed: int) -> list[Path]:
    """Draw what the model and its prompter see in crops of a batch, as entities.png in the folder `output`.

    Raises UserError for a model that comes without a list of its entities.
    """
    if not opened.entities:
        raise UserError("this alpro comes without a list of its entities: nothing to show")
    path = output / "entities.png"
    save_entity_picture(path, predict_entities(opened.model, batch, opened.entities, seed=seed))
    return [path]
