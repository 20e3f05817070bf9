"""Detections in time or in the picture: overlap, suppression, mean average precision.

Shape legend: N, M = spans of one video, S = sides (2 of a segment: start, end; 4 of a box: left, top, right, bottom).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvtp.frozen.spans import SpanSet


@dataclass(frozen=True)
class Detections:
    """What is found in one video. spans: [N, S]. labels: int64 [N], one class each. scores: [N], larger is surer."""

    spans: Tensor
    labels: Tensor
    scores: Tensor

    def of_class(self, label: int) -> tuple[Tensor, Tensor]:
        """Pick the spans and scores of one class."""
        chosen = self.labels == label
        return self.spans[chosen], self.scores[chosen]


def span_iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the intersection over union of spans [N, S] and [M, S]: [N, M]; it is 0 for spans of no extent."""
    half = a.shape[1] // 2
    low = torch.maximum(a[:, None, :half], b[None, :, :half])
    high = torch.minimum(a[:, None, half:], b[None, :, half:])
    overlap = (high - low).clamp(min=0).prod(-1)
    sizes = [(span[:, half:] - span[:, :half]).clamp(min=0).prod(-1) for span in (a, b)]
    union = sizes[0][:, None] + sizes[1] - overlap
    return torch.where(union > 0, overlap / union.clamp(min=1e-12), 0.0)


def suppress(spans: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Suppress greedily what is not a maximum: the surest span stays, those that overlap with it by more than
    `threshold` go, and so on. [N, S], [N] -> places of those that stay, int64, the surest first."""
    order = scores.argsort(descending=True, stable=True)
    overlaps = span_iou(spans[order], spans[order]) > threshold
    stays = torch.ones(len(order), dtype=torch.bool)
    for place in range(len(order)):
        if stays[place]:
            stays[place + 1 :] &= ~overlaps[place, place + 1 :].cpu()
    return order[stays.to(order.device)]


def detection_map(
    found: Mapping[str, Detections],
    truth: SpanSet,
    thresholds: Sequence[float],
    *,
    next_best: bool,
) -> dict[float, tuple[float, dict[str, float]]]:
    """Compute the mean average precision at each threshold of overlap, in percent, and that of each class that `truth`
    shows.

    found: by id of the video. Detections of a class are matched over all videos, the surest first, each with the span
    of the same class and video that it overlaps with most; a span can be found once. next_best: where that one is taken
    already, the detection goes to the next that overlaps enough (ActivityNet); else it is wrong (PASCAL VOC, AVA).
    Precision is interpolated, see `average_precision`.

    Raises ValueError for detections in a video that `truth` does not list.
    """
    if unknown := sorted(found.keys() - truth.by_id().keys()):
        raise ValueError(f"detections in {unknown[0]!r}, which the annotations do not list")
    results = {}
    for threshold in thresholds:
        per_class = {
            name: _class_precision(found, truth, label, threshold, next_best)
            for label, name in enumerate(truth.class_names)
            if any(labels[:, label].any() for labels in truth.labels)
        }
        results[threshold] = finite_mean(per_class.values()), per_class
    return results


def _class_precision(
    found: Mapping[str, Detections], truth: SpanSet, label: int, threshold: float, next_best: bool
) -> float:
    scores, right, total = [], [], 0
    for record, spans, labels in zip(truth.records, truth.spans, truth.labels, strict=True):
        true = spans[labels[:, label]]
        total += len(true)
        if record.id in found:
            candidates, sureness = found[record.id].of_class(label)
            scores.append(sureness)
            right.append(match(candidates, sureness, true, threshold, next_best=next_best))
    if not scores:
        return 0.0
    return average_precision(torch.cat(scores), torch.cat(right), num_right=total, interpolated=True)


def match(spans: Tensor, scores: Tensor, true: Tensor, threshold: float, *, next_best: bool) -> Tensor:
    """Tell which of one video's detections of a class are right, see `detection_map`: bool [N].

    spans: [N, S]. scores: [N]. true: [M, S].
    """
    right = torch.zeros(len(spans), dtype=torch.bool)
    if len(true) == 0:
        return right
    overlaps = span_iou(spans.cpu(), true)
    free = torch.ones(len(true), dtype=torch.bool)
    for place in scores.argsort(descending=True, stable=True).tolist():
        row = overlaps[place].masked_fill(~free, -1.0) if next_best else overlaps[place]
        best = int(row.argmax())
        if row[best] >= threshold and free[best]:
            right[place], free[best] = True, False
    return right


def average_precision(
    scores: Tensor, right: Tensor, *, num_right: int | None = None, interpolated: bool = False
) -> float:
    """Compute the area under precision over recall, in percent: the sum over distinct scores of the rise of recall
    times precision.

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
    """Compute the mean over classes that any clip shows, in percent, and the precision of each class (NaN where none
    does).

    scores: [N, C]. targets: bool [N, C].
    """
    per_class = [average_precision(*column) for column in zip(scores.T, targets.T, strict=True)]
    return finite_mean(per_class), per_class


def finite_mean(values: Iterable[float]) -> float:
    """Compute the mean of the values that are not NaN; NaN where there are none."""
    kept = [value for value in values if value == value]
    return sum(kept) / len(kept) if kept else float("nan")
