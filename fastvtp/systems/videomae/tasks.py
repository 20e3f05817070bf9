"""VideoMAE's tasks: reconstruction of masked clips, and classification."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from fastvtp.data.annotations import load_videos
from fastvtp.data.augmentation import mixup, soft_targets
from fastvtp.data.classes import load_classes, write_class_names
from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.text import Tokenizer
from fastvtp.model_folder import CLASSES_NAME
from fastvtp.training.config import TrainConfig
from fastvtp.training.task import (
    Loss,
    Task,
)

logger = logging.getLogger(__name__)


class FinetuneClassification(Task):
    """One class for each video."""

    reads_text = False
    fresh = ("head",)

    def __init__(self, config: TrainConfig, checkpoint: Path | None = None):
        super().__init__(config, checkpoint)
        classes = load_classes(config.data.train, names_file=config.data.class_names)
        if classes.unnamed and config.data.reading.flip:
            logger.warning(
                "%s: its classes are bare numbers, and clips are mirrored even where a class names a direction: give "
                "data.class_names=FILE, or data.flip=false", config.data.train
            )  # fmt: skip
        self.records, self.class_names = classes.records, classes.class_names
        self._labels = torch.tensor(classes.labels)

    @property
    def labels(self) -> Sequence[Any]:
        return self.class_names, self._labels.tolist()

    def complete(self, tokenizer: Tokenizer | None) -> Any:
        return dataclasses.replace(super().complete(tokenizer), num_classes=len(self.class_names))

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch) -> Loss:
        labels = self._labels[batch.sample_ids].to(model.device, non_blocking=True)
        video, targets = batch.video, soft_targets(labels, len(self.class_names), self.config.label_smoothing)
        if self.config.mixup:
            video, targets = mixup(video, targets, self.config.mixup, seed=self.config.seed, step=batch.step)
        logits = compute(video).float()
        # of a mixed clip, the class with the larger share
        accuracy = (logits.detach().argmax(1) == targets.argmax(1)).float().mean()
        return cross_entropy(logits, targets), {"accuracy": accuracy}

    def write_labels(self, folder: Path) -> None:
        write_class_names(folder / CLASSES_NAME, self.class_names)


class PretrainVideoMAE(Task):
    """Reconstruction of videos; captions need not exist, and are not read where they do."""

    reads_text = False

    def __init__(self, config: TrainConfig, checkpoint: Path | None = None):
        super().__init__(config, checkpoint)
        self.records = load_videos(config.data.train)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch) -> Loss:
        output = compute(batch.video, model.plan(batch.sample_ids, seed=self.config.seed, step=batch.step))
        return output.loss, output.terms
