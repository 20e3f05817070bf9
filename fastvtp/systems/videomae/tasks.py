"""VideoMAE's tasks: reconstruction of masked clips, and classification."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastvtp.data.annotations import load_videos
from fastvtp.data.loader import VideoTextBatch
from fastvtp.modules.rest_of_step import ALONE, RestOfStep
from fastvtp.systems.videomae.classifier import VideoClassifierConfig
from fastvtp.systems.videomae.model import VideoMAEConfig
from fastvtp.training.class_task import ClassTask
from fastvtp.training.config import TrainConfig
from fastvtp.training.task import (
    Loss,
    Task,
)


class FinetuneClassification(ClassTask):
    """Fine-tuning with one class for each video."""

    name = "finetune_classification"
    model_config = VideoClassifierConfig
    fresh = ("head",)


class PretrainVideoMAE(Task):
    """Reconstruction of videos; captions need not exist, and are not read where they do."""

    name = "pretrain_videomae"
    model_config = VideoMAEConfig
    plans = True
    reads_text = False

    def __init__(self, config: TrainConfig, checkpoint: Path | None = None):
        super().__init__(config, checkpoint)
        self.records = load_videos(config.data.train_list)

    def plan(self, model: Any, batch: VideoTextBatch, *, own_pairs: bool = True, device: str | None = None) -> Any:
        return model.plan(batch.sample_ids, seed=self.config.seed, step=batch.step, device=device)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch, rest: RestOfStep = ALONE) -> Loss:
        output = compute(batch.video, self.planned(model, batch))
        return output.loss, output.terms


TASKS = (PretrainVideoMAE, FinetuneClassification)
