"""Localisation heads, from features on disk to scores and files: what the command of the CLI does."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastvtp import processes
from fastvtp.errors import UserError
from fastvtp.evaluation.report import scores_report
from fastvtp.files import write_atomically
from fastvtp.frozen.feature_sets import FeatureSet
from fastvtp.frozen.localization import (
    detect_segments,
    report_detections,
    score_boxes,
    train_box_head,
    train_segment_head,
)
from fastvtp.frozen.spans import load_spans
from fastvtp.frozen.training_heads import HeadTraining

_TRAINING = HeadTraining()


@dataclass(frozen=True)
class AnnotatedFeatures:
    """A feature folder, and the list of segments or boxes in the videos that the features are of."""

    features: str | Path
    annotations: str | Path


def localize(
    train: AnnotatedFeatures,
    test: AnnotatedFeatures,
    output: str | Path | None = None,
    training: HeadTraining = _TRAINING,
    *,
    detections: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress_bar: bool = True,
    **sizes: Any,
) -> dict[str, Any]:
    """Train a head for segments or boxes, whichever the annotations list, and score it on test videos.

    train, test: features of the videos in the annotations, extracted from them ("frames" will do for segments, boxes
    need all tokens, of frames that were not squashed). detections: boxes of a detector in the test videos; None: the
    true ones. output: a folder for the head (model.safetensors, head.json) and what it finds (detections.jsonl).
    sizes: fields of the head's config. Returns a report. Of the processes of a group the first does it alone, as in
    `fastvtp.frozen.runs.train_probe`.

    Raises UserError where features and annotations do not fit together.
    """

    def work() -> dict[str, Any]:
        common: dict[str, Any] = {"device": device, "progress": progress_bar, **sizes}
        return _localize(train, test, output, training, detections, **common)

    return processes.first_alone(work)


def _localize(
    train: AnnotatedFeatures,
    test: AnnotatedFeatures,
    output: str | Path | None,
    training: HeadTraining,
    detections: str | Path | None,
    **common: Any,
) -> dict[str, Any]:
    features, test_features = FeatureSet(train.features), FeatureSet(test.features)
    test_features.check_fits(features.description, str(train.features))
    known = load_spans(train.annotations)
    truth = load_spans(test.annotations, known.class_names)
    if truth.kind != known.kind:
        raise UserError(f"{test.annotations} lists {truth.kind}, {train.annotations} {known.kind}")
    if detections is not None and known.kind == "segments":
        raise UserError(f"{detections}: detections are for boxes, the annotations are segments")
    boxes = truth if detections is None else load_spans(detections, known.class_names)
    if known.kind == "segments":
        head, loss = train_segment_head(features, known, training, **common)
        found = detect_segments(head, test_features, device=common["device"])
    else:
        head, loss = train_box_head(features, known, training, **common)
        found = score_boxes(head, test_features, boxes, device=common["device"])
    if output is not None:
        _save_head(Path(output), head, known.class_names, features.description["model_digest"], found)
    scores = report_detections(found, truth, test_features)
    outside = {f"{known.kind}_outside": truth.outside} if known.kind == "boxes" or truth.outside else {}
    return {"loss": loss, **scores_report(known.kind, scores, test_features.left_out), **outside}


def _save_head(folder: Path, head: Any, class_names: tuple[str, ...], model_digest: str, found: dict[str, Any]) -> None:
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.cpu().contiguous() for name, tensor in head.state_dict().items()}
    write_atomically(folder / "model.safetensors", save(weights))
    described = {
        "head": type(head).__name__,
        "config": asdict(head.config),
        "class_names": class_names,
        "model_digest": model_digest,
    }
    write_atomically(folder / "head.json", (json.dumps(described, indent=2) + "\n").encode())
    lines = []
    for name, one in found.items():
        labels = [class_names[label] for label in one.labels]
        lines.append({"id": name, "spans": one.spans.tolist(), "labels": labels, "scores": one.scores.tolist()})
    write_atomically(folder / "detections.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
