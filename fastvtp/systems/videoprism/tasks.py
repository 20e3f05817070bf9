"""VideoPrism's two stages of pretraining, and fine-tuning end to end: for retrieval, and for classification."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvtp.checkpoints.loading import LoadReport, load_checkpoint
from fastvtp.checkpoints.reading import Checkpoint
from fastvtp.data.annotations import load_videos
from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.text import Tokenizer
from fastvtp.errors import ConfigError
from fastvtp.model_folder import weights_of
from fastvtp.modules.rest_of_step import ALONE, Collected, RestOfStep, Wanted
from fastvtp.systems.videoprism.distillation import PrismStudent, PrismStudentConfig
from fastvtp.systems.videoprism.encoder import PrismClassifierConfig
from fastvtp.systems.videoprism.video_text import VideoTextPrismConfig
from fastvtp.training.class_task import ClassTask
from fastvtp.training.config import TrainConfig, a_path
from fastvtp.training.task import (
    CaptionedTask,
    Loss,
    Task,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ContrastOptions:
    """What is set for the contrast of clips and texts alone."""

    video_init: str | None = field(default=None, metadata=a_path("a checkpoint file or folder"))
    """Weights whose video encoder replaces that of `init`, such as those of a second stage, or an image tower for the
    blocks within frames."""


class PretrainPrismContrast(CaptionedTask):
    """Stage 1: the contrast of clips, or pictures, with their captions; each batch is of one data set."""

    name = "pretrain_videoprism_contrastive"
    model_config = VideoTextPrismConfig
    options = ContrastOptions
    contrasts = plans = True
    data_settings = ("images", "more")

    def initial_weights(self, model: Any) -> Iterator[tuple[str | None, str | None, Any]]:
        yield from super().initial_weights(model)
        yield self.config.options.video_init, None, model.video_encoder

    def plan(self, model: Any, batch: VideoTextBatch, *, own_pairs: bool = True, device: str | None = None) -> Any:
        return model.plan(batch.video, batch.sample_ids, seed=self.config.seed, step=batch.step, device=device)

    def collect(self, model: Any, batch: VideoTextBatch, wanted: Wanted) -> Collected:
        visible = self.planned(model, batch)
        found = model.collect(*self.whole(model, batch), wanted=wanted, visible=visible)
        return replace(found, kept=visible)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch, rest: RestOfStep = ALONE) -> Loss:
        sample_ids = batch.sample_ids.to(model.device, non_blocking=True)
        visible = self.planned(model, batch) if rest.kept is None else rest.kept
        output = compute(*self.whole(model, batch), sample_ids=sample_ids, visible=visible, rest=rest)
        return output.loss, output.terms


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """What is set for the second stage alone."""

    teacher: str | None = field(default=None, metadata=a_path("a checkpoint file or folder", free_on_resume=True))
    """The run or checkpoint of the first stage."""


class PretrainPrismDistillation(Task):
    """Stage 2: a student of masked clips learns the features that its teacher has of the whole ones."""

    name = "pretrain_videoprism_distillation"
    model_config = PrismStudentConfig
    options = DistillationOptions
    data_settings = ("more",)
    plans = True
    reads_text = False

    def __init__(self, config: TrainConfig, checkpoint: Path | None = None):
        super().__init__(config, checkpoint)
        if checkpoint is None and config.options.teacher is None and config.init is None:
            raise ConfigError("pretrain_videoprism_distillation needs teacher=PATH, a first stage's run or weights")
        self.records, *more = (load_videos(listed) for listed in (config.data.train_list, *config.data.more_lists))
        self.more = tuple(more)

    def prepare(self, model: Any, tokenizer: Tokenizer | None) -> None:
        if (teacher := self.config.options.teacher) is not None:
            report = load_teacher(model, weights_of(teacher))
            for change in report.resized:
                logger.info("teacher %s: %s", teacher, change)
            if self.config.init is None:
                model.start_from_teacher()

    def plan(self, model: Any, batch: VideoTextBatch, *, own_pairs: bool = True, device: str | None = None) -> Any:
        return model.plan(batch.sample_ids, seed=self.config.seed, step=batch.step, device=device)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch, rest: RestOfStep = ALONE) -> Loss:
        output = compute(batch.video.to(model.device, non_blocking=True), self.planned(model, batch))
        return output.loss, output.terms


def load_teacher(
    model: PrismStudent, source: str | Path | Mapping[str, Tensor] | Checkpoint, *, origin: str | None = None
) -> LoadReport:
    """Copy the video tower and the pooler of a VideoPrism's video-text model, from its first stage or as released, or
    of another student's teacher, into `model.teacher`. Arguments and errors as `load_checkpoint`.
    """
    return load_checkpoint(model.teacher, source, origin=origin)


class FinetunePrismRetrieval(PretrainPrismContrast):
    """The contrast of clips with their captions on the data that retrieval is for; `model.token_drop` is 0 in its
    recipes, so that clips are whole."""

    name = "finetune_videoprism_retrieval"
    data_settings = ()


class FinetunePrismClassification(ClassTask):
    """One class for each video: the encoder, attention pooling and a linear layer, all trained."""

    name = "finetune_videoprism_classification"
    model_config = PrismClassifierConfig
    fresh = ("head",)


TASKS = (PretrainPrismContrast, PretrainPrismDistillation, FinetunePrismRetrieval, FinetunePrismClassification)
