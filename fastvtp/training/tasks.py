"""The tasks by name, and the pretraining of SimVTP and VideoMAE."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastvtp.data.annotations import FOLDER_LISTS, VideoRecord, read_lines, video_and_id, videos_under
from fastvtp.data.loader import VideoTextBatch
from fastvtp.errors import UserError
from fastvtp.training.alpro_tasks import FinetuneAlproQA, FinetuneAlproRetrieval, PretrainAlpro, PretrainPrompter
from fastvtp.training.config import TrainConfig
from fastvtp.training.finetuning_tasks import FinetuneClassification, FinetuneQA, FinetuneRetrieval
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
    "pretrain_prompter": PretrainPrompter,
    "pretrain_alpro": PretrainAlpro,
    "finetune_alpro_retrieval": FinetuneAlproRetrieval,
    "finetune_alpro_qa": FinetuneAlproQA,
}


def build_task(config: TrainConfig, checkpoint: Path | None = None) -> Task:
    """The task that `config` names, with its training data read. checkpoint: what a resumed run goes on from.

    Raises what reading the data raises.
    """
    return TASKS[config.task](config, checkpoint)


def load_videos(path: str) -> list[VideoRecord]:
    """Videos without captions: a .jsonl of {"video": path}, or a folder, with such a list or of videos. Each once.

    Raises FileNotFoundError, or UserError with one line for a malformed list and where there are no videos.
    """
    place = Path(path).absolute()
    if place.is_dir():
        listed = [place / name for name in FOLDER_LISTS if (place / name).is_file()]
        place = listed[0] if listed else place
    if place.is_dir():
        found = [(str(video), video.relative_to(place).with_suffix("").as_posix()) for video in videos_under(place)]
    elif place.suffix != ".jsonl":
        raise UserError(f"{path}: expected a .jsonl file or a folder of videos")
    else:
        found = [video_and_id(fields, place.parent, line) for line, fields in read_lines(place)]
    records = {os.path.normpath(video): VideoRecord(name, video, ("",), mirrorable=True) for video, name in found}
    if not records:
        raise UserError(f"{path}: lists no videos")
    return list(records.values())
