"""Probes of frozen features: training from a cache or on the fly, and scores over views.

Shape legend: B = clips, C = classes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fastvtp import processes
from fastvtp.data.classes import ClassificationSet, TargetSet
from fastvtp.evaluation.classification import ClassificationModel, ClassificationReport, evaluate_classification
from fastvtp.evaluation.inference import inference
from fastvtp.evaluation.views import average_over_views, left_out
from fastvtp.frozen.adapters import ProbedTower
from fastvtp.frozen.detection import mean_average_precision
from fastvtp.frozen.feature_sets import FeatureSet, TrainingRows
from fastvtp.frozen.probes import Probe, ProbeConfig, build_probe, probe_loss
from fastvtp.frozen.training_heads import HeadTraining, head_config, train_head


@dataclass(frozen=True)
class MultiLabelReport:
    """Average precision in percent of the clips that were scored.

    Attributes:
        mean_average_precision: over the classes that any clip shows.
        per_class: of each of these, by name.
        chance: of a random order: the mean share of clips that show a class.
        count: clips scored.
        left_out: videos that were not, for they could not be decoded.
    """

    mean_average_precision: float
    per_class: dict[str, float]
    chance: float
    count: int
    left_out: list[str]


def train_probe_head(
    features: FeatureSet,
    training: HeadTraining,
    *,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    progress: bool = True,
    **sizes: Any,
) -> tuple[Probe, float]:
    """Train a probe on cached features; returns it, and its last loss.

    sizes: fields of `ProbeConfig`, "kind" first of all. num_workers: processes that read ahead. The same settings give
    the same probe, bit for bit on one machine. Raises UserError where the features came without labels.
    """
    targets = features.targets
    described = features.description
    known = {"width": described["width"], "num_layers": len(described["layers"]) + 1}
    config = head_config(ProbeConfig, num_outputs=len(targets.class_names), **known, **sizes)
    torch.manual_seed(training.seed)
    probe = build_probe(config).to(device)
    rows = TrainingRows(features, targets, rows=training.steps * training.batch_size, seed=training.seed)
    batches = DataLoader(rows, training.batch_size, num_workers=num_workers)
    loss = probe_loss(multi_label=targets.multi_label, label_smoothing=training.label_smoothing)

    def loss_of(batch: list[Tensor]) -> Tensor:
        inputs, targets = (tensor.to(device, non_blocking=True) for tensor in batch)
        return loss(probe(inputs), targets)

    return probe, train_head(probe, batches, loss_of, training, device=device, progress=progress)


def train_probed_tower(
    probed: ProbedTower,
    loader: Iterable[Any],
    targets: TargetSet,
    training: HeadTraining,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> float:
    """Train a probe, and adapters where there are some, on clips as they are decoded; returns the last loss.

    loader: a training loader of `targets.records`.
    """
    loss = probe_loss(multi_label=targets.multi_label, label_smoothing=training.label_smoothing)
    indicators = targets.indicators()

    def loss_of(batch: Any) -> Tensor:
        wanted = indicators[batch.sample_ids.cpu()].to(device, non_blocking=True)
        return loss(probed(batch.video.to(device, non_blocking=True)), wanted)

    return train_head(probed, loader, loss_of, training, device=device, progress=progress)


def evaluate_targets(
    model: ClassificationModel,
    loader: Iterable[Any],
    targets: TargetSet,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ClassificationReport | MultiLabelReport:
    """Score logits that are averaged over the views of a clip: accuracies where each clip has one class, else average
    precision.

    model: a probe with `FeatureSet.batches` as its loader, or a `ProbedTower` with an evaluation loader of
    `targets.records`. targets: numbered as the model's outputs. On several processes, whose loaders deal the batches
    out, all call this, and get the report of one.

    Raises UserError where no clip could be decoded.
    """
    if not targets.multi_label:
        labels = tuple(shown[0] for shown in targets.labels)
        classes = ClassificationSet(targets.records, labels, targets.class_names)
        return evaluate_classification(model, loader, classes, device=device, progress=progress)

    def probabilities(batch: Any) -> Tensor:
        return model(batch.video.to(device, non_blocking=True)).double().sigmoid().cpu()

    with inference(model):
        means = average_over_views(
            loader, targets.records, probabilities, description="classification", progress=progress
        )
    return processes.first_decides(lambda: _multi_label_report(means, targets))


def _multi_label_report(means: Mapping[int, Tensor], targets: TargetSet) -> MultiLabelReport:
    shown = targets.indicators()[list(means)].bool()
    mean, per_class = mean_average_precision(torch.stack(list(means.values())), shown)
    named = {name: value for name, value in zip(targets.class_names, per_class, strict=True) if value == value}
    chance = 100 * shown[:, shown.any(0)].float().mean().item()
    return MultiLabelReport(mean, named, chance, len(means), left_out(targets.records, means))
