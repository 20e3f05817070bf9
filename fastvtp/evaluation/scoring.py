"""Scoring a model in the way of its architecture."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvtp import processes
from fastvtp.architecture import PRESETS, Architecture, architecture_of, find, of_all_runs
from fastvtp.data.annotations import VideoRecord, load_annotations
from fastvtp.data.classes import ClassificationSet, load_classes
from fastvtp.data.formats.listing import describe_scored_list
from fastvtp.data.loader import Decoding, VideoTextLoader
from fastvtp.data.questions import QuestionSet, has_options, load_questions
from fastvtp.data.reading import ClipReading, ClipShape
from fastvtp.data.sampling import check_framing
from fastvtp.data.stream import Batches
from fastvtp.data.text import MIN_TEXT_LENGTH
from fastvtp.errors import UserError
from fastvtp.evaluation.captions import all_captions
from fastvtp.evaluation.classification import evaluate_classification
from fastvtp.evaluation.dealing import joined
from fastvtp.evaluation.matching import (
    encode_set,
    match_scores,
    matching_metrics,
)
from fastvtp.evaluation.protocol import EvaluationProtocol
from fastvtp.evaluation.question_answering import evaluate_multiple_choice, evaluate_open_ended
from fastvtp.evaluation.report import bad_file_report, scores_report
from fastvtp.evaluation.retrieval import (
    chance_recall,
    encode_retrieval,
    retrieval_metrics,
    right_pairs,
    shuffled_control,
)
from fastvtp.evaluation.thumbnails import Thumbnails, Truth
from fastvtp.model_folder import OpenedModel

logger = logging.getLogger(__name__)

PREDICTIONS_NAME = "predictions.jsonl"
_PROTOCOL = EvaluationProtocol()


@dataclass(frozen=True)
class ScoreRequest:
    """What is to be scored, and how.

    Attributes:
        opened: the model.
        data: what the model is for: captioned videos, questions, or videos with classes; a path or a `VideoList`.
        protocol: how clips are read.
        output: a folder for what shows single clips: the retrieval gallery, or the answer to each question; None: none.
        train_data: the training questions, for the baseline by kind of question; None: without that baseline.
        progress_bar: whether to draw one on the terminal.
    """

    opened: OpenedModel
    data: str | os.PathLike[str]
    protocol: EvaluationProtocol = _PROTOCOL
    output: Path | None = None
    train_data: str | os.PathLike[str] | None = None
    progress_bar: bool = True

    @property
    def predictions(self) -> Path | None:
        """The file for the answers to single questions."""
        return None if self.output is None else self.output / PREDICTIONS_NAME


Scorer = Callable[[ScoreRequest], dict[str, Any]]


def evaluate(
    opened: OpenedModel,
    data: str | os.PathLike[str],
    *,
    protocol: EvaluationProtocol = _PROTOCOL,
    output: Path | None = None,
    train_data: str | os.PathLike[str] | None = None,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Score a model on `data` in the way of its architecture: retrieval, question answering, classification or another.

    Retrieval asks with every caption of a clip, and finds a clip's captions by the best of them; one that several
    clips share is right with each of them (`protocol.shared_captions`). It goes by the matching head where there is
    one, which takes one view of a clip and scores each caption with it.

    The arguments are those of `ScoreRequest`. Returns the scores, num_test, bad_files, data, the list with its format
    and split, and which frames were shown: views, sampling, framing, and fps or frame_stride where these count. The
    processes of a group deal the clips out, each to its own copy of the model; all of them must call this, all get the
    report of one process, and the first writes what is written. Raises UserError for data of another kind, and for a
    model that has no scores.
    """
    score = processes.all_or_none(lambda: _way_of_scoring(opened, protocol))
    if output is not None:
        processes.first_decides(lambda: output.mkdir(parents=True, exist_ok=True))
    request = ScoreRequest(opened, data, protocol, output, train_data, progress_bar)
    with torch.autocast(opened.model.device.type, torch.bfloat16, enabled=protocol.precision == "bfloat16"):
        return {**score(request), "data": describe_scored_list(data), **_shown_frames(opened, protocol)}


def _shown_frames(opened: OpenedModel, protocol: EvaluationProtocol) -> dict[str, Any]:
    """Return for the report which frames were shown: the views of a clip, and how the frames of each are chosen and
    become squares."""
    reading = protocol.reading.framed(opened.framing)
    said: dict[str, Any] = {"views": list(protocol.views), "sampling": reading.sampling, "framing": reading.framing}
    if reading.fps is not None:
        return {**said, "fps": reading.fps}
    return {**said, "frame_stride": reading.frame_stride} if reading.sampling == "strided" else said


def _way_of_scoring(opened: OpenedModel, protocol: EvaluationProtocol) -> Scorer:
    architecture = architecture_of(opened.model)
    if architecture.scored_by is None:
        raise UserError(f"{architecture.name} has no scores of its own: {_ways_to_scores(architecture)}")
    if protocol.add_similarity and architecture.scored_by != "matching":
        raise UserError(f"add_similarity is for models with a matching head, not for {architecture.name}")
    return find_scorer(architecture.scored_by)


def _ways_to_scores(architecture: Architecture) -> str:
    """Say by which commands a model without scores comes to some: by probes of what it gives, and by recipes that start
    from one like it and train one with scores."""
    recipes = of_all_runs("recipe", lambda runs: {recipe.__name__: recipe for recipe in runs.recipes})
    fitting = []
    for name, recipe in recipes.items():
        config = recipe(PRESETS[0])
        trained = architecture_of(config.model)
        if config.task.startswith("finetune_") and trained.scored_by and architecture.name in trained.sources:
            fitting.append(name)
    ways = []
    if architecture.has_embeddings:
        ways.append("`fastvtp zeroshot MODEL DATA` classifies by prompts")
    if architecture.tower is not None:
        ways.append("`fastvtp probe MODEL --train DATA --test DATA` scores a probe on its frozen features")
    if fitting:
        ways.append(f"`fastvtp finetune RECIPE init=MODEL` trains it on, RECIPE one of {', '.join(sorted(fitting))}")
    if not architecture.reads_text:
        ways.append("it reads no texts, so that `fastvtp zeroshot` cannot take it")
    return "; ".join(ways)


def find_scorer(name: str) -> Scorer:
    """Find the way of scoring of that name, of this file or of a system. Raises UserError where there is none."""
    if name in SCORERS:  # before training is imported for the systems' own
        return SCORERS[name]
    return find("way of scoring", name, of_all_runs("way of scoring", lambda runs: runs.scorers, SCORERS))


def _text_length(opened: OpenedModel, protocol: EvaluationProtocol) -> int:
    """Return the number of tokens kept of a text."""
    if not architecture_of(opened.model).reads_text:
        return MIN_TEXT_LENGTH
    positions = opened.model.config.max_text_length
    return min(positions, protocol.max_text_length or positions)


def reading_of(opened: OpenedModel, protocol: EvaluationProtocol) -> ClipReading:
    """Tell how clips are read for this model, framed as in its training where the protocol says nothing else.

    Raises UserError where the views do not go with the framing.
    """
    reading = protocol.reading.framed(opened.framing)
    check_framing(str(reading.framing), protocol.views[1])
    if opened.fps is not None and reading.fps is None:
        logger.info("the model was trained on %g frames a second; clips are read by frames: set fps to go by time",
                    opened.fps)  # fmt: skip
    return reading


def evaluation_loader(
    opened: OpenedModel,
    records: Sequence[VideoRecord],
    protocol: EvaluationProtocol,
    *,
    texts: bool = True,
    dealt: bool = True,
) -> VideoTextLoader:
    """Return every clip of `records` in order, in all its views; of several processes each has its share of batches.

    texts: whether captions are read too, which needs the model's tokenizer if it reads text. dealt: deal the batches
    out to the processes of a group, see `fastvtp.evaluation.dealing`; False: this process reads them all.
    """
    config = opened.model.config
    segments, crops = protocol.views
    views = len(records) * segments * crops
    batch_size = min(protocol.batch_size, views)
    rank, world_size = (processes.rank(), processes.size()) if dealt else (0, 1)
    own = range(rank, -(-views // batch_size), world_size)  # the last round may have no batch for this process
    return VideoTextLoader(
        records,
        opened.tokenizer if texts and architecture_of(opened.model).reads_text else None,
        shape=ClipShape(config.num_frames, config.image_size),
        reading=reading_of(opened, protocol),
        batches=Batches(
            batch_size=batch_size,
            train=False,
            num_steps=len(own),
            rank=rank,
            world_size=world_size,
            views=protocol.views,
        ),
        decoding=Decoding(num_workers=protocol.num_workers, device=opened.model.device),
        max_text_length=_text_length(opened, protocol),
    )


def _encode_clips(encode: Callable, request: ScoreRequest) -> tuple[Any, Thumbnails, Truth, dict[str, Any]]:
    """Encode, by `encode_retrieval` or `encode_set`, the clips of a request with all their captions, their
    thumbnails where there is an output, what belongs together, and their numbers for a report."""
    opened = request.opened

    def prepare() -> tuple[Sequence[VideoRecord], VideoTextLoader]:
        records = load_annotations(request.data)
        return records, evaluation_loader(opened, records, request.protocol)

    records, loader = processes.all_or_none(prepare)
    with loader:
        thumbnails = Thumbnails(loader)
        encoded = encode(
            opened.model,
            loader if request.output is None else thumbnails,
            device=opened.model.device,
            progress=request.progress_bar,
            captions=all_captions(records, opened.tokenizer, _text_length(opened, request.protocol)),
        )
        thumbnails.bring_to_first()
        bad_files = bad_file_report(joined(loader.bad_files))
    texts, videos = len(encoded.captions), len(encoded.ids)
    truth: Truth = {"video_of_text": encoded.video_of_text, "captions": encoded.captions}
    owners = right_pairs(**truth)[0].bincount(minlength=texts)
    shared = int((owners > 1).sum())
    if shared and processes.is_first():
        logger.info(
            "%d of %d captions are those of several videos: %s",
            shared,
            texts,
            "each of these is right" if request.protocol.shared_captions else "only a caption's own is right",
        )
    if not request.protocol.shared_captions:
        truth["captions"], owners = None, torch.ones(texts)
    numbers = {
        "chance_R1": chance_recall(videos, 1) * float(owners.double().mean()),
        "num_test": videos,
        "num_captions": texts,
        "captions_of_several_videos": shared,
        "bad_files": bad_files,
    }
    return encoded, thumbnails, truth, numbers


def score_retrieval(request: ScoreRequest) -> dict[str, Any]:
    """Score every caption against every clip, both ways, in percent."""
    embeddings, thumbnails, truth, numbers = _encode_clips(encode_retrieval, request)

    def report() -> dict[str, Any]:
        similarity = embeddings.similarity()
        metrics = retrieval_metrics(similarity, **truth)
        if request.output is not None:
            both, title = (similarity, similarity), f"Retrieval on {request.data}"
            thumbnails.save_gallery(request.output, embeddings, both, truth, metrics=metrics, title=title)
        return {
            "retrieval": metrics,
            "retrieval_dual_softmax": retrieval_metrics(similarity, dual_softmax=True, **truth),
            "shuffled_control": shuffled_control(similarity, seed=0, **truth),
            **numbers,
        }

    return processes.first_decides(report)


def score_matching(request: ScoreRequest) -> dict[str, Any]:
    """Score captions and clips by the matching head, both ways, in percent; and by the contrast alone."""
    opened, protocol = request.opened, request.protocol
    processes.all_or_none(lambda: _check_one_view(protocol))
    encoded, thumbnails, truth, numbers = _encode_clips(encode_set, request)
    text_to_video, video_to_text = match_scores(
        opened.model,
        encoded,
        top_k=protocol.top_k,
        add_similarity=protocol.add_similarity,
        progress=request.progress_bar,
    )

    def report() -> dict[str, Any]:
        metrics = matching_metrics(text_to_video, video_to_text, **truth)
        if request.output is not None:
            both, title = (text_to_video, video_to_text), f"Retrieval on {request.data}"
            thumbnails.save_gallery(request.output, encoded, both, truth, metrics=metrics, title=title)
        return {
            "retrieval": metrics,
            "retrieval_contrast": retrieval_metrics(encoded.similarity, **truth),
            "shuffled_control": shuffled_control(text_to_video, seed=0, **truth),
            "top_k": protocol.top_k,
            "add_similarity": protocol.add_similarity,
            **numbers,
        }

    return processes.first_decides(report)


def _check_one_view(protocol: EvaluationProtocol) -> None:
    if protocol.views != (1, 1):
        raise UserError(f"views {protocol.views}: the matching head reads one view of a clip, expected (1, 1)")


def score_questions(request: ScoreRequest) -> dict[str, Any]:
    """Compute the accuracy of open-ended answers or of choices, with blind baselines, in percent."""
    opened = request.opened
    common: dict[str, Any] = {
        "device": opened.model.device,
        "progress": request.progress_bar,
        "predictions": request.predictions,
    }

    def prepare() -> tuple[QuestionSet, QuestionSet | None, VideoTextLoader]:
        questions = load_questions(request.data)
        if opened.answers is None and not has_options(questions, str(request.data)):
            raise UserError(f"{request.data}: its questions have no options, and this model chooses among options")
        training = None
        if opened.answers is not None and request.train_data is not None:
            training = load_questions(request.train_data)
        return questions, training, evaluation_loader(opened, questions.records, request.protocol)

    questions, training, loader = processes.all_or_none(prepare)
    with loader:
        if opened.answers is None:
            scores = evaluate_multiple_choice(opened.model, loader, questions, opened.tokenizer, **common)
        else:
            scores = evaluate_open_ended(opened.model, loader, questions, opened.answers, training=training, **common)
        return scores_report("question_answering", scores, joined(loader.bad_files))


def score_classes(request: ScoreRequest) -> dict[str, Any]:
    """Compute top-k and per-class accuracy, in percent."""
    opened = request.opened

    def prepare() -> tuple[ClassificationSet, VideoTextLoader]:
        classes = load_classes(request.data, class_names=opened.class_names)
        return classes, evaluation_loader(opened, classes.records, request.protocol)

    classes, loader = processes.all_or_none(prepare)
    with loader:
        scores = evaluate_classification(
            opened.model, loader, classes, device=opened.model.device, progress=request.progress_bar
        )
        return scores_report("classification", scores, joined(loader.bad_files))


SCORERS: dict[str, Scorer] = {
    "retrieval": score_retrieval,
    "matching": score_matching,
    "questions": score_questions,
    "classes": score_classes,
}
