"""Whole runs of a captioner: captions of a list of videos, scores of captions, answers to a list of questions."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvtp import processes
from fastvtp.data.annotations import VideoRecord, load_annotations, load_videos
from fastvtp.data.formats.source import ListSource
from fastvtp.data.loader import VideoTextLoader
from fastvtp.data.questions import (
    AnswerVocabulary,
    QuestionSet,
    has_options,
    lists_questions,
    load_questions,
)
from fastvtp.errors import UserError
from fastvtp.evaluation.dealing import joined
from fastvtp.evaluation.protocol import EvaluationProtocol
from fastvtp.evaluation.report import bad_file_report, scores_report
from fastvtp.evaluation.scoring import ScoreRequest, evaluation_loader
from fastvtp.model_folder import OpenedModel, open_model, weights_of
from fastvtp.systems.captioner.features import attach_backbone
from fastvtp.systems.captioner.model import VideoCaptioner
from fastvtp.systems.captioner.scores import (
    QuestionForm,
    evaluate_answers,
    evaluate_captions,
    few_shot_examples,
    write_caption_lines,
    write_captions,
)


@dataclass(frozen=True, kw_only=True)
class Answering:
    """How the answers of a language model are chosen."""

    shots: int = 0
    """Solved training questions at the head of each prompt."""
    length: str = "sum"
    """"sum" or "mean" of the log-likelihoods of a candidate's tokens."""
    num_candidates: int = 250
    """Most candidates where questions have no options, the most frequent training answers; VideoPrism, appendix G."""


_PROTOCOL, _ANSWERING = EvaluationProtocol(), Answering()


def open_captioning(
    source: str | Path, device: torch.device, *, backbone: str | None = None, language_model: str | None = None
) -> OpenedModel:
    """Open a captioner as `open_model` does, whose frozen parts may have moved: a run or model folder, and a folder of
    `transformers`; None: where they were in training. Raises UserError for another model."""
    opened = open_model(source, device)
    moved = {"backbone": None if backbone is None else str(weights_of(backbone)), "language_model": language_model}
    model = _checked(opened)
    model.config = dataclasses.replace(model.config, **{name: new for name, new in moved.items() if new is not None})
    return opened


def caption_videos(
    opened: OpenedModel,
    data: str | os.PathLike[str],
    output: Path,
    *,
    protocol: EvaluationProtocol = _PROTOCOL,
    num_beams: int = 1,
    prompt: str | None = None,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Write a caption of each video of `data`, a list or a folder, to the `.jsonl` file `output`: id, video, caption.

    Returns num_clips and bad_files, the videos left out. The processes of a group, all of which call this, share the
    videos, and the first writes the file. Raises UserError for another model or several views.
    """

    def prepare() -> tuple[VideoCaptioner, Sequence[VideoRecord], VideoTextLoader]:
        model, records = _captioner(opened, protocol), load_videos(data)
        output.parent.mkdir(parents=True, exist_ok=True)
        return model, records, evaluation_loader(opened, records, protocol)

    model, records, loader = processes.all_or_none(prepare)
    with loader:
        captions = write_captions(
            model, loader, device=model.device, num_beams=num_beams, prompt=prompt, progress=progress_bar
        )
        processes.first_decides(lambda: write_caption_lines(output, captions, records))
        return {"num_clips": len(captions), "bad_files": bad_file_report(joined(loader.bad_files))}


def answer_questions(
    opened: OpenedModel,
    data: str | os.PathLike[str],
    *,
    protocol: EvaluationProtocol = _PROTOCOL,
    train_data: str | os.PathLike[str] | None = None,
    answering: Answering = _ANSWERING,
    predictions: Path | None = None,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Answer the questions of `data` by log-likelihood, among their options, or else among the most frequent answers of
    `train_data`.

    predictions: a file to write. Returns the scores, num_test and bad_files; the accuracy of the language model alone
    is text_only. The processes of a group, all of which call this, share the questions and get the report of one.
    Raises UserError for another model and where the training questions are needed and not given.
    """

    def prepare() -> tuple[VideoCaptioner, QuestionSet, QuestionSet | None, QuestionForm, VideoTextLoader]:
        model, questions = _captioner(opened, protocol, one_view=False), load_questions(data)
        training = None if train_data is None else load_questions(train_data)
        vocabulary = None if has_options(questions, str(data)) else _vocabulary(training, answering.num_candidates)
        if answering.shots and training is None:
            raise UserError(
                f"{answering.shots} solved questions are wanted: give the training questions (--train-data FILE)"
            )
        examples = [] if training is None else few_shot_examples(training, answering.shots)
        form = QuestionForm(vocabulary, examples, answering.length)
        return model, questions, training, form, evaluation_loader(opened, questions.records, protocol)

    model, questions, training, form, loader = processes.all_or_none(prepare)
    with loader:
        scores = evaluate_answers(
            model,
            loader,
            questions,
            form,
            device=model.device,
            training=training,
            predictions=predictions,
            progress=progress_bar,
        )
        bad_files = joined(loader.bad_files)
        return scores_report("question_answering", scores.answers, bad_files, text_only=scores.text_only)


def score_captioner(request: ScoreRequest) -> dict[str, Any]:
    """Compute the scores of captions, or of answers where the data lists questions; see
    `fastvtp.evaluation.scoring`."""
    source = ListSource.of(request.data)
    if processes.all_or_none(lambda: lists_questions(source)):
        return answer_questions(
            request.opened,
            source,
            protocol=request.protocol,
            train_data=request.train_data,
            predictions=request.predictions,
            progress_bar=request.progress_bar,
        )

    def prepare() -> tuple[VideoCaptioner, Sequence[VideoRecord], VideoTextLoader]:
        model, records = _captioner(request.opened, request.protocol), load_annotations(source)
        return model, records, evaluation_loader(request.opened, records, request.protocol)

    model, records, loader = processes.all_or_none(prepare)
    with loader:
        scores = evaluate_captions(
            model,
            loader,
            records,
            device=model.device,
            predictions=request.predictions,
            progress=request.progress_bar,
        )
        return scores_report("captioning", scores, joined(loader.bad_files))


def _captioner(opened: OpenedModel, protocol: EvaluationProtocol, *, one_view: bool = True) -> VideoCaptioner:
    """Return the captioner that was opened, with its backbone."""
    model = _checked(opened)
    if one_view and protocol.views != (1, 1):
        raise UserError(f"views {protocol.views}: a caption is written from one view of a clip, expected (1, 1)")
    return attach_backbone(model)


def _checked(opened: OpenedModel) -> VideoCaptioner:
    if not isinstance(opened.model, VideoCaptioner):
        raise UserError(f"{type(opened.model).__name__} writes nothing: expected a run of captioning")
    return opened.model


def _vocabulary(training: QuestionSet | None, size: int) -> AnswerVocabulary:
    if training is None:
        raise UserError("open-ended questions need candidates: give the training questions (--train-data FILE)")
    return AnswerVocabulary.build(training.answers, size)
