"""Video question answering: open-ended over a vocabulary of answers, and multiple choice."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastvtp import processes
from fastvtp.data.questions import AnswerVocabulary, QuestionSet, option_texts
from fastvtp.data.text import Tokenizer
from fastvtp.evaluation.accuracy import percent, top_k_credit
from fastvtp.evaluation.inference import Module, inference
from fastvtp.evaluation.views import average_over_views, left_out
from fastvtp.files import write_atomically


class OpenEndedModel(Module, Protocol):
    """What `evaluate_open_ended` asks of a model, as `VideoQA` is one."""

    def plan(self, input_ids: Tensor, text_lengths: Sequence[int], video_of_text: Sequence[int]) -> Any:
        """Plan a call: input_ids int64 [N] of all texts, on the CPU; the tokens and the clip of each text."""
        ...

    def __call__(self, video: Tensor, plan: Any) -> Tensor:
        """Score texts about clips, uint8 [B, T, H, W, C]: logits [texts, answers], or with one option a text [texts,
        1]."""
        ...


class MultipleChoiceModel(OpenEndedModel, Protocol):
    """What `evaluate_multiple_choice` asks for beside that."""

    @property
    def config(self) -> Any:
        """The configuration, which has `max_text_length`, the most tokens of a text."""
        ...


@dataclass(frozen=True)
class KindScore:
    """Questions of one kind: accuracy in percent, that of its blind baseline (see the report), and their number."""

    accuracy: float
    baseline: float
    count: int


@dataclass(frozen=True)
class OpenEndedReport:
    """Accuracies in percent of the questions that were scored.

    Attributes:
        accuracy: an answer that the vocabulary lacks counts as wrong.
        majority: of giving every question the most frequent answer of the training set.
        majority_by_kind: of giving every question the most frequent training answer of its kind, or of all kinds where
            training has none of it; None without a training set.
        by_kind: accuracy of each kind; its baseline is `majority_by_kind`, else `majority`, among the kind.
        unknown_answers: questions whose answer the vocabulary lacks.
        count: questions scored.
        left_out: videos with questions that were not, for the loader could not decode them; no accuracy counts them.
    """

    accuracy: float
    majority: float
    majority_by_kind: float | None
    by_kind: dict[str, KindScore]
    unknown_answers: int
    count: int
    left_out: list[str]


@dataclass(frozen=True)
class MultipleChoiceReport:
    """Accuracies in percent of the questions that were scored.

    Attributes:
        accuracy: the right option has the highest score; of equal ones each is as likely chosen.
        chance: mean of 1 / options.
        by_kind: accuracy of each kind; its baseline is chance.
        count: questions scored.
        left_out: videos with questions that were not, for the loader could not decode them; no accuracy counts them.
    """

    accuracy: float
    chance: float
    by_kind: dict[str, KindScore]
    count: int
    left_out: list[str]


class _Answered(NamedTuple):
    """A scored question: its place in the set, the answer predicted, and the credits of model and baseline."""

    index: int
    prediction: str
    credit: float
    baseline: float


def evaluate_open_ended(
    model: OpenEndedModel,
    loader: Iterable[Any],
    questions: QuestionSet,
    vocabulary: AnswerVocabulary,
    *,
    device: torch.device | str,
    progress: bool = True,
    training: QuestionSet | None = None,
    predictions: Path | None = None,
) -> OpenEndedReport:
    """Answer every question of `loader`, an evaluation loader of `questions.records`, in inference mode.

    Logits are averaged over the views of a clip. Equal logits score as in a random order.
    On several processes, whose loaders deal the batches out, all call this, and get the report of one;
    the first writes the predictions.

    vocabulary: the model's, its first answer the most frequent of training.
    training: the training questions, for the baseline by kind.
    predictions: a `.jsonl` file to write, a line a question: id, video, question, type, answer, prediction, credit.

    Raises:
        UserError: no clip could be decoded.
        ValueError: the vocabulary is not the model's, logits are not finite, or the loader reads another list.
    """

    def logits(batch: Any) -> Tensor:
        texts = range(len(batch.captions))
        plan = model.plan(batch.input_ids.cpu(), batch.text_lengths, texts)
        scores = model(batch.video.to(device, non_blocking=True), plan)
        if scores.shape != (len(texts), len(vocabulary)):
            raise ValueError(f"logits must be [{len(texts)}, {len(vocabulary)} answers], got {list(scores.shape)}")
        return scores.float().cpu()

    with inference(model):
        means = average_over_views(
            loader, questions.records, logits, description="question answering", progress=progress
        )
    return processes.first_decides(
        lambda: report_open_ended(means, questions, vocabulary, training=training, predictions=predictions)
    )


def report_open_ended(
    means: Mapping[int, Tensor],
    questions: QuestionSet,
    vocabulary: AnswerVocabulary,
    *,
    training: QuestionSet | None = None,
    predictions: Path | None = None,
) -> OpenEndedReport:
    """Report scores [answers] by place in `questions`; arguments and errors as `evaluate_open_ended`.

    What this and `report_choices` do is of one process.
    """
    usual = vocabulary.answers[0]
    usual_of_kind = {} if training is None else _most_frequent_by_kind(training)
    answered, unknown, majority = [], 0, []
    for index, row in means.items():
        answer = questions.answers[index]
        right = vocabulary.index(answer)
        unknown += right is None
        majority.append(float(answer == usual))
        answered.append(
            _Answered(
                index,
                prediction=vocabulary.answers[int(row.argmax())],
                credit=0.0 if right is None else top_k_credit(row, right, 1),
                baseline=float(answer == usual_of_kind.get(questions.kinds[index], usual)),
            )
        )
    if predictions is not None:
        _write_predictions(predictions, questions, answered)
    return OpenEndedReport(
        accuracy=percent(question.credit for question in answered),
        majority=percent(majority),
        majority_by_kind=None if training is None else percent(question.baseline for question in answered),
        by_kind=_by_kind(questions, answered),
        unknown_answers=unknown,
        count=len(answered),
        left_out=left_out(questions.records, means),
    )


def evaluate_multiple_choice(
    model: MultipleChoiceModel,
    loader: Iterable[Any],
    questions: QuestionSet,
    tokenizer: Tokenizer,
    *,
    device: torch.device | str,
    progress: bool = True,
    predictions: Path | None = None,
) -> MultipleChoiceReport:
    """Choose among the options of every question of `loader`, as `evaluate_open_ended`; all questions have options.

    The model scores each option behind its question, see `option_texts`; scores are averaged over the views of a clip.

    Raises:
        UserError: no clip could be decoded; a question without options.
        ValueError: the model is open-ended, scores are not finite, or the loader reads another list.
    """

    def scores(batch: Any) -> list[Tensor]:
        indices = batch.sample_ids.tolist()
        texts = option_texts(tokenizer, questions, indices, model.config.max_text_length)
        plan = model.plan(texts.input_ids, texts.text_lengths, texts.video_of_text)
        scores = model(batch.video.to(device, non_blocking=True), plan)
        if scores.shape != (len(texts.text_lengths), 1):
            raise ValueError(f"scores must be [{len(texts.text_lengths)} options, 1], got {list(scores.shape)}")
        return list(scores[:, 0].float().cpu().split([len(questions.options[index]) for index in indices]))

    with inference(model):
        means = average_over_views(loader, questions.records, scores, description="multiple choice", progress=progress)
    return processes.first_decides(lambda: report_choices(means, questions, predictions=predictions))


def report_choices(
    means: Mapping[int, Tensor], questions: QuestionSet, *, predictions: Path | None = None
) -> MultipleChoiceReport:
    """Report scores [options] by place in `questions`; arguments and errors as `evaluate_multiple_choice`."""
    answered = []
    for index, row in means.items():
        options = questions.options[index]
        right = options.index(questions.answers[index])
        answered.append(_Answered(index, options[int(row.argmax())], top_k_credit(row, right, 1), 1 / len(options)))
    if predictions is not None:
        _write_predictions(predictions, questions, answered)
    return MultipleChoiceReport(
        accuracy=percent(question.credit for question in answered),
        chance=percent(question.baseline for question in answered),
        by_kind=_by_kind(questions, answered),
        count=len(answered),
        left_out=left_out(questions.records, means),
    )


def _most_frequent_by_kind(training: QuestionSet) -> dict[str, str]:
    answers: defaultdict[str, list[str]] = defaultdict(list)
    for kind, answer in zip(training.kinds, training.answers, strict=True):
        answers[kind].append(answer)
    return {kind: AnswerVocabulary.build(given, 1).answers[0] for kind, given in answers.items()}


def _by_kind(questions: QuestionSet, answered: Sequence[_Answered]) -> dict[str, KindScore]:
    kinds: defaultdict[str, list[_Answered]] = defaultdict(list)
    for question in answered:
        kinds[questions.kinds[question.index]].append(question)
    return {
        kind: KindScore(
            percent(question.credit for question in same), percent(question.baseline for question in same), len(same)
        )
        for kind, same in sorted(kinds.items())
    }


def _write_predictions(path: Path, questions: QuestionSet, answered: Sequence[_Answered]) -> None:
    lines = []
    for index, prediction, credit, _ in answered:
        record = questions.records[index]
        line = {
            **record.named(),
            "question": record.captions[0],
            "type": questions.kinds[index],
            "answer": questions.answers[index],
            "prediction": prediction,
            "credit": credit,
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(lines).encode())
