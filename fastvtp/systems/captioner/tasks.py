"""Captioning and question answering from frozen features: only the resampler before the language model learns."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastvtp.architecture import architecture_of
from fastvtp.data.annotations import load_annotations
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.formats.source import ListSource
from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.questions import (
    QuestionSet,
    lists_questions,
    load_questions,
)
from fastvtp.data.stream import Batches
from fastvtp.data.text import Tokenizer
from fastvtp.errors import ConfigError
from fastvtp.frozen.towers import video_tower
from fastvtp.model_folder import described_config, recorded_framing, weights_of
from fastvtp.modules.rest_of_step import ALONE, Collected, RestOfStep, Wanted
from fastvtp.systems.captioner.features import CachedClips, FeatureLoader, attach_backbone
from fastvtp.systems.captioner.language_model import PromptedTexts, few_shot_prompt, language_width
from fastvtp.systems.captioner.model import VideoCaptionerConfig
from fastvtp.training.config import TrainConfig
from fastvtp.training.task import Loss, Task

logger = logging.getLogger(__name__)


class FinetuneCaptioning(Task):
    """Captioned videos, or questions whose answers are learned as what follows them.

    Clips are decoded, or their features are read from `data.features`. The language model reads with a tokenizer of its
    own, which the loader knows nothing of.
    """

    name = "finetune_captioning"
    model_config = VideoCaptionerConfig
    data_settings = ("features",)
    follows = dict.fromkeys(("model.feature_width", "model.language_width"), "model.backbone and model.language_model")
    reads_text = False

    def __init__(self, config: TrainConfig, checkpoint: Path | None = None):
        super().__init__(config, checkpoint)
        source = ListSource.of(config.data.train_list)
        self.questions: QuestionSet | None = load_questions(source) if lists_questions(source) else None
        self.records = load_annotations(source) if self.questions is None else self.questions.records
        self.completed = with_frozen_sizes(config.model)
        self.cached: CachedClips | None = None
        if config.data.features is not None:
            self.cached = CachedClips(config.data.features, self.records)
            self.cached.check_framing(config.data.framing)
            self.completed = _of_features(self.completed, self.cached)
        elif config.model.backbone is None:
            raise ConfigError("finetune_captioning needs model.backbone=FOLDER, or data.features=FOLDER")
        else:
            _compare_framing(Path(str(self.completed.backbone)), config.data.framing)
        try:
            self.completed.check_widths()
        except ValueError as error:
            raise ConfigError(f"model.{error}") from None

    def read_test_data(self, source: VideoList) -> None:
        if self.config.model.backbone is None:
            raise ConfigError(f"data.test={source}: clips need model.backbone; leave it out where there is none")
        read = ListSource.of(source)
        (load_questions if lists_questions(read) else load_annotations)(read)

    @property
    def labels(self) -> Sequence[Any]:
        cached = () if self.cached is None else (self.cached.digest,)
        return cached if self.questions is None else (*cached, self.questions.answers)

    def complete(self, tokenizer: Tokenizer | None) -> Any:
        return self.completed

    def ready_loader(self, batches: Batches) -> FeatureLoader | None:
        return None if self.cached is None else FeatureLoader(self.cached, batches)

    def collect(self, model: Any, batch: VideoTextBatch, wanted: Wanted) -> Collected:
        texts = self._texts(model, batch)
        return Collected({"tokens": texts.count}, kept=texts)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch, rest: RestOfStep = ALONE) -> Loss:
        if self.cached is None:
            attach_backbone(model)
        texts = self._texts(model, batch) if rest.kept is None else rest.kept
        output = compute(batch.video.to(model.device, non_blocking=True), texts, rest=rest)
        return output.loss, output.terms

    def _texts(self, model: Any, batch: VideoTextBatch) -> PromptedTexts:
        if self.questions is None:
            return model.texts(batch.captions)
        template = self.config.model.question_template
        prompts = [few_shot_prompt(question, template=template) for question in batch.captions]
        return model.texts([self.questions.answers[index] for index in batch.sample_ids.tolist()], prompts)


def with_frozen_sizes(model: VideoCaptionerConfig) -> VideoCaptionerConfig:
    """Return the configuration with the widths of its frozen parts, and the backbone's model folder in place of a run.

    Raises ConfigError where there is no language model, or the backbone reads clips of another size; UserError for
    folders that hold something else.
    """
    if model.language_model is None:
        raise ConfigError("finetune_captioning needs model.language_model=FOLDER, a causal language model")
    values: dict[str, Any] = {"language_width": language_width(model.language_model)}
    if model.backbone is not None:
        folder = weights_of(model.backbone)
        config = described_config(folder)
        for name in ("num_frames", "image_size"):
            if (own := getattr(model, name)) != (read := getattr(config, name)):
                raise ConfigError(f"model.{name} is {own}, the backbone {folder} reads {read}: set model.{name}={read}")
        with torch.device("meta"):
            values |= {
                "backbone": str(folder),
                "feature_width": video_tower(architecture_of(config).model(config)).width,
            }
    return dataclasses.replace(model, **values)


def _compare_framing(backbone: Path, framing: str) -> None:
    if (recorded := recorded_framing(backbone)) not in (None, framing):
        logger.warning(
            "data.framing is %r, but the frozen backbone %s was trained with %r: set data.framing=%s to follow it",
            framing,
            backbone,
            recorded,
            recorded,
        )


def _of_features(model: VideoCaptionerConfig, cached: CachedClips) -> VideoCaptionerConfig:
    """Return the configuration for these features, which must be the backbone's where there is one."""
    if model.backbone is not None:
        cached.check_backbone(model.backbone)
    return dataclasses.replace(model, feature_width=cached.width)


TASKS = (FinetuneCaptioning,)
