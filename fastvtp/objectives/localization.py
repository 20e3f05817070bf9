"""The loss of temporal localisation by slots.

Shape legend: T = time slots, C = classes, n = segments of a clip.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

_ALPHA, _GAMMA = 0.25, 2.0  # RetinaNet's


def slot_targets(centres: Tensor, segments: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What each slot of a clip should say.

    centres: [T]. segments: [n, 2]. labels: bool [n, C]. A slot belongs to the shortest segment around its centre, and a
    segment between two centres has the nearest one.

    Returns classes, float [T, C], all zero outside segments, and the segment of each slot, [T, 2], zero there.
    """
    classes, places = centres.new_zeros(len(centres), labels.shape[1]), centres.new_zeros(len(centres), 2)
    if len(segments) == 0:
        return classes, places
    inside = (centres[:, None] >= segments[:, 0]) & (centres[:, None] <= segments[:, 1])
    nearest = (centres[:, None] - segments.mean(1)).abs().argmin(0)
    inside[nearest, torch.arange(len(segments), device=segments.device)] = True
    lengths = (segments[:, 1] - segments[:, 0]).expand_as(inside).masked_fill(~inside, torch.inf)
    shortest, positive = lengths.argmin(1), inside.any(1)
    classes[positive], places[positive] = labels[shortest[positive]].to(classes), segments[shortest[positive]]
    return classes, places


def segment_loss(logits: Tensor, segments: Tensor, classes: Tensor, places: Tensor) -> Tensor:
    """Focal loss of the classes (arXiv:1708.02002) plus one minus the distance IoU of the segments (arXiv:1911.08287),
    both over the number of slots inside segments, at least 1: [].

    logits, classes: [..., C]. segments, places: [..., 2], the predicted and the true one; see `slot_targets`.
    """
    logits, segments = logits.float(), segments.float()
    positive = classes.any(-1)
    count = positive.sum().clamp(min=1)
    right = torch.where(classes > 0, logits.sigmoid(), 1 - logits.sigmoid())
    weight = torch.where(classes > 0, _ALPHA, 1 - _ALPHA) * (1 - right) ** _GAMMA
    focal = (weight * binary_cross_entropy_with_logits(logits, classes, reduction="none")).sum()
    found, true = segments[positive], places[positive]
    overlap = (torch.minimum(found[:, 1], true[:, 1]) - torch.maximum(found[:, 0], true[:, 0])).clamp(min=0)
    union = (found[:, 1] - found[:, 0]) + (true[:, 1] - true[:, 0]) - overlap
    hull = torch.maximum(found[:, 1], true[:, 1]) - torch.minimum(found[:, 0], true[:, 0])
    shift = ((found.mean(1) - true.mean(1)) / hull.clamp(min=1e-6)) ** 2
    return (focal + (1 - overlap / union.clamp(min=1e-6) + shift).sum()) / count
