"""What a pretrained ALPRO and its prompter see in crops of clips, ready to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastvtp.errors import UserError
from fastvtp.evaluation.inference import inference
from fastvtp.objectives.entity_prompts import entity_targets

if TYPE_CHECKING:  # who only draws the examples needs neither the models nor the loader
    from fastvtp.data.loader import VideoTextBatch
    from fastvtp.models.alpro import Alpro


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
    """Of the patches that are True, in pixels."""
    rows, columns = (np.flatnonzero(inside.any(axis=axis)).tolist() for axis in (1, 0))
    return rows[0] * patch, columns[0] * patch, (rows[-1] + 1) * patch, (columns[-1] + 1) * patch


def _likeliest(probabilities: np.ndarray, entities: Sequence[str], top: int) -> dict[str, float]:
    best = np.argsort(-probabilities, kind="stable")[:top]
    return {entities[int(place)]: float(probabilities[place]) for place in best}
