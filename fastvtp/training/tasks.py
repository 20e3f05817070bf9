"""What each kind of training adds to the loop: its data, its model's last settings, and the loss of a batch."""

import dataclasses
import hashlib
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastvtp.data.annotations import (
    FOLDER_LISTS,
    VideoRecord,
    annotations_digest,
    load_annotations,
    read_lines,
    video_and_id,
    videos_under,
)
from fastvtp.data.augmentation import mixup, soft_targets
from fastvtp.data.labels import AnswerVocabulary, QuestionSet, load_classes, load_questions
from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.options import option_texts
from fastvtp.data.tokenization import CaptionTokenizer
from fastvtp.errors import UserError
from fastvtp.training.config import TrainConfig

logger = logging.getLogger(__name__)

MIN_TEXT_LENGTH = 3  # [CLS], a token, [SEP]
ANSWERS_NAME, CLASSES_NAME = "answers.json", "classes.json"

Loss = tuple[Tensor, dict[str, Tensor]]  # [] with its graph, and detached values by name, each []


class Task(ABC):
    """One kind of training.

    records: what the loader shows; `sample_ids` of a batch are places in it. reads_text: whether the model takes a
    tokenizer. fresh: parts of the model that start at random even where `init` is of its own architecture.
    """

    records: Sequence[VideoRecord]
    reads_text = True
    fresh: tuple[str, ...] = ()

    def __init__(self, config: TrainConfig):
        self.config = config

    @property
    def texts(self) -> list[str]:
        """What a tokenizer is trained on."""
        return [caption for record in self.records for caption in record.captions]

    @property
    def max_text_length(self) -> int:
        """Tokens that the loader keeps of a text."""
        return self.config.model.max_text_length if self.reads_text else MIN_TEXT_LENGTH

    @property
    def labels(self) -> Sequence[Any]:
        """What the data say beside the records, for the digest."""
        return ()

    def digest(self) -> str:
        """Fingerprint of all training data."""
        digest = annotations_digest(self.records)
        if self.labels:
            digest += hashlib.sha256(json.dumps(self.labels).encode()).hexdigest()[:16]
        return digest

    def complete(self, tokenizer: CaptionTokenizer) -> Any:
        """The model's configuration with what follows from tokenizer and labels."""
        known = {
            "vocab_size": tokenizer.vocab_size,
            "pad_token_id": tokenizer.pad_id,
            "mask_token_id": tokenizer.mask_id,
            "special_token_ids": tuple(sorted(tokenizer.special_ids)),
        }
        fields = {field.name for field in dataclasses.fields(self.config.model)}
        return dataclasses.replace(
            self.config.model, **{name: value for name, value in known.items() if name in fields}
        )

    @abstractmethod
    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch) -> Loss:
        """The loss of a batch and what else to log. compute: `model`, maybe compiled. Random choices follow from
        (config.seed, batch.step) or torch's generators."""

    def write_labels(self, folder: Path) -> None:
        """Write beside the model what its outputs mean."""
        return


class PretrainSimVTP(Task):
    """Four losses on captioned videos."""

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        self.records = load_annotations(config.data.train)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch) -> Loss:
        plan = model.plan(batch.input_ids, batch.text_lengths, batch.sample_ids, seed=self.config.seed, step=batch.step)
        output = compute(batch.video, plan)
        return output.loss, output.terms


class PretrainVideoMAE(Task):
    """Reconstruction of videos; captions need not exist, and are not read where they do."""

    reads_text = False

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        self.records = load_videos(config.data.train)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch) -> Loss:
        output = compute(batch.video, model.plan(batch.sample_ids, seed=self.config.seed, step=batch.step))
        return output.loss, output.terms


class FinetuneRetrieval(Task):
    """The contrast of whole clips with their captions."""

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        self.records = load_annotations(config.data.train)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch) -> Loss:
        on_device = batch.to(model.device, non_blocking=True)
        output = compute(
            on_device.video, on_device.input_ids, on_device.cu_seqlens, batch.max_text_length, on_device.sample_ids
        )
        return output.loss, output.terms


class FinetuneQA(Task):
    """Questions about videos: open-ended, or multiple choice where all questions come with options.

    Open-ended questions whose answer is not among the `max_answers` most frequent ones teach nothing and are left out.
    """

    fresh = ("head",)

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        self.questions = load_questions(config.data.train)
        self.tokenizer: CaptionTokenizer | None = None
        self.vocabulary: AnswerVocabulary | None = None
        if not has_options(self.questions, config.data.train):
            self.vocabulary = AnswerVocabulary.build(self.questions.answers, config.data.max_answers)
            self.questions = self._with_known_answers(self.vocabulary)
        self.records = self.questions.records

    @property
    def texts(self) -> list[str]:
        options = (option for options in self.questions.options for option in options)
        return [*super().texts, *options]

    @property
    def labels(self) -> Sequence[Any]:
        return self.questions.answers, self.questions.options

    def complete(self, tokenizer: CaptionTokenizer) -> Any:
        self.tokenizer = tokenizer
        answers = 1 if self.vocabulary is None else len(self.vocabulary)
        return dataclasses.replace(super().complete(tokenizer), num_answers=answers)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch) -> Loss:
        indices = batch.sample_ids.tolist()
        if self.vocabulary is not None:
            plan = model.plan(batch.input_ids, batch.text_lengths, range(len(indices)))
            scores = compute(batch.video, plan)
            right = torch.tensor([self.vocabulary.index(self.questions.answers[index]) for index in indices])
        else:
            assert self.tokenizer is not None  # `complete` comes before the first batch
            texts = option_texts(self.tokenizer, self.questions, indices, model.config.max_text_length)
            plan = model.plan(texts.input_ids, texts.text_lengths, texts.video_of_text)
            scores, right = texts.by_question(compute(batch.video, plan)[:, 0]), texts.correct
        right = right.to(scores.device, non_blocking=True)
        return cross_entropy(scores, right), {"accuracy": (scores.detach().argmax(1) == right).float().mean()}

    def write_labels(self, folder: Path) -> None:
        if self.vocabulary is not None:
            self.vocabulary.save(folder / ANSWERS_NAME)

    def _with_known_answers(self, vocabulary: AnswerVocabulary) -> QuestionSet:
        given = self.questions
        rows = zip(given.records, given.answers, given.kinds, given.options, strict=True)
        kept = [row for row in rows if vocabulary.index(row[1]) is not None]
        if missing := len(given.records) - len(kept):
            logger.info("%d training questions have none of the %d answers: left out", missing, len(vocabulary))
        records, answers, kinds, options = zip(*kept, strict=True)
        return QuestionSet(records, answers, kinds, options)


class FinetuneClassification(Task):
    """One class for each video."""

    reads_text = False
    fresh = ("head",)

    def __init__(self, config: TrainConfig):
        super().__init__(config)
        classes = load_classes(config.data.train)
        self.records, self.class_names = classes.records, classes.class_names
        self._labels = torch.tensor(classes.labels)

    @property
    def labels(self) -> Sequence[Any]:
        return self.class_names, self._labels.tolist()

    def complete(self, tokenizer: CaptionTokenizer) -> Any:
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
        (folder / CLASSES_NAME).write_text(json.dumps(self.class_names, ensure_ascii=False, indent=0) + "\n")


TASKS: dict[str, type[Task]] = {
    "pretrain_simvtp": PretrainSimVTP,
    "pretrain_videomae": PretrainVideoMAE,
    "finetune_retrieval": FinetuneRetrieval,
    "finetune_qa": FinetuneQA,
    "finetune_classification": FinetuneClassification,
}


def build_task(config: TrainConfig) -> Task:
    """The task that `config` names, with its training data read. Raises what reading them raises."""
    return TASKS[config.task](config)


def has_options(questions: QuestionSet, source: str) -> bool:
    """Whether the questions are multiple choice. Raises UserError where some are and some are not."""
    without = sum(not options for options in questions.options)
    if 0 < without < len(questions.options):
        counts = f"{without} of {len(questions.options)} questions"
        raise UserError(f"{source}: {counts} have no options: expected options in all or in none")
    return without == 0


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


def no_text() -> CaptionTokenizer:
    """A tokenizer for models that read no text: the loader asks for one."""
    return CaptionTokenizer.train(["no text"], vocab_size=30)
