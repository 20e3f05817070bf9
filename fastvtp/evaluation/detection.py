"""Detections in time or in the picture: overlap, suppression, mean average precision.

Shape legend: N, M = spans of one video, S = sides (2 of a segment: start, end; 4 of a box: left, top, right, bottom).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvtp.data.spans import SpanSet
from fastvtp.evaluation.average_precision import average_precision, finite_mean


@dataclass(frozen=True)
class Detections:
    """What is found in one video. spans: [N, S]. labels: int64 [N], one class each. scores: [N], larger is surer."""

    spans: Tensor
    labels: Tensor
    scores: Tensor

    def of_class(self, label: int) -> tuple[Tensor, Tensor]:
        """Spans and scores of one class."""
        chosen = self.labels == label
        return self.spans[chosen], self.scores[chosen]


def span_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, [N, S] and [M, S] -> [N, M]; spans of no extent overlap with nothing."""
    half = a.shape[1] // 2
    low = torch.maximum(a[:, None, :half], b[None, :, :half])
    high = torch.minimum(a[:, None, half:], b[None, :, half:])
    overlap = (high - low).clamp(min=0).prod(-1)
    sizes = [(span[:, half:] - span[:, :half]).clamp(min=0).prod(-1) for span in (a, b)]
    union = sizes[0][:, None] + sizes[1] - overlap
    return torch.where(union > 0, overlap / union.clamp(min=1e-12), 0.0)


def suppress(spans: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression: the surest span stays, those that overlap with it by more than `threshold` go,
    and so on. [N, S], [N] -> places of those that stay, int64, the surest first."""
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
    """Mean average precision at each threshold of overlap, in percent, and that of each class that `truth` shows.

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
    """Which of one video's detections of a class are right, see `detection_map`: [N, S], [N], [M, S] -> bool [N]."""
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
