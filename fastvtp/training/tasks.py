"""The tasks by name, and the pretraining of SimVTP and VideoMAE."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastvtp.data.annotations import load_videos
from fastvtp.data.loader import VideoTextBatch
from fastvtp.training.alpro_tasks import FinetuneAlproQA, FinetuneAlproRetrieval, PretrainAlpro, PretrainPrompter
from fastvtp.training.captioning_tasks import FinetuneCaptioning
from fastvtp.training.config import TrainConfig
from fastvtp.training.finetuning_tasks import FinetuneClassification, FinetuneQA, FinetuneRetrieval
from fastvtp.training.prism_tasks import PretrainPrismContrast, PretrainPrismDistillation
from fastvtp.training.task import CaptionedTask, Loss, Task


class PretrainSimVTP(CaptionedTask):
    """Four losses on captioned videos."""


class PretrainVideoMAE(Task):
    """Reconstruction of videos; captions need not exist, and are not read where they do."""

    reads_text = False

    def __init__(self, config: TrainConfig, checkpoint: Path | None = None):
        super().__init__(config, checkpoint)
        self.records = load_videos(config.data.train)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch) -> Loss:
        output = compute(batch.video, model.plan(batch.sample_ids, seed=self.config.seed, step=batch.step))
        return output.loss, output.terms


TASKS: dict[str, type[Task]] = {
    "pretrain_simvtp": PretrainSimVTP,
    "pretrain_videomae": PretrainVideoMAE,
    "finetune_retrieval": FinetuneRetrieval,
    "finetune_qa": FinetuneQA,
    "finetune_classification": FinetuneClassification,
    "finetune_captioning": FinetuneCaptioning,
    "pretrain_prompter": PretrainPrompter,
    "pretrain_alpro": PretrainAlpro,
    "finetune_alpro_retrieval": FinetuneAlproRetrieval,
    "finetune_alpro_qa": FinetuneAlproQA,
    "pretrain_videoprism_contrastive": PretrainPrismContrast,
    "pretrain_videoprism_distillation": PretrainPrismDistillation,
}


def build_task(config: TrainConfig, checkpoint: Path | None = None) -> Task:
    """The task that `config` names, with its training data read. checkpoint: what a resumed run goes on from.

    Raises what reading the data raises.
    """
    return TASKS[config.task](config, checkpoint)
