"""Features and probes of frozen models, from videos to files on disk: what the commands of the CLI do.

Features are extracted once and probed many times; adapters and augmentation need the videos in training.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastvtp.data.annotations import FOLDER_LISTS, load_videos, read_lines, videos_under
from fastvtp.data.classes import TargetSet, load_targets
from fastvtp.data.loader import Decoding, VideoTextLoader
from fastvtp.data.reading import ClipReading, ClipShape
from fastvtp.data.source import Batches
from fastvtp.errors import UserError
from fastvtp.evaluation.protocol import EvaluationProtocol
from fastvtp.evaluation.report import bad_file_report, scores_report
from fastvtp.evaluation.scoring import evaluation_loader, reading_of
from fastvtp.evaluation.views import average_over_views
from fastvtp.files import write_atomically
from fastvtp.frozen.adapters import ProbedTower, TowerTap
from fastvtp.frozen.feature_sets import FeatureSet
from fastvtp.frozen.features import FeatureSettings, ListedVideos, extract_features, model_digest
from fastvtp.frozen.localization import (
    detect_segments,
    report_detections,
    score_boxes,
    train_box_head,
    train_segment_head,
)
from fastvtp.frozen.probe_files import ProbeDescription, load_probe, predictions, save_probe
from fastvtp.frozen.probes import ProbeConfig, build_probe
from fastvtp.frozen.probing import MultiLabelReport, evaluate_targets, train_probe_head, train_probed_tower
from fastvtp.frozen.spans import load_spans
from fastvtp.frozen.towers import evenly_spaced, video_tower
from fastvtp.frozen.training_heads import HeadTraining, head_config
from fastvtp.model_folder import OpenedModel

MLAP_LAYERS = 4
_FEATURES, _PROTOCOL, _TRAINING = FeatureSettings(), EvaluationProtocol(), HeadTraining()
_READING, _OUTPUT = ClipReading(), TowerTap()


@dataclass(frozen=True, kw_only=True)
class ProbeVideos:
    """The videos that a probe is trained on and scored on.

    train: what `read_videos` reads, with classes. test: the same, or None for no scores. names_file: names the classes
    of `train`, see `load_targets`.
    """

    train: str | Path
    test: str | Path | None = None
    names_file: str | Path | None = None


@dataclass(frozen=True)
class AnnotatedFeatures:
    """A feature folder, and the list of segments or boxes in the videos that the features are of."""

    features: str | Path
    annotations: str | Path


def read_videos(
    data: str | Path, class_names: Sequence[str] | None = None, *, names_file: str | Path | None = None
) -> ListedVideos:
    """Read videos with their labels where the list, or a folder with one subfolder per class, has some; else videos
    alone.

    Arguments and errors are those of `load_targets` and `load_videos`; a `names_file` without labels is a UserError.
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
        return ListedVideos(targets.records, targets)
    if names_file is not None:
        raise UserError(f"{data}: its videos come without labels, which {names_file} could name")
    return ListedVideos(load_videos(str(path)))


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
    """Write the frozen features of all videos of `data` to the folder `output`; what a killed run left there is
    continued.

    data, names_file: as in `read_videos`. Raises UserError where `output` holds the features of something else, and for
    views that the framing does not have.
    """
    reading_of(opened, protocol)  # raises for such views before the folder is made
    extract_features(
        video_tower(opened.model),
        read_videos(data, names_file=names_file),
        lambda some: evaluation_loader(opened, some, protocol, texts=False),
        output,
        settings,
        protocol=_described(opened, protocol),
        precision=protocol.precision,
        progress=progress_bar,
    )
    return FeatureSet(output)


def train_probe(
    features: str | Path,
    test_features: str | Path | None = None,
    output: str | Path | None = None,
    training: HeadTraining = _TRAINING,
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
    probe, loss = train_probe_head(
        train, training, device=device, num_workers=num_workers, progress=progress_bar, **sizes
    )
    described = train.description
    if output is not None:
        kept = {name: described[name] for name in ("num_frames", "image_size", "sampling", "frame_stride")}
        description = ProbeDescription(
            config=probe.config,
            class_names=train.class_names,
            multi_label=described["multi_label"],
            model_digest=described["model_digest"],
            layers=tuple(described["layers"]),
            pool=described["pool"],
            adapter_dim=None,
            protocol=kept | {"framing": train.framing},
        )
        save_probe(output, probe, description)
    report: dict[str, Any] = {"loss": loss, "num_train": len(train)}
    if test is not None and targets is not None:
        scores = evaluate_targets(
            probe, test.batches(training.batch_size), targets, device=device, progress=progress_bar
        )
        report |= _scores(scores, test.left_out)
    return report


def train_on_videos(
    opened: OpenedModel,
    videos: ProbeVideos,
    output: str | Path | None = None,
    training: HeadTraining = _TRAINING,
    *,
    tap: TowerTap = _OUTPUT,
    reading: ClipReading = _READING,
    protocol: EvaluationProtocol = _PROTOCOL,
    progress_bar: bool = True,
    **sizes: Any,
) -> dict[str, Any]:
    """Train and score a probe as `train_probe` does, on augmented clips as they are decoded, and with adapters in the
    tower where `tap` asks for them.

    reading: of the training clips, which are framed as those of the protocol. protocol: of the test clips; as many
    workers decode those of the training. sizes: fields of `ProbeConfig`. The model is frozen; the adapters are taken
    off it in the end. Returns a report. Raises UserError for a test that could not follow, before the training.
    """
    if videos.test is not None:
        reading_of(opened, protocol)  # raises for views that could not follow
    targets = _labelled(videos.train, names_file=videos.names_file)
    test = None if videos.test is None else _labelled(videos.test, targets.class_names)
    if test is not None:
        _check_kind(test, targets, str(videos.test))
    tower, device, config = video_tower(opened.model), opened.model.device, opened.model.config
    torch.manual_seed(training.seed)
    known = {"width": tower.width, "num_outputs": len(targets.class_names), "num_layers": len(tap.layers) + 1}
    probe = build_probe(head_config(ProbeConfig, **known, **sizes))
    probed = ProbedTower(tower, probe, tap).to(device)
    try:
        with VideoTextLoader(
            targets.records,
            None,
            shape=ClipShape(config.num_frames, config.image_size),
            reading=replace(reading, framing=protocol.reading.framed(opened.framing).framing),
            batches=Batches(batch_size=training.batch_size, train=True, seed=training.seed, num_steps=training.steps),
            decoding=Decoding(num_workers=protocol.num_workers, device=device),
        ) as loader:
            loss = train_probed_tower(probed, loader, targets, training, device=device, progress=progress_bar)
            bad_files = loader.bad_files
        if output is not None:
            description = ProbeDescription(
                config=probe.config,
                class_names=targets.class_names,
                multi_label=targets.multi_label,
                model_digest=model_digest(opened.model),
                layers=tap.layers,
                pool="none",
                adapter_dim=tap.adapter_dim,
                protocol=_described(opened, protocol),
            )
            save_probe(output, probed, description)
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
    """Say by a trained probe what videos show: the probability of each class, the likeliest first, by path (of a span,
    by `VideoRecord.source`).

    Frames come to the model's size as in the probe's training, where the protocol says nothing else. Videos that cannot
    be decoded are left out. Raises UserError where the probe is of another model.
    """
    records = read_videos(data).records
    probed, description = load_probe(probe, video_tower(opened.model))
    framing = protocol.reading.framing or description.reading.framing
    protocol = replace(protocol, reading=replace(protocol.reading, framing=framing))

    def logits(batch: Any) -> torch.Tensor:
        return probed(batch.video).double().cpu()

    try:
        with torch.inference_mode(), evaluation_loader(opened, records, protocol, texts=False) as loader:
            means = average_over_views(loader, records, logits, description="classifying", progress=progress_bar)
    finally:
        probed.detach()
    named = predictions(torch.stack(list(means.values())), description)
    return {records[index].source: row for index, row in zip(means, named, strict=True)}


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
    sizes: fields of the head's config. Returns a report.

    Raises UserError where features and annotations do not fit together.
    """
    features, test_features = FeatureSet(train.features), FeatureSet(test.features)
    test_features.check_fits(features.description, str(train.features))
    known = load_spans(train.annotations)
    truth = load_spans(test.annotations, known.class_names)
    if truth.kind != known.kind:
        raise UserError(f"{test.annotations} lists {truth.kind}, {train.annotations} {known.kind}")
    if detections is not None and known.kind == "segments":
        raise UserError(f"{detections}: detections are for boxes, the annotations are segments")
    boxes = truth if detections is None else load_spans(detections, known.class_names)
    common: dict[str, Any] = {"device": device, "progress": progress_bar, **sizes}
    if known.kind == "segments":
        head, loss = train_segment_head(features, known, training, **common)
        found = detect_segments(head, test_features, device=device)
    else:
        head, loss = train_box_head(features, known, training, **common)
        found = score_boxes(head, test_features, boxes, device=device)
    if output is not None:
        _save_head(Path(output), head, known.class_names, features.description["model_digest"], found)
    scores = report_detections(found, truth, test_features)
    outside = {f"{known.kind}_outside": truth.outside} if known.kind == "boxes" or truth.outside else {}
    return {"loss": loss, **scores_report(known.kind, scores, test_features.left_out), **outside}


def mlap_layers(opened: OpenedModel) -> tuple[int, ...]:
    """Choose the blocks whose tokens an MLAP probe reads beside the tower's output."""
    return evenly_spaced(len(video_tower(opened.model).blocks), MLAP_LAYERS - 1)


def _labelled(
    data: str | Path, class_names: Sequence[str] | None = None, *, names_file: str | Path | None = None
) -> TargetSet:
    """Return the videos of `data` with their classes. Raises UserError where they come without."""
    targets = read_videos(data, class_names, names_file=names_file).targets
    if targets is None:
        raise UserError(f"{data}: its videos come without labels, expected classes")
    return targets


def _check_kind(test: TargetSet, train: TargetSet, source: str) -> None:
    if test.multi_label != train.multi_label:
        kinds = ("one class", "several classes")
        raise UserError(f"{source}: clips have {kinds[test.multi_label]}, those of training {kinds[train.multi_label]}")


def _described(opened: OpenedModel, protocol: EvaluationProtocol) -> dict[str, Any]:
    """Tell how clips are read, as descriptions on disk say it."""
    config = opened.model.config
    return {
        "views": protocol.views,
        **protocol.reading.framed(opened.framing).record(),
        "precision": protocol.precision,
        "num_frames": config.num_frames,
        "image_size": config.image_size,
    }


def _scores(scores: Any, bad_files: dict[str, str]) -> dict[str, Any]:
    section = "multi_label" if isinstance(scores, MultiLabelReport) else "classification"
    return scores_report(section, scores, bad_files)


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
