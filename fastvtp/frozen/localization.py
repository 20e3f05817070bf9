"""Localisation on extracted features, from folders to a report."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastvtp.data.spans import load_spans
from fastvtp.errors import UserError
from fastvtp.evaluation.feature_sets import FeatureSet
from fastvtp.evaluation.fitting import FitSettings
from fastvtp.evaluation.localization import (
    detect_segments,
    fit_box_head,
    fit_segment_head,
    report_detections,
    score_boxes,
)
from fastvtp.files import write_atomically
from fastvtp.reports import scores_report

_FIT = FitSettings()


def localize(
    features: str | Path,
    annotations: str | Path,
    test_features: str | Path,
    test_annotations: str | Path,
    output: str | Path | None = None,
    settings: FitSettings = _FIT,
    *,
    detections: str | Path | None = None,
    device: torch.device | str = "cpu",
    progress_bar: bool = True,
    **sizes: Any,
) -> dict[str, Any]:
    """Train a head for segments or boxes, whichever the annotations list, and score it on test videos.

    features, test_features: of the videos in the annotations, extracted from them ("frames" will do for segments,
    boxes need all tokens, of frames that were not squashed). detections: boxes of a detector in the test videos; None:
    the true ones. output: a folder for the head (model.safetensors, head.json) and what it finds (detections.jsonl).
    sizes: fields of the head's config. Returns a report.

    Raises UserError where features and annotations do not fit together.
    """
    train, test = FeatureSet(features), FeatureSet(test_features)
    test.check_fits(train.description, str(features))
    known = load_spans(annotations)
    truth = load_spans(test_annotations, known.class_names)
    if truth.kind != known.kind:
        raise UserError(f"{test_annotations} lists {truth.kind}, {annotations} {known.kind}")
    if detections is not None and known.kind == "segments":
        raise UserError(f"{detections}: detections are for boxes, the annotations are segments")
    boxes = truth if detections is None else load_spans(detections, known.class_names)
    common: dict[str, Any] = {"device": device, "progress": progress_bar, **sizes}
    if known.kind == "segments":
        head, loss = fit_segment_head(train, known, settings, **common)
        found = detect_segments(head, test, device=device)
    else:
        head, loss = fit_box_head(train, known, settings, **common)
        found = score_boxes(head, test, boxes, device=device)
    if output is not None:
        _save(Path(output), head, known.class_names, train.description["model_digest"], found)
    scores = report_detections(found, truth, test)
    outside = {"boxes_outside": truth.outside} if known.kind == "boxes" else {}
    return {"loss": loss, **scores_report(known.kind, scores, test.left_out), **outside}


def _save(folder: Path, head: Any, class_names: tuple[str, ...], model_digest: str, found: dict[str, Any]) -> None:
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.cpu().contiguous() for name, tensor in head.state_dict().items()}
    write_atomically(folder / "model.safetensors", save(weights))
    described = {"head": type(head).__name__, "config": asdict(head.config), "class_names": class_names,
                 "model_digest": model_digest}  # fmt: skip
    write_atomically(folder / "head.json", (json.dumps(described, indent=2) + "\n").encode())
    lines = [
        json.dumps({"id": name, "spans": one.spans.tolist(), "labels": [class_names[label] for label in one.labels],
                    "scores": one.scores.tolist()})
        for name, one in found.items()
    ]  # fmt: skip
    write_atomically(folder / "detections.jsonl", "".join(line + "\n" for line in lines).encode())
