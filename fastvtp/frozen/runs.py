"""Features and probes of frozen models, from videos to files on disk: what the commands of the CLI do.

Features are extracted once and probed many times; adapters and augmentation need the videos in training.
"""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastvtp import processes
from fastvtp.data.annotations import VideoRecord, load_videos
from fastvtp.data.classes import TargetSet, load_targets
from fastvtp.data.formats.listing import Listing
from fastvtp.data.formats.source import ListSource
from fastvtp.data.loader import Decoding, VideoTextLoader
from fastvtp.data.reading import ClipReading, ClipShape
from fastvtp.data.stream import Batches
from fastvtp.data.windows import Windows, windows_by_record
from fastvtp.errors import UserError
from fastvtp.evaluation.dealing import joined
from fastvtp.evaluation.protocol import EvaluationProtocol
from fastvtp.evaluation.report import bad_file_report, scores_report
from fastvtp.evaluation.scoring import evaluation_loader, reading_of
from fastvtp.evaluation.views import average_over_views
from fastvtp.frozen.adapters import ProbedTower, TowerTap
from fastvtp.frozen.feature_sets import FeatureSet
from fastvtp.frozen.features import FeatureSettings, ListedVideos, extract_features, model_digest
from fastvtp.frozen.probe_files import ProbeDescription, load_probe, predictions, save_probe
from fastvtp.frozen.probes import ProbeConfig, build_probe
from fastvtp.frozen.probing import MultiLabelReport, evaluate_targets, train_probe_head, train_probed_tower
from fastvtp.frozen.towers import VideoTower, evenly_spaced, video_tower
from fastvtp.frozen.training_heads import HeadTraining, head_config
from fastvtp.model_folder import OpenedModel

logger = logging.getLogger(__name__)

MLAP_LAYERS = 4
_FEATURES, _PROTOCOL, _TRAINING = FeatureSettings(), EvaluationProtocol(), HeadTraining()
_READING, _OUTPUT = ClipReading(), TowerTap()


@dataclass(frozen=True, kw_only=True)
class ProbeVideos:
    """The videos that a probe is trained on and scored on.

    train: what `read_videos` reads, with classes. test: the same, or None for no scores. names_file: names the classes
    of `train`, see `load_targets`.
    """

    train: str | os.PathLike[str]
    test: str | os.PathLike[str] | None = None
    names_file: str | Path | None = None


def read_videos(
    data: str | os.PathLike[str], class_names: Sequence[str] | None = None, *, names_file: str | Path | None = None
) -> ListedVideos:
    """Read videos with their labels where the list, or a folder with one subfolder per class, has some; else videos
    alone.

    Arguments and errors are those of `load_targets` and `load_videos`; a `names_file` without labels is a UserError.
    """
    source = ListSource.of(data)
    if Listing(source).tells_classes():
        targets = load_targets(source, class_names, names_file=names_file)
        return ListedVideos(targets.records, targets)
    if names_file is not None:
        raise UserError(f"{source}: its videos come without labels, which {names_file} could name")
    return ListedVideos(load_videos(source))


def extract(
    opened: OpenedModel,
    data: str | os.PathLike[str],
    output: str | Path,
    settings: FeatureSettings = _FEATURES,
    *,
    protocol: EvaluationProtocol = _PROTOCOL,
    windows: Windows | None = None,
    names_file: str | Path | None = None,
    progress_bar: bool = True,
) -> FeatureSet:
    """Write the frozen features of all videos of `data` to the folder `output`; what a killed run left there is
    continued, by any number of processes.

    The processes of a group share the files, see `extract_features`; all of them call this. Batches end where files
    do, so that features do not depend on where an extraction was begun or stopped, nor on the processes: they are of
    the most views up to `protocol.batch_size` that divide those of a file.

    data, names_file: as in `read_videos`. windows: cut the videos so, each window being a clip with features of its own
    and the labels of its video; None: they are not. Raises UserError where `output` holds the features of something
    else, and for views that the framing does not have.
    """

    def prepare() -> tuple[VideoTower, ListedVideos]:
        reading_of(opened, protocol)  # raises for such views before the folder is made
        return video_tower(opened.model), read_videos(data, names_file=names_file)

    tower, videos = processes.all_or_none(prepare)
    described = _described(opened, protocol)
    if windows is not None:
        videos = processes.first_alone(lambda: _in_windows(videos, windows, progress_bar))
        described |= {"window": windows.seconds, "hop": windows.hop}
    batches = _within_files(protocol, settings.shard_size, len(videos.records))
    extract_features(
        tower,
        videos,
        lambda some: evaluation_loader(opened, some, batches, texts=False, dealt=False),
        output,
        settings,
        protocol=described,
        precision=protocol.precision,
        progress=progress_bar,
    )
    return processes.all_or_none(lambda: FeatureSet(output))


def _in_windows(videos: ListedVideos, windows: Windows, progress: bool) -> ListedVideos:
    """Return the windows of videos, with the labels of these."""
    every = windows_by_record(videos.records, windows, progress=progress)
    records = [record for own in every for record in own]
    if videos.targets is None:
        return ListedVideos(records)
    labels = tuple(shown for shown, own in zip(videos.targets.labels, every, strict=True) for _ in own)
    return ListedVideos(records, replace(videos.targets, records=tuple(records), labels=labels))


def _within_files(protocol: EvaluationProtocol, shard_size: int, videos: int) -> EvaluationProtocol:
    """Return the protocol with the largest batches that end where the files of `shard_size` videos do."""
    if videos <= shard_size:
        return protocol
    views = shard_size * math.prod(protocol.views)
    size = next(size for size in range(min(protocol.batch_size, views), 0, -1) if views % size == 0)
    if size < protocol.batch_size and processes.is_first():
        logger.info(
            "batches are of %d views, not of %d: none goes across two files of %d videos, %d views",
            size, protocol.batch_size, shard_size, views,
        )  # fmt: skip
    return replace(protocol, batch_size=size)


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

    sizes: fields of `ProbeConfig` ("kind" and others). Returns a report. Of the processes of a group, all of which call
    this, the first does it alone and the others wait: gradients that are added up over processes would give other
    numbers, and there are minutes of work in it. Raises UserError where both sets of features do not fit together,
    before the training.
    """

    def work() -> dict[str, Any]:
        return _train_probe(
            features, test_features, output, training, device=device, num_workers=num_workers, bar=progress_bar, **sizes
        )

    return processes.first_alone(work)


def _train_probe(
    features: str | Path,
    test_features: str | Path | None,
    output: str | Path | None,
    training: HeadTraining,
    *,
    device: torch.device | str,
    num_workers: int,
    bar: bool,
    **sizes: Any,
) -> dict[str, Any]:
    train = FeatureSet(features)
    test = targets = None
    if test_features is not None:
        test = FeatureSet(test_features)
        test.check_fits(train.description, str(features))
        targets = test.targets.renumbered(train.class_names, test_features)
        _check_kind(targets, train.targets, str(test_features))
    probe, loss = train_probe_head(train, training, device=device, num_workers=num_workers, progress=bar, **sizes)
    described = train.description
    if output is not None:
        kept = {name: described[name] for name in ("num_frames", "image_size", "sampling", "frame_stride")}
        kept["fps"] = described.get("fps")  # of which features of earlier versions say nothing
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
        scores = evaluate_targets(probe, test.batches(training.batch_size), targets, device=device, progress=bar)
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
    off it in the end. Returns a report. The processes of a group, all of which call this, share the test clips; the
    first trains alone, while the others wait, as in `train_probe`. Raises UserError for a test that could not follow,
    before the training.
    """

    def prepare() -> tuple[TargetSet, TargetSet | None, ProbedTower]:
        if videos.test is not None:
            reading_of(opened, protocol)  # raises for views that could not follow
        targets = _labelled(videos.train, names_file=videos.names_file)
        test = None if videos.test is None else _labelled(videos.test, targets.class_names)
        if test is not None:
            _check_kind(test, targets, str(videos.test))
        tower = video_tower(opened.model)
        torch.manual_seed(training.seed)
        known = {"width": tower.width, "num_outputs": len(targets.class_names), "num_layers": len(tap.layers) + 1}
        probe = build_probe(head_config(ProbeConfig, **known, **sizes))
        return targets, test, ProbedTower(tower, probe, tap).to(opened.model.device)

    def train() -> tuple[float, dict[str, str], dict[str, torch.Tensor]]:
        config = opened.model.config
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
                config=probed.probe.config,
                class_names=targets.class_names,
                multi_label=targets.multi_label,
                model_digest=model_digest(opened.model),
                layers=tap.layers,
                pool="none",
                adapter_dim=tap.adapter_dim,
                protocol=_described(opened, protocol),
            )
            save_probe(output, probed, description)
        return loss, bad_files, {name: tensor.cpu() for name, tensor in probed.state_dict().items()}

    device = opened.model.device
    targets, test, probed = processes.all_or_none(prepare)
    try:
        loss, bad_files, trained = processes.first_alone(train)
        if not processes.is_first():
            probed.load_state_dict(trained)
            probed.eval()
        report: dict[str, Any] = {"loss": loss, "num_train": len(targets.records)}
        if test is None:
            return report | {"bad_files": bad_file_report(bad_files)}
        with evaluation_loader(opened, test.records, protocol, texts=False) as loader:
            scores = evaluate_targets(probed, loader, test, device=device, progress=progress_bar)
            return report | _scores(scores, bad_files | joined(loader.bad_files))
    finally:
        probed.detach()


def classify(
    opened: OpenedModel,
    probe: str | Path,
    data: str | os.PathLike[str],
    *,
    protocol: EvaluationProtocol = _PROTOCOL,
    windows: Windows | None = None,
    progress_bar: bool = True,
) -> dict[str, dict[str, float]]:
    """Say by a trained probe what videos show: the probability of each class, the likeliest first, by path (of a span,
    by `VideoRecord.source`).

    Frames come to the model's size as in the probe's training, where the protocol says nothing else. Videos that cannot
    be decoded are left out. windows: say it of each window of the videos; None: of the whole. The processes of a group,
    all of which call this, share the videos. Raises UserError where the probe is of another model.
    """

    def prepare() -> tuple[Sequence[VideoRecord], ProbedTower, ProbeDescription]:
        return read_videos(data).records, *load_probe(probe, video_tower(opened.model))

    records, probed, description = processes.all_or_none(prepare)
    if windows is not None:
        whole = records
        records = processes.first_alone(lambda: _in_windows(ListedVideos(whole), windows, progress_bar).records)
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


def mlap_layers(opened: OpenedModel) -> tuple[int, ...]:
    """Choose the blocks whose tokens an MLAP probe reads beside the tower's output."""
    return evenly_spaced(len(video_tower(opened.model).blocks), MLAP_LAYERS - 1)


def _labelled(
    data: str | os.PathLike[str], class_names: Sequence[str] | None = None, *, names_file: str | Path | None = None
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
