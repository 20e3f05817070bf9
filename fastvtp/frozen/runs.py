"""Features and probes of frozen models, from videos to files on disk: what the commands of the CLI do.

Features are extracted once and probed many times; adapters and augmentation need the videos in training.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastvtp.data.annotations import (
    FOLDER_LISTS,
    VideoRecord,
    load_videos,
    read_lines,
    videos_under,
)
from fastvtp.data.classes import TargetSet, load_targets
from fastvtp.data.loader import VideoTextLoader
from fastvtp.data.wordpiece import MIN_TEXT_LENGTH, no_text
from fastvtp.errors import UserError
from fastvtp.evaluation.protocol import EvaluationProtocol
from fastvtp.evaluation.report import bad_file_report, scores_report
from fastvtp.evaluation.scoring import evaluation_loader, fit_of
from fastvtp.evaluation.views import average_over_views
from fastvtp.files import write_atomically
from fastvtp.frozen.adapters import ProbedTower
from fastvtp.frozen.feature_sets import FeatureSet
from fastvtp.frozen.features import (
    FeatureSettings,
    extract_features,
    model_digest,
)
from fastvtp.frozen.localization import (
    detect_segments,
    fit_box_head,
    fit_segment_head,
    report_detections,
    score_boxes,
)
from fastvtp.frozen.probe_files import (
    ProbeDescription,
    load_probe,
    predictions,
    save_probe,
)
from fastvtp.frozen.probes import ProbeConfig, build_probe
from fastvtp.frozen.probing import (
    MultiLabelReport,
    evaluate_targets,
    fit_probe,
    fit_probed_tower,
)
from fastvtp.frozen.spans import load_spans
from fastvtp.frozen.towers import evenly_spaced, video_tower
from fastvtp.frozen.training_heads import FitSettings, head_config
from fastvtp.model_folder import OpenedModel

MLAP_LAYERS = 4
_FEATURES, _PROTOCOL, _FIT = FeatureSettings(), EvaluationProtocol(), FitSettings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingClips:
    """How clips are drawn where a probe is trained on the videos; see `VideoTextLoader`."""

    sampling: str = "uniform"
    frame_stride: int = 1
    crop_scale: tuple[float, float] = (0.6, 1.0)
    flip: bool = True
    num_workers: int = 1


def read_videos(
    data: str | Path, class_names: Sequence[str] | None = None, *, names_file: str | Path | None = None
) -> tuple[tuple[VideoRecord, ...], TargetSet | None]:
    """Videos with their labels where the list, or a folder with one subfolder per class, has some; else videos alone.

    Arguments and errors as `load_targets` and `load_videos`.
    """
    path = Path(data)
    if path.is_dir():
        listed = any((path / name).is_file() for name in FOLDER_LISTS)
        labelled = not listed and any(video.parent != path for video in videos_under(path))
    elif path.suffix == ".jsonl":
        _, fields = next(read_lines(path), ("", {}))
        labelled = bool({"label", "labels"} & set(fields))
    else:
        labelled = path.suffix == ".csv"
    if labelled:
        targets = load_targets(path, class_names, names_file=names_file)
        return targets.records, targets
    if names_file is not None:
        raise UserError(f"{data}: its videos come without labels, which {names_file} could name")
    return tuple(load_videos(str(path))), None


def extract(
    opened: OpenedModel,
    data: str | Path,
    output: str | Path,
    settings: FeatureSettings = _FEATURES,
    *,
    protocol: EvaluationProtocol = _PROTOCOL,
    names_file: str | Path | None = None,
    progress_bar: bool = True,
) -> FeatureSet:
    """Frozen features of all videos of `data` in the folder `output`; continues what a killed run left there.

    data, names_file: as in `read_videos`. Raises UserError where `output` holds the features of something else.
    """
    records, targets = read_videos(data, names_file=names_file)
    tower, device = video_tower(opened.model), opened.model.device
    extract_features(
        tower, records, lambda some: evaluation_loader(opened, some, protocol, texts=False), output, settings,
        protocol=_reading(opened, protocol) | {"fit": fit_of(opened, protocol)}, targets=targets, device=device,
        precision=protocol.precision, progress=progress_bar,
    )  # fmt: skip
    return FeatureSet(output)


def train_probe(
    features: str | Path,
    test_features: str | Path | None = None,
    output: str | Path | None = None,
    settings: FitSettings = _FIT,
    *,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    progress_bar: bool = True,
    **sizes: Any,
) -> dict[str, Any]:
    """Train a probe on extracted features, score it on those of test videos, and keep it in `output`.

    sizes: fields of `ProbeConfig` ("kind" and others). Returns a report. Raises UserError where both sets of features
    do not fit together, before the training.
    """
    train = FeatureSet(features)
    test = targets = None
    if test_features is not None:
        test = FeatureSet(test_features)
        test.check_fits(train.description, str(features))
        targets = test.targets.renumbered(train.class_names, test_features)
        _check_kind(targets, train.targets, str(test_features))
    probe, loss = fit_probe(train, settings, device=device, num_workers=num_workers, progress=progress_bar, **sizes)
    described = train.description
    if output is not None:
        reading = {name: described[name] for name in ("num_frames", "image_size", "sampling", "frame_stride")}
        reading["fit"] = train.fit
        save_probe(output, probe, ProbeDescription(
            probe.config, train.class_names, described["multi_label"], described["model_digest"],
            tuple(described["layers"]), described["pool"], None, reading,
        ))  # fmt: skip
    report: dict[str, Any] = {"loss": loss, "num_train": len(train)}
    if test is not None and targets is not None:
        scores = evaluate_targets(
            probe, test.batches(settings.batch_size), targets, device=device, progress=progress_bar
        )
        report |= _scores(scores, test.left_out)
    return report


def train_on_videos(
    opened: OpenedModel,
    data: str | Path,
    test_data: str | Path | None = None,
    output: str | Path | None = None,
    settings: FitSettings = _FIT,
    *,
    layers: tuple[int, ...] = (),
    adapter_dim: int | None = None,
    clips: TrainingClips = TrainingClips(),
    protocol: EvaluationProtocol = _PROTOCOL,
    names_file: str | Path | None = None,
    progress_bar: bool = True,
    **sizes: Any,
) -> dict[str, Any]:
    """As `train_probe`, on augmented clips as they are decoded, and with adapters in the tower where `adapter_dim` is
    given. The model is frozen; the adapters are taken off it in the end. Raises UserError for a test that could not
    follow, before the training."""
    if test_data is not None:
        fit_of(opened, protocol)  # raises for views that could not follow
    targets = _labelled(data, names_file=names_file)
    test = None if test_data is None else _labelled(test_data, targets.class_names)
    if test is not None:
        _check_kind(test, targets, str(test_data))
    tower, device, config = video_tower(opened.model), opened.model.device, opened.model.config
    torch.manual_seed(settings.seed)
    probe = build_probe(head_config(
        ProbeConfig, width=tower.width, num_outputs=len(targets.class_names), num_layers=len(layers) + 1, **sizes
    ))  # fmt: skip
    probed = ProbedTower(tower, probe, layers=layers, adapter_dim=adapter_dim).to(device)
    try:
        with VideoTextLoader(
            targets.records, no_text(), batch_size=settings.batch_size, num_frames=config.num_frames,
            image_size=config.image_size, max_text_length=MIN_TEXT_LENGTH, train=True, seed=settings.seed,
            num_steps=settings.steps, device=device, fit=protocol.fit or opened.fit, **dataclasses.asdict(clips),
        ) as loader:  # fmt: skip
            loss = fit_probed_tower(probed, loader, targets, settings, device=device, progress=progress_bar)
            bad_files = loader.bad_files
        if output is not None:
            save_probe(output, probed, ProbeDescription(
                probe.config, targets.class_names, targets.multi_label, model_digest(opened.model), layers, "none",
                adapter_dim, _reading(opened, protocol),
            ))  # fmt: skip
        report: dict[str, Any] = {"loss": loss, "num_train": len(targets.records)}
        if test is None:
            return report | {"bad_files": bad_file_report(bad_files)}
        with evaluation_loader(opened, test.records, protocol, texts=False) as loader:
            scores = evaluate_targets(probed, loader, test, device=device, progress=progress_bar)
            return report | _scores(scores, bad_files | loader.bad_files)
    finally:
        probed.detach()


def classify(
    opened: OpenedModel,
    probe: str | Path,
    data: str | Path,
    *,
    protocol: EvaluationProtocol = _PROTOCOL,
    progress_bar: bool = True,
) -> dict[str, dict[str, float]]:
    """What a trained probe says of videos: probability by class, the likeliest first, by path.

    Frames come to the model's size as in the probe's training, where the protocol says nothing else. Videos that cannot
    be decoded are left out. Raises UserError where the probe is of another model.
    """
    records, _ = read_videos(data)
    probed, description = load_probe(probe, video_tower(opened.model))
    protocol = dataclasses.replace(protocol, fit=protocol.fit or description.protocol.get("fit"))
    try:
        with torch.inference_mode(), evaluation_loader(opened, records, protocol, texts=False) as loader:
            means = average_over_views(
                loader, records, lambda batch: probed(batch.video).double().cpu(), description="classifying",
                progress=progress_bar,
            )  # fmt: skip
    finally:
        probed.detach()
    named = predictions(torch.stack(list(means.values())), description)
    return {records[index].video: row for index, row in zip(means, named, strict=True)}


def mlap_layers(opened: OpenedModel) -> tuple[int, ...]:
    """Blocks whose tokens an MLAP probe reads beside the tower's output."""
    return evenly_spaced(len(video_tower(opened.model).blocks), MLAP_LAYERS - 1)


def _labelled(
    data: str | Path, class_names: Sequence[str] | None = None, *, names_file: str | Path | None = None
) -> TargetSet:
    _, targets = read_videos(data, class_names, names_file=names_file)
    if targets is None:
        raise UserError(f"{data}: its videos come without labels, expected classes")
    return targets


def _check_kind(test: TargetSet, train: TargetSet, source: str) -> None:
    if test.multi_label != train.multi_label:
        kinds = ("one class", "several classes")
        raise UserError(f"{source}: clips have {kinds[test.multi_label]}, those of training {kinds[train.multi_label]}")


def _reading(opened: OpenedModel, protocol: EvaluationProtocol) -> dict[str, Any]:
    """How clips are read, for descriptions."""
    config = opened.model.config
    return {
        "views": protocol.views, "sampling": protocol.sampling, "frame_stride": protocol.frame_stride,
        "fit": protocol.fit or opened.fit,
        "precision": protocol.precision, "num_frames": config.num_frames, "image_size": config.image_size,
    }  # fmt: skip


def _scores(scores: Any, bad_files: dict[str, str]) -> dict[str, Any]:
    section = "multi_label" if isinstance(scores, MultiLabelReport) else "classification"
    return scores_report(section, scores, bad_files)


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
