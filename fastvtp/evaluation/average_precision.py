"""Average precision, of ranked answers and of detections.

Shape legend: N = ranked answers, C = classes.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def average_precision(
    scores: Tensor, right: Tensor, *, num_right: int | None = None, interpolated: bool = False
) -> float:
    """Area under precision over recall, in percent: the sum over distinct scores of the rise of recall times precision.

    scores: any floating [N]. right: bool [N]. num_right: right answers there are, where some were never ranked; None:
    those of `right`. interpolated: precision is the best at this or any higher recall, as in detection (PASCAL VOC 2010
    and since, ActivityNet, AVA). Equal scores are one step, whatever their order; NaN where nothing is right.

    Raises ValueError for shapes that do not fit and scores that are not finite.
    """
    if scores.ndim != 1 or right.shape != scores.shape or right.dtype != torch.bool:
        raise ValueError(f"expected scores [N] and right bool [N], got {list(scores.shape)} and {list(right.shape)}")
    if not scores.isfinite().all():
        raise ValueError("scores must be finite, got NaN or infinity: look for a NaN in the model")
    total = int(right.sum()) if num_right is None else num_right
    if total == 0:
        return float("nan")
    scores, order = scores.double().sort(descending=True, stable=True)
    hits = right[order].double().cumsum(0)
    last_of_its_score = torch.ones_like(right)
    last_of_its_score[:-1] = scores[1:] != scores[:-1]
    hits, ranked = hits[last_of_its_score], torch.arange(1, len(scores) + 1)[last_of_its_score.cpu()].to(hits)
    precision = hits / ranked
    if interpolated:
        precision = precision.flip(0).cummax(0).values.flip(0)
    return 100 * float((precision * torch.diff(hits, prepend=hits.new_zeros(1))).sum()) / total


def mean_average_precision(scores: Tensor, targets: Tensor) -> tuple[float, list[float]]:
    """The mean over classes that any clip shows, in percent, and that of each class (NaN where none does).

    scores: [N, C]. targets: bool [N, C].
    """
    per_class = [average_precision(*column) for column in zip(scores.T, targets.T, strict=True)]
    return finite_mean(per_class), per_class


def finite_mean(values: Iterable[float]) -> float:
    """The mean without NaN; NaN of nothing."""
    kept = [value for value in values if value == value]
    return sum(kept) / len(kept) if kept else float("nan")
