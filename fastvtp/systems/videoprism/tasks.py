"""VideoPrism's two stages of pretraining."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvtp.checkpoints.loading import LoadReport, load_released
from fastvtp.checkpoints.reading import Checkpoint
from fastvtp.data.annotations import load_videos
from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.text import Tokenizer
from fastvtp.errors import ConfigError
from fastvtp.model_folder import weights_of
from fastvtp.systems.videoprism.distillation import PrismStudent
from fastvtp.training.config import TrainConfig
from fastvtp.training.task import (
    CaptionedTask,
    Loss,
    Task,
)

logger = logging.getLogger(__name__)


class PretrainPrismContrast(CaptionedTask):
    """Stage 1: the contrast of clips, or pictures, with their captions; each batch is of one data set."""

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch) -> Loss:
        visible = model.plan(batch.video, batch.sample_ids, seed=self.config.seed, step=batch.step)
        on_device = batch.to(model.device, non_blocking=True)
        output = compute(
            on_device.video, on_device.input_ids, on_device.cu_seqlens, batch.max_text_length, on_device.sample_ids,
            visible=visible,
        )  # fmt: skip
        return output.loss, output.terms


class PretrainPrismDistillation(Task):
    """Stage 2: a student of masked clips learns the features that its teacher has of the whole ones."""

    reads_text = False

    def __init__(self, config: TrainConfig, checkpoint: Path | None = None):
        super().__init__(config, checkpoint)
        if checkpoint is None and config.teacher is None and config.init is None:
            raise ConfigError("pretrain_videoprism_distillation needs teacher=PATH, a first stage's run or weights")
        self.records, *more = (load_videos(path) for path in (config.data.train, *config.data.more))
        self.more = tuple(more)

    def prepare(self, model: Any, tokenizer: Tokenizer | None) -> None:
        if self.config.teacher is not None:
            report = load_teacher(model, weights_of(self.config.teacher))
            for change in report.resized:
                logger.info("teacher %s: %s", self.config.teacher, change)
            if self.config.init is None:
                model.start_from_teacher()

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch) -> Loss:
        plan = model.plan(batch.sample_ids, seed=self.config.seed, step=batch.step)
        output = compute(batch.video.to(model.device, non_blocking=True), plan)
        return output.loss, output.terms


def load_teacher(
    model: PrismStudent, source: str | Path | Mapping[str, Tensor] | Checkpoint, *, origin: str | None = None
) -> LoadReport:
    """Copy the video tower and the pooler of a VideoPrism's video-text model, from its first stage or as released, or
    of another student's teacher, into `model.teacher`. Arguments and errors as `load_released`.
    """
    return load_released(model.teacher, source, origin=origin)
