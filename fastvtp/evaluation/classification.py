"""Video classification: top-k and per-class accuracy, and which class is taken for which."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastvtp import processes
from fastvtp.data.classes import ClassificationSet
from fastvtp.evaluation.accuracy import percent, top_k_credit
from fastvtp.evaluation.inference import Module, inference
from fastvtp.evaluation.views import average_over_views, left_out

TOP_K = (1, 5)


class ClassificationModel(Module, Protocol):
    """What `evaluate_classification` asks of a model, as `VideoClassifier` is one."""

    def __call__(self, video: Tensor) -> Tensor:
        """Compute the logits [B, classes] of clips, uint8 [B, T, H, W, C]."""
        ...


@dataclass(frozen=True)
class ClassificationReport:
    """Accuracies in percent of the clips that were scored.

    Attributes:
        top: accuracy by name, "top1" and, where there are that many classes, "top5".
        per_class: top-1 accuracy of the clips of each class that has any, by its name.
        mean_per_class: mean of these, in which rare classes count as much as frequent ones.
        confusion: how many clips of one class are predicted as another or as itself, `confusion[true][predicted]`,
            without zeros.
        chance: top-1 accuracy of a blind guess.
        count: clips scored.
        left_out: videos that were not, for the loader could not decode them; no accuracy counts them.
    """

    top: dict[str, float]
    per_class: dict[str, float]
    mean_per_class: float
    confusion: dict[str, dict[str, int]]
    chance: float
    count: int
    left_out: list[str]


def evaluate_classification(
    model: ClassificationModel,
    loader: Iterable[Any],
    classes: ClassificationSet,
    *,
    device: torch.device | str,
    progress: bool = True,
) -> ClassificationReport:
    """Classify every clip of `loader`, an evaluation loader of `classes.records`, in inference mode.

    Probabilities are averaged over the views of a clip (VideoMAE). Equal probabilities score as in a random order.
    On several processes, whose loaders deal the batches out, all call this, and get the report of one.

    Raises:
        UserError: no clip could be decoded.
        ValueError: the model has another number of classes, its probabilities are not finite, or the loader reads
            another list.
    """
    names = classes.class_names

    def probabilities(batch: Any) -> Tensor:
        logits = model(batch.video.to(device, non_blocking=True))
        if logits.shape != (len(batch.captions), len(names)):
            raise ValueError(f"logits must be [{len(batch.captions)}, {len(names)} classes], got {list(logits.shape)}")
        # float64: in float32 the probabilities of unlikely classes underflow, and would tie at zero
        return logits.double().softmax(-1).cpu()

    with inference(model):
        means = average_over_views(
            loader, classes.records, probabilities, description="classification", progress=progress
        )
    return processes.first_decides(lambda: _report(means, classes))


def _report(means: Mapping[int, Tensor], classes: ClassificationSet) -> ClassificationReport:
    names = classes.class_names
    ks = [k for k in TOP_K if k <= len(names)]
    credits: dict[int, list[float]] = {k: [] for k in ks}
    by_class: defaultdict[str, list[float]] = defaultdict(list)
    confusion: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for index, row in means.items():
        label = classes.labels[index]
        for k in ks:
            credits[k].append(top_k_credit(row, label, k))
        by_class[names[label]].append(credits[1][-1])
        confusion[names[label]][names[int(row.argmax())]] += 1
    per_class = {name: percent(by_class[name]) for name in names if name in by_class}
    return ClassificationReport(
        top={f"top{k}": percent(values) for k, values in credits.items()},
        per_class=per_class,
        mean_per_class=sum(per_class.values()) / len(per_class),
        confusion={name: dict(confusion[name]) for name in per_class},
        chance=100 / len(names),
        count=len(means),
        left_out=left_out(classes.records, means),
    )
