"""Fine-tuning on questions about videos, whichever model answers them."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from fastvtp.data.formats.lists import VideoList
from fastvtp.data.loader import VideoTextBatch
from fastvtp.data.questions import AnswerVocabulary, QuestionSet, has_options, load_questions, option_texts
from fastvtp.data.text import Tokenizer
from fastvtp.errors import ConfigError
from fastvtp.model_folder import ANSWERS_NAME
from fastvtp.modules.rest_of_step import ALONE, RestOfStep
from fastvtp.training.config import TrainConfig
from fastvtp.training.task import Loss, Task

logger = logging.getLogger(__name__)


class QuestionTask(Task):
    """Questions about videos: open-ended, or multiple choice where all questions come with options.

    The model is asked by `plan(input_ids, text_lengths, video_of_text)`, and answers with scores [texts, answers].

    Open-ended questions whose answer is not among the `max_answers` most frequent ones teach nothing and are left out.
    """

    def __init__(self, config: TrainConfig, checkpoint: Path | None = None):
        super().__init__(config, checkpoint)
        self.questions = load_questions(config.data.train_list)
        self.tokenizer: Tokenizer | None = None
        self.vocabulary: AnswerVocabulary | None = None
        if not has_options(self.questions, config.data.train):
            self.vocabulary = AnswerVocabulary.build(self.questions.answers, config.data.max_answers)
            self.questions = self._with_known_answers(self.vocabulary)
        self.records = self.questions.records

    def read_test_data(self, source: VideoList) -> None:
        if not has_options(load_questions(source), str(source)) and self.vocabulary is None:
            raise ConfigError(f"data.test={source}: its questions have no options, those of data.train do")

    @property
    def texts(self) -> list[str]:
        options = (option for options in self.questions.options for option in options)
        return [*super().texts, *options]

    @property
    def labels(self) -> Sequence[Any]:
        return self.questions.answers, self.questions.options

    def complete(self, tokenizer: Tokenizer | None) -> Any:
        self.tokenizer = tokenizer
        answers = 1 if self.vocabulary is None else len(self.vocabulary)
        return dataclasses.replace(super().complete(tokenizer), num_answers=answers)

    def loss(self, compute: Callable[..., Any], model: Any, batch: VideoTextBatch, rest: RestOfStep = ALONE) -> Loss:
        indices = batch.sample_ids.tolist()
        if self.vocabulary is not None:
            plan = model.plan(batch.input_ids, batch.text_lengths, range(len(indices)))
            scores = compute(batch.video, plan)
            right = torch.tensor([self.vocabulary.index(self.questions.answers[index]) for index in indices])
        else:
            assert self.tokenizer is not None  # `complete` comes before the first batch
            texts = option_texts(self.tokenizer, self.questions, indices, self.max_text_length)
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
