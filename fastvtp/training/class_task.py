"""Fine-tuning on videos with classes, whichever model classifies them."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from fastvtp.data.augmentation import mixup, soft_targets
from fastvtp.data.classes import load_classes, write_class_names
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.text import Tokenizer
from fastvtp.errors import ConfigError
from fastvtp.model_folder import CLASSES_NAME
from fastvtp.modules.rest_of_step import ALONE, RestOfStep
from fastvtp.training.config import TrainConfig
from fastvtp.training.task import Loss, Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions:
    """What is set for classification alone."""

    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    mixup: float = 0.0
    """Alpha of the Beta distribution that weighs two mixed clips; 0: none are mixed."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if not 0 <= self.mixup < float("inf"):
            raise ConfigError(f"mixup must be finite and not negative, got {self.mixup}")


class ClassTask(Task):
    """One class for each video.

    The model takes clips, uint8 [B, T, H, W, 3], and gives logits [B, classes]; its configuration has `num_classes`.
    """

    options = ClassificationOptions
    data_settings = ("class_names",)
    reads_text = False

    def __init__(self, config: TrainConfig, checkpoint: Path | None = None):
        super().__init__(config, checkpoint)
        classes = load_classes(config.data.train_list, names_file=config.data.class_names)
        if classes.unnamed and config.data.reading.flip:
            logger.warning(
                "%s: its classes are bare numbers, and clips are mirrored even where a class names a direction: give "
                "data.class_names=FILE, or data.flip=false",
                config.data.train,
            )
        self.records, self.class_names = classes.records, classes.class_names
        self._labels = torch.tensor(classes.labels)

    def read_test_data(self, source: VideoList) -> None:
        load_classes(source, class_names=self.class_names)

    @property
    def labels(self) -> Sequence[Any]:
        return self.class_names, self._labels.tolist()

    def complete(self, tokenizer: Tokenizer | None) -> Any:
        return dataclasses.replace(super().complete(tokenizer), num_classes=len(self.class_names))

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch, rest: RestOfStep = ALONE) -> Loss:
        labels = self._labels[batch.sample_ids].to(model.device, non_blocking=True)
        options, seed = self.config.options, self.config.seed
        video = batch.video.to(model.device, non_blocking=True)
        targets = soft_targets(labels, len(self.class_names), options.label_smoothing)
        if options.mixup:
            video, targets = mixup(video, targets, options.mixup, seed=seed, step=batch.step)
        logits = compute(video).float()
        # of a mixed clip, the class with the larger share
        accuracy = (logits.detach().argmax(1) == targets.argmax(1)).float().mean()
        return cross_entropy(logits, targets), {"accuracy": accuracy}

    def write_labels(self, folder: Path) -> None:
        write_class_names(folder / CLASSES_NAME, self.class_names)
