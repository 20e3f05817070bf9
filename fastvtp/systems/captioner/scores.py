"""Captions and answers of a frozen language model that sees clips: writing them, and how often they are right."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvtp import processes
from fastvtp.data.questions import AnswerVocabulary, QuestionSet
from fastvtp.data.records import VideoRecord
from fastvtp.errors import UserError
from fastvtp.evaluation.accuracy import percent
from fastvtp.evaluation.dealing import over_batches, over_shares, progress_bar
from fastvtp.evaluation.inference import inference
from fastvtp.evaluation.question_answering import (
    MultipleChoiceReport,
    OpenEndedReport,
    report_choices,
    report_open_ended,
)
from fastvtp.evaluation.views import average_over_views, left_out
from fastvtp.files import write_atomically
from fastvtp.systems.captioner.language_model import few_shot_prompt
from fastvtp.systems.captioner.model import VideoCaptioner

_PUNCTUATION = re.compile(r"[^\w\s]")


@dataclass(frozen=True)
class CaptionScore:
    """In percent: captions that equal one of their clip's references but for case, punctuation and space; and their
    words in common with the best reference, as the mean over clips of 2·common / (caption + reference)."""

    exact: float
    overlap: float


@dataclass(frozen=True)
class CaptionReport:
    """How right captions are.

    Attributes:
        captions: those written.
        shuffled: the same captions against the references of the next clip: what knowing the kind of clip is worth.
        text_only: of the one caption that the language model writes without a clip; None where it cannot begin
            without one (no prompt, and a tokenizer without a start token).
        different: how many of the captions differ.
        count: clips scored.
        left_out: videos that were not, for the loader could not decode them.
    """

    captions: CaptionScore
    shuffled: CaptionScore
    text_only: CaptionScore | None
    different: int
    count: int
    left_out: list[str]


@dataclass(frozen=True)
class AnswerReport:
    """answers: of the model that sees the clips. text_only: accuracy in percent of the language model alone, from the
    same prompts and candidates."""

    answers: OpenEndedReport | MultipleChoiceReport
    text_only: float


def write_captions(
    model: VideoCaptioner,
    loader: Iterable[Any],
    *,
    device: torch.device | str,
    num_beams: int = 1,
    prompt: str | None = None,
    progress: bool = True,
) -> dict[int, str]:
    """Write a caption of every clip of an evaluation loader, by `sample_ids`, in inference mode.

    prompt: words that the captions follow; None: those of training. On several processes, whose loaders deal the
    batches out, all call this and get all captions. Raises UserError where no clip could be decoded.
    """

    def written(batch: Any) -> list[tuple[int, str]]:
        prompts = None if prompt is None else [prompt] * len(batch.video)
        texts = model.caption(batch.video.to(device, non_blocking=True), prompts, num_beams=num_beams)
        return list(zip(batch.sample_ids.tolist(), texts, strict=True))

    captions: dict[int, str] = {}
    with inference(model):
        for found in over_batches(loader, written, description="captions", progress=progress):
            captions |= found
    if not captions:
        raise UserError("no clip could be decoded: there is nothing to caption")
    return captions


def evaluate_captions(
    model: VideoCaptioner,
    loader: Iterable[Any],
    records: Sequence[VideoRecord],
    *,
    device: torch.device | str,
    num_beams: int = 1,
    progress: bool = True,
    predictions: Path | None = None,
) -> CaptionReport:
    """Caption every clip of `loader`, an evaluation loader of `records` in one view, and compare with their captions.

    predictions: a `.jsonl` file to write, a line a clip: id, video, caption, references.
    On several processes all call this as they do `write_captions`, and get the report of one.
    Raises UserError where no clip could be decoded.
    """
    captions = write_captions(model, loader, device=device, num_beams=num_beams, progress=progress)
    return processes.first_decides(lambda: _caption_report(model, captions, records, num_beams, predictions))


def _caption_report(
    model: VideoCaptioner,
    captions: Mapping[int, str],
    records: Sequence[VideoRecord],
    num_beams: int,
    predictions: Path | None,
) -> CaptionReport:
    references = [records[index].captions for index in captions]
    if predictions is not None:
        write_caption_lines(predictions, captions, records, references=True)
    alone = caption_without_clip(model, num_beams=num_beams)
    return CaptionReport(
        captions=score_captions(list(captions.values()), references),
        shuffled=score_captions(list(captions.values()), references[1:] + references[:1]),
        text_only=None if alone is None else score_captions([alone] * len(captions), references),
        different=len(set(captions.values())),
        count=len(captions),
        left_out=left_out(records, captions),
    )


def caption_without_clip(model: VideoCaptioner, *, num_beams: int = 1) -> str | None:
    """Return what the language model writes behind the prompt alone; None where it has nothing to begin with."""
    if not model.language.tokenize(model.config.prompt, "")[0]:
        return None
    (text,) = model.language.generate(
        None, [model.config.prompt], max_tokens=model.config.max_tokens, num_beams=num_beams
    )
    return text


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScore:
    """Score captions against the references of their clips; at least one clip, and one reference each."""
    exact, overlap = [], []
    for caption, known in zip(captions, references, strict=True):
        exact.append(float(any(_words(caption) == _words(text) for text in known)))
        overlap.append(max(word_overlap(caption, text) for text in known))
    return CaptionScore(percent(exact), percent(overlap))


def word_overlap(caption: str, reference: str) -> float:
    """Return words in common, each as often as both have it, 2·common / (all of both): 0 to 1."""
    ours, theirs = _words(caption), _words(reference)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / max(len(ours) + len(theirs), 1)


def write_caption_lines(
    path: Path, captions: Mapping[int, str], records: Sequence[VideoRecord], *, references: bool = False
) -> None:
    """Write a `.jsonl` of captions by place in `records`: id, video (of a span start and end), caption and,
    where wanted, references."""
    lines = []
    for index, caption in captions.items():
        line: dict[str, Any] = {**records[index].named(), "caption": caption}
        if references:
            line["references"] = records[index].captions
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(lines).encode())


@dataclass(frozen=True)
class QuestionForm:
    """How questions are put to a language model.

    vocabulary: the candidates of every question; None: each question's own options. examples: solved questions
    (question, answer) that every prompt begins with, in words alone. length: see `LanguageModel.log_likelihoods`.
    """

    vocabulary: AnswerVocabulary | None = None
    examples: Sequence[tuple[str, str]] = ()
    length: str = "sum"


def evaluate_answers(
    model: VideoCaptioner,
    loader: Iterable[Any],
    questions: QuestionSet,
    form: QuestionForm,
    *,
    device: torch.device | str,
    progress: bool = True,
    training: QuestionSet | None = None,
    predictions: Path | None = None,
) -> AnswerReport:
    """Answer each question of `loader`, an evaluation loader of `questions.records`, by the candidate that most likely
    follows its clip and prompt; log-likelihoods are averaged over the views of a clip.

    training, predictions: as in `evaluate_open_ended`. On several processes, whose loaders deal the batches out, all
    call this, and get the report of one.

    Raises UserError where no clip could be decoded.
    """
    vocabulary = form.vocabulary

    def asked(indices: Sequence[int]) -> tuple[list[str], list[Sequence[str]]]:
        """Return prompts and candidates."""
        template = model.config.question_template
        return (
            [few_shot_prompt(questions.records[index].captions[0], form.examples, template) for index in indices],
            [questions.options[index] if vocabulary is None else vocabulary.answers for index in indices],
        )

    def scores(batch: Any) -> list[Tensor]:
        video = batch.video.to(device, non_blocking=True)
        found = model.rank(video, *asked(batch.sample_ids.tolist()), length=form.length)
        return [row.cpu() for row in found]

    def without_clip(index: int) -> Tensor:
        (row,) = model.language.log_likelihoods(None, *asked([index]), length=form.length)
        return row.cpu()

    with inference(model):
        seeing = average_over_views(loader, questions.records, scores, description="answers", progress=progress)
        own = len(processes.share(list(seeing)))
        with progress_bar(own, description="answers without clips", unit="question", progress=progress) as bar:
            rows = over_shares(list(seeing), without_clip, done=lambda _: bar.update())
        unseeing = dict(zip(seeing, rows, strict=True))

    def report(means: Mapping[int, Tensor], path: Path | None = None) -> OpenEndedReport | MultipleChoiceReport:
        if vocabulary is None:
            return report_choices(means, questions, predictions=path)
        return report_open_ended(means, questions, vocabulary, training=training, predictions=path)

    return processes.first_decides(lambda: AnswerReport(report(seeing, predictions), report(unseeing).accuracy))


def few_shot_examples(questions: QuestionSet, count: int) -> list[tuple[str, str]]:
    """Return the first `count` solved questions (question, answer), of different kinds as long as there are such.

    Raises UserError where there are fewer.
    """
    if count > len(questions.records):
        raise UserError(f"{count} solved questions are wanted, the training list has {len(questions.records)}")
    firsts = list(dict(reversed([(kind, place) for place, kind in enumerate(questions.kinds)])).values())[::-1]
    others = [place for place in range(len(questions.records)) if place not in set(firsts)]
    chosen = [*sorted(firsts), *others][:count]
    return [(questions.records[place].captions[0], questions.answers[place]) for place in chosen]


def _words(text: str) -> list[str]:
    return _PUNCTUATION.sub(" ", text.lower()).split()
