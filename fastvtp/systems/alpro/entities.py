"""Prompting entity modelling (PEM): which things does a crop of the clip show? (ALPRO, arXiv:2112.09583, section 3.2)

Shape legend: B = clips, E = entities, D = width of the contrast's features, S = patches of a frame.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from fastvtp.modules.precision import wide

_WHAT = {
    "video": ("A footage of", "A video of", "A portrait of", "A video footage of"),
    "image": ("A photo of", "A picture of", "A good photo of", "A good picture of"),
}
_ARTICLES = ("a", "the", "one")
PROMPT_TEMPLATES: dict[str, tuple[str, ...]] = {
    kind: tuple(f"{what} {article} {{}}." for what in phrases for article in _ARTICLES)
    for kind, phrases in _WHAT.items()
}
"""The 12 templates for video and the 12 for images; "{}" is the entity."""

IGNORE_RULES = ("paper", "official")
_STREAM = 0x50454D  # keeps these numbers apart from the masks' and the loader's
_CROP_ATTEMPTS = 100  # one in seven or eight fits


def entity_prompts(entities: list[str], kind: str = "video") -> list[str]:
    """Return every template filled with every entity, template by template: 12 * E sentences. kind: "video" or
    "image"."""
    return [template.format(entity) for template in PROMPT_TEMPLATES[kind] for entity in entities]


def average_prompts(features: Tensor, num_entities: int) -> Tensor:
    """Return features of `entity_prompts`, [templates * E, D], -> one row an entity, [E, D].

    Rows are brought to unit length, averaged over the templates, and left as long as that makes them (as released).
    """
    return normalize(wide(features), dim=-1).unflatten(0, (-1, num_entities)).mean(dim=0)


def crop_patches(
    batch_ids: np.ndarray,
    grid: tuple[int, int],
    *,
    seed: int,
    step: int,
    area: tuple[float, float] = (0.3, 0.5),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Return one rectangle of patches a clip, the same in all its frames: bool [B, S], True inside.

    batch_ids: int64 [B] sample ids; the draw follows (seed, step, sample id). grid: patches along (height, width).
    area: share of the frame; aspect: height over width; both uniform, as released. Sides are rounded down to whole
    patches, at least one; its corner is any patch, and where it would reach beyond the frame, size and corner are drawn
    anew, as released: small crops are the likelier ones. At last it is cut to the frame.
    """
    rows, columns = grid
    generators = [np.random.default_rng((seed, step, _STREAM, int(sample))) for sample in batch_ids]
    draws = np.stack([rng.random((4, _CROP_ATTEMPTS)) for rng in generators], axis=1)
    share, shape = (low + (high - low) * draw for (low, high), draw in zip((area, aspect), draws[:2], strict=True))
    cells = rows * columns * share
    spans = []  # along the height, along the width: where each of the attempts begins and ends, int64 [B, attempts]
    for length, cells_across, place in ((rows, cells * shape, draws[2]), (columns, cells / shape, draws[3])):
        first = (length * place).astype(np.int64)
        spans.append((first, first + np.maximum(1, np.sqrt(cells_across).astype(np.int64))))
    fits = (spans[0][1] <= rows) & (spans[1][1] <= columns)
    taken = np.arange(len(fits)), fits.argmax(axis=1)
    along = [
        (np.arange(length) >= first[taken][:, None]) & (np.arange(length) < last[taken][:, None])
        for length, (first, last) in zip(grid, spans, strict=True)
    ]
    return torch.from_numpy((along[0][:, :, None] & along[1][:, None]).reshape(len(fits), -1))


class EntityTargets(NamedTuple):
    """What the prompter sees in the crops. probabilities: float32 [B, E]. ignored: bool [B]."""

    probabilities: Tensor
    ignored: Tensor


def entity_targets(
    crop_features: Tensor, prompt_features: Tensor, temperature: Tensor, *, ignore_rule: str = "paper"
) -> EntityTargets:
    """Return soft labels of the crops: softmax of crop_features, [B, D] of unit length, against prompt_features, [E,
    D].

    ignore_rule: "paper" leaves out a crop whose likeliest entity has a probability below 0.2. "official" does what the
    released code does: it compares the *index* of that entity with 0.2, so that only crops that look like entity 0 are
    left out. Raises ValueError for another rule.
    """
    if ignore_rule not in IGNORE_RULES:
        raise ValueError(f"ignore_rule must be 'paper' or 'official', got {ignore_rule!r}")
    probabilities = (wide(crop_features) @ prompt_features.to(wide(crop_features).dtype).T / temperature).softmax(
        dim=-1
    )
    best, index = probabilities.max(dim=-1)
    return EntityTargets(probabilities, best < 0.2 if ignore_rule == "paper" else index == 0)


def entity_loss(logits: Tensor, targets: EntityTargets) -> Tensor:
    """Compute the cross-entropy of logits [B, E] with soft labels, mean over the crops that are not ignored; 0 if all
    are."""
    each = -(targets.probabilities * log_softmax(wide(logits), dim=-1)).sum(dim=-1)
    kept = (~targets.ignored).to(each.dtype)
    return (each * kept).sum() / kept.sum().clamp(min=1)
