"""Localisation heads on cached features: training and scores, in time and in the picture.

Shape legend: B = clips, T = time slots, L = tokens, D = width, C = classes, n = spans of a clip.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fastvtp.data.records import VideoRecord
from fastvtp.errors import UserError
from fastvtp.evaluation.inference import inference
from fastvtp.frozen.detection import Detections, detection_map, finite_mean, suppress
from fastvtp.frozen.feature_sets import FeatureSet, training_draw
from fastvtp.frozen.heads import (
    BoxHead,
    BoxHeadConfig,
    SegmentHead,
    SegmentHeadConfig,
    segment_loss,
    slot_centres,
    slot_targets,
)
from fastvtp.frozen.spans import SpanSet
from fastvtp.frozen.training_heads import HeadTraining, head_config, train_head

TIME_THRESHOLDS = tuple(0.5 + 0.05 * step for step in range(10))  # ActivityNet's
BOX_THRESHOLD = 0.5  # AVA's
_AT_ONCE = 32  # clips in evaluation


@dataclass(frozen=True)
class LocalizationReport:
    """Mean average precision in percent.

    Attributes:
        mean_average_precision: of segments the mean over the thresholds 0.5 to 0.95, as ActivityNet has it; of boxes
            that at 0.5.
        by_threshold: at each overlap, as text.
        per_class: at an overlap of 0.5, of each class that is shown.
        count: clips scored.
        left_out: annotated videos without features.
    """

    mean_average_precision: float
    by_threshold: dict[str, float]
    per_class: dict[str, float]
    count: int
    left_out: list[str]


def train_segment_head(
    features: FeatureSet,
    annotations: SpanSet,
    training: HeadTraining,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
    **sizes: Any,
) -> tuple[SegmentHead, float]:
    """Train a head that finds segments in time; returns it, and its last loss.

    features: of whole videos in even frames; their time slots are averaged over the picture where the cache has not
    done so. sizes: fields of `SegmentHeadConfig`.

    Raises UserError where no annotated video has features, and for annotations of boxes.
    """
    _check_fits(annotations, "segments", features)
    known = {"width": features.description["width"], "num_classes": len(annotations.class_names)}
    config = head_config(SegmentHeadConfig, **known, **sizes)
    torch.manual_seed(training.seed)
    head = SegmentHead(config).to(device)
    head.init_weights()
    centres = slot_centres(features.grid[0])
    targets = [slot_targets(centres, *pair) for pair in zip(annotations.spans, annotations.labels, strict=True)]

    def loss_of(batch: tuple[Tensor, list[int]]) -> Tensor:
        clips, places = batch
        classes, spans = (torch.stack(column).to(device) for column in zip(*(targets[i] for i in places), strict=True))
        predicted = head(_by_slot(clips.to(device), features))
        return segment_loss(predicted.logits, predicted.segments, classes, spans)

    batches = _training_batches(features, annotations, training)
    return head, train_head(head, batches, loss_of, training, device=device, progress=progress, description="segments")


def detect_segments(
    head: SegmentHead,
    features: FeatureSet,
    *,
    device: torch.device | str = "cpu",
    overlap: float = 0.5,
    most: int = 100,
    least_score: float = 1e-3,
) -> dict[str, Detections]:
    """Find the segments of every clip, by its id: of each class the surest that do not overlap by more than `overlap`,
    at most `most` in all, none with a probability below `least_score`."""

    def read(clips: Tensor, indices: list[int]) -> Iterator[tuple[str, Detections]]:
        predicted = head(_by_slot(clips.to(device), features))
        segments, scores = predicted.segments.float().clamp(0, 1).cpu(), predicted.logits.float().sigmoid().cpu()
        for index, places, of_classes in zip(indices, segments, scores, strict=True):
            yield features.records[index].id, _surest(places, of_classes, overlap, most, least_score)

    return _over_clips(head, features, read)


def train_box_head(
    features: FeatureSet,
    annotations: SpanSet,
    training: HeadTraining,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
    **sizes: Any,
) -> tuple[BoxHead, float]:
    """Train a head that says what is done in given boxes; returns it, and its last loss.

    features: of all tokens (pool "none"). sizes: fields of `BoxHeadConfig`. Raises UserError where no annotated video
    has features, for annotations of segments, and for features that are pooled or of squashed frames.
    """
    _check_fits(annotations, "boxes", features)
    if features.description["pool"] != "none":
        raise UserError(f"{features.folder} has pool {features.description['pool']!r}, expected 'none' for boxes")
    if features.framing == "squash":
        raise UserError(f"{features.folder} has framing 'squash': boxes are placed in centred squares, expected 'crop'")
    known = {"width": features.description["width"], "num_classes": len(annotations.class_names)}
    config = head_config(BoxHeadConfig, grid=features.grid, **known, **sizes)
    torch.manual_seed(training.seed)
    head = BoxHead(config).to(device)
    head.init_weights()

    def loss_of(batch: tuple[Tensor, list[int]]) -> Tensor:
        clips, places = batch
        boxes, labels = (torch.cat([tensors[i] for i in places]) for tensors in (annotations.spans, annotations.labels))
        counts = [len(annotations.spans[i]) for i in places]
        logits = head(clips[:, -1].to(device), boxes.to(device), counts)
        return binary_cross_entropy_with_logits(logits.float(), labels.to(logits.device).float())

    batches = _training_batches(features, annotations, training)
    return head, train_head(head, batches, loss_of, training, device=device, progress=progress, description="boxes")


def score_boxes(
    head: BoxHead, features: FeatureSet, boxes: SpanSet, *, device: torch.device | str = "cpu"
) -> dict[str, Detections]:
    """Say what is done in the boxes of every clip, by its id: each box once for every class, with the probability times
    the detector's score.

    boxes: the true ones, or a detector's; clips without any are left out. Raises UserError where no clip has boxes.
    """
    _check_fits(boxes, "boxes", features)
    places = {name: place for name, place in boxes.by_id().items() if len(boxes.spans[place])}

    def read(clips: Tensor, indices: list[int]) -> Iterator[tuple[str, Detections]]:
        names = [features.records[index].id for index in indices]
        shown = [i for i, name in enumerate(names) if name in places]
        if not shown:
            return
        spans = [boxes.spans[places[names[i]]] for i in shown]
        counts = [len(span) for span in spans]
        logits = head(clips[shown, -1].to(device), torch.cat(spans).to(device), counts)
        for i, span, scores in zip(shown, spans, logits.float().sigmoid().cpu().split(counts), strict=True):
            classes = scores.shape[1]
            sureness = scores * boxes.scores[places[names[i]]][:, None]
            labels = torch.arange(classes).repeat(len(span))
            yield names[i], Detections(span.repeat_interleave(classes, 0), labels, sureness.flatten())

    found = _over_clips(head, features, read)
    if not found:
        raise UserError(f"{features.folder}: no clip of it has boxes in the list: expected its ids")
    return found


def report_detections(found: dict[str, Detections], truth: SpanSet, features: FeatureSet) -> LocalizationReport:
    """Score detections in the videos that have features; of segments as ActivityNet does, of boxes as AVA.

    Raises UserError where no annotated video has features.
    """
    _check_fits(truth, truth.kind, features)
    known = {record.id for record in features.records}
    scored = _restricted(truth, known, features)
    segments = truth.kind == "segments"
    thresholds = TIME_THRESHOLDS if segments else (BOX_THRESHOLD,)
    found = {name: detections for name, detections in found.items() if name in scored.by_id()}
    results = detection_map(found, scored, thresholds, next_best=segments)
    return LocalizationReport(
        mean_average_precision=finite_mean(mean for mean, _ in results.values()),
        by_threshold={f"{threshold:.2f}": mean for threshold, (mean, _) in results.items()},
        per_class=results[thresholds[0]][1],
        count=len(scored.records),
        left_out=sorted(record.source for record in truth.records if record.id not in known),
    )


def _surest(segments: Tensor, scores: Tensor, overlap: float, most: int, least_score: float) -> Detections:
    """[T, 2], [T, C] -> detections of one clip."""
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for label, column in enumerate(scores.T):
        sure = (column >= least_score).nonzero()[:, 0]
        stays = sure[suppress(segments[sure], column[sure], overlap)]
        kept.append((segments[stays], torch.full_like(stays, label), column[stays]))
    spans, labels, sureness = (torch.cat(parts) for parts in zip(*kept, strict=True))
    first = sureness.argsort(descending=True, stable=True)[:most]
    return Detections(spans[first], labels[first], sureness[first])


def _by_slot(clips_BKLD: Tensor, features: FeatureSet) -> Tensor:
    """Return the last layer's tokens averaged over the picture: [B, T, D]."""
    return clips_BKLD[:, -1].float().unflatten(1, (features.grid[0], -1)).mean(2)


def _over_clips(
    head: torch.nn.Module, features: FeatureSet, read: Callable[[Tensor, list[int]], Iterator[tuple[str, Detections]]]
) -> dict[str, Detections]:
    """Run `read` on the first view of all clips, in batches, in inference mode."""
    found: dict[str, Detections] = {}
    with inference(head):
        for start in range(0, len(features), _AT_ONCE):
            indices = list(range(start, min(start + _AT_ONCE, len(features))))
            clips = torch.stack([features.view(index, 0) for index in indices]).float()
            found |= dict(read(clips, indices))
    return found


def _training_batches(
    features: FeatureSet, annotations: SpanSet, training: HeadTraining
) -> Iterator[tuple[Tensor, list[int]]]:
    """Return shuffled epochs of annotated clips without end: first views [B, K, L, D], and places in `annotations`."""
    places = annotations.by_id()
    usable = [(i, places[record.id]) for i, record in enumerate(features.records) if record.id in places]
    if annotations.kind == "boxes":  # a video without segments teaches, one without boxes does not
        usable = [(i, place) for i, place in usable if len(annotations.spans[place])]
    if not usable:
        raise UserError(f"{features.folder}: no clip of it is annotated: expected the ids of the annotations")
    number = 0
    while True:
        drawn = [usable[training_draw(number + i, len(usable), training.seed)[0]] for i in range(training.batch_size)]
        number += training.batch_size
        yield torch.stack([features.view(index, 0) for index, _ in drawn]).float(), [place for _, place in drawn]


def _restricted(truth: SpanSet, known: set[str], features: FeatureSet) -> SpanSet:
    kept = [place for place, record in enumerate(truth.records) if record.id in known]
    if not kept:
        raise UserError(f"{features.folder}: no clip of it is annotated: expected the ids of the annotations")

    def of(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[place] for place in kept)

    records: tuple[VideoRecord, ...] = of(truth.records)
    return dataclasses.replace(
        truth, records=records, spans=of(truth.spans), labels=of(truth.labels), scores=of(truth.scores)
    )


def _check_fits(annotations: SpanSet, kind: str, features: FeatureSet) -> None:
    """Check that the annotations are of this kind and, by id, of what the features are of: the same spans of videos."""
    if annotations.kind != kind:
        raise UserError(f"the annotations are {annotations.kind}, expected {kind}")
    places = annotations.by_id()
    for record in features.records:
        if record.id in places and (annotated := annotations.records[places[record.id]]).span != record.span:
            of, expected = (each.span or "the whole video" for each in (record, annotated))
            raise UserError(f"{features.folder}: {record.id!r} is of {of}, expected {expected} as in the annotations")
