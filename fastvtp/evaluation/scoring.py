"""Opening a model with what stands beside it, and scoring it in the way of its architecture."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvtp.data.annotations import VideoRecord, load_annotations
from fastvtp.data.classes import load_classes, read_class_names
from fastvtp.data.entities import read_entities
from fastvtp.data.loader import Decoding, VideoTextBatch, VideoTextLoader
from fastvtp.data.questions import AnswerVocabulary, has_options, load_questions
from fastvtp.data.reading import DEFAULT_FRAMING, ClipReading, ClipShape
from fastvtp.data.sampling import check_framing
from fastvtp.data.source import Batches
from fastvtp.data.text import MIN_TEXT_LENGTH, Tokenizer
from fastvtp.errors import CheckpointError, UserError
from fastvtp.evaluation.captions import all_captions
from fastvtp.evaluation.classification import evaluate_classification
from fastvtp.evaluation.matching import (
    EncodedSet,
    encode_set,
    match_scores,
    matching_metrics,
)
from fastvtp.evaluation.protocol import EvaluationProtocol
from fastvtp.evaluation.question_answering import evaluate_multiple_choice, evaluate_open_ended
from fastvtp.evaluation.report import bad_file_report, scores_report
from fastvtp.evaluation.retrieval import (
    RetrievalEmbeddings,
    chance_recall,
    encode_retrieval,
    retrieval_metrics,
    shuffled_control,
)
from fastvtp.model_folder import (
    ANSWERS_NAME,
    CLASSES_NAME,
    ENTITIES_NAME,
    TOKENIZER_NAME,
    model_folder,
    read_framing,
    tokenizer_beside,
)
from fastvtp.systems.catalogue import architecture_of, load_pretrained
from fastvtp.visualization.gallery import animated_thumbnail, save_retrieval_gallery

GALLERY_NAME, PREDICTIONS_NAME = "gallery.html", "predictions.jsonl"
_PROTOCOL = EvaluationProtocol()


@dataclass(frozen=True)
class OpenedModel:
    """A model ready for evaluation, with what stands beside its weights.

    known_tokenizer: None where the folder has none, or the model reads no text. answers: those of an open-ended
    question answerer. class_names: those of a classifier; their numbers where nobody named them. entities: what a
    pretrained ALPRO looks for in crops. folder: where they come from. framing: how frames came to the model's size in
    its training.
    """

    model: Any
    known_tokenizer: Tokenizer | None
    answers: AnswerVocabulary | None = None
    class_names: Sequence[str] = ()
    entities: Sequence[str] = ()
    folder: Path | None = None
    framing: str = DEFAULT_FRAMING

    @property
    def reads_text(self) -> bool:
        """Whether the model has a vocabulary of its own."""
        return hasattr(self.model.config, "vocab_size")

    @property
    def tokenizer(self) -> Tokenizer:
        """Reads texts the way the model learned them. Raises CheckpointError where the folder has none."""
        if self.known_tokenizer is None:
            raise CheckpointError(
                f"{self.folder} has no {TOKENIZER_NAME}: texts cannot be read the way the model learned them"
            )
        return self.known_tokenizer


def open_model(source: str | Path, device: torch.device) -> OpenedModel:
    """The model of a model folder, a checkpoint, or a run folder (its final or newest weights).

    Raises CheckpointError for anything else.
    """
    if Path(source).is_file():
        raise CheckpointError(f"{source} is no folder: make one of it first (fastvtp convert {source} FOLDER)")
    folder = model_folder(source)
    return with_companions(load_pretrained(folder, device=device), folder)


def with_companions(model: Any, folder: Path) -> OpenedModel:
    """`model` with tokenizer and labels from its folder."""
    tokenizer = tokenizer_beside(folder) if hasattr(model.config, "vocab_size") else None
    answers, names = None, ()
    if getattr(model.config, "num_answers", 1) > 1 or (folder / ANSWERS_NAME).is_file():
        if not (folder / ANSWERS_NAME).is_file():
            raise CheckpointError(f"{folder} has no {ANSWERS_NAME}: nobody knows what the model's answers mean")
        answers = AnswerVocabulary.load(folder / ANSWERS_NAME)
        if len(answers) != model.config.num_answers:
            raise CheckpointError(
                f"{folder / ANSWERS_NAME} has {len(answers)} answers, the model {model.config.num_answers}"
            )
    if hasattr(model.config, "num_classes"):
        path = folder / CLASSES_NAME
        num_classes = model.config.num_classes
        names = read_class_names(path) if path.is_file() else tuple(map(str, range(num_classes)))
        if len(names) != num_classes:
            raise CheckpointError(f"{path} has {len(names)} classes, the model {num_classes}")
    entities = read_entities(folder / ENTITIES_NAME) if (folder / ENTITIES_NAME).is_file() else ()
    return OpenedModel(model, tokenizer, answers, names, entities, folder, read_framing(folder))


def _text_length(opened: OpenedModel, protocol: EvaluationProtocol) -> int:
    """Tokens kept of a text."""
    positions = getattr(opened.model.config, "max_text_length", MIN_TEXT_LENGTH)
    return min(positions, protocol.max_text_length or positions)


def reading_of(opened: OpenedModel, protocol: EvaluationProtocol) -> ClipReading:
    """How clips are read for this model, framed as in its training where the protocol says nothing else.

    Raises UserError where the views do not go with the framing.
    """
    reading = protocol.reading.framed(opened.framing)
    check_framing(reading.framing or DEFAULT_FRAMING, protocol.views[1])
    return reading


def evaluation_loader(
    opened: OpenedModel, records: Sequence[VideoRecord], protocol: EvaluationProtocol, *, texts: bool = True
) -> VideoTextLoader:
    """Every clip of `records` in order, in all its views. texts: whether its captions are read too, which needs the
    model's tokenizer if it reads text."""
    config = opened.model.config
    segments, crops = protocol.views
    return VideoTextLoader(
        records,
        opened.tokenizer if texts and opened.reads_text else None,
        shape=ClipShape(config.num_frames, config.image_size),
        reading=reading_of(opened, protocol),
        batches=Batches(
            batch_size=min(protocol.batch_size, len(records) * segments * crops), train=False, views=protocol.views
        ),
        decoding=Decoding(num_workers=protocol.num_workers, device=opened.model.device),
        max_text_length=_text_length(opened, protocol),
    )


def evaluate(
    opened: OpenedModel,
    data: str,
    *,
    protocol: EvaluationProtocol = _PROTOCOL,
    output: Path | None = None,
    train_data: str | None = None,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Score a model on `data` in the way of its architecture: retrieval, question answering or classification.

    Retrieval asks with every caption of a clip, and finds a clip's captions by the best of them. It goes by the
    matching head where there is one (ALPRO), which takes one view of a clip and scores each caption with it.

    output: a folder for what shows single clips: the retrieval gallery, or the answer to each question. train_data: the
    training questions, for the baseline by kind. Returns the scores, num_test and bad_files. Raises UserError for data
    of another kind, and for a model of pixels alone.
    """
    architecture = architecture_of(opened.model)
    if architecture not in _SCORERS:
        raise UserError(f"a {architecture} has no scores: fine-tune it (fastvtp finetune RECIPE init=FOLDER)")
    if protocol.add_similarity and _SCORERS[architecture] is not _score_matching:
        raise UserError(f"add_similarity is for models with a matching head, not for {architecture}")
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    with torch.autocast(opened.model.device.type, torch.bfloat16, enabled=protocol.precision == "bfloat16"):
        return _SCORERS[architecture](opened, data, protocol, output, train_data, progress_bar)


class _Thumbnails:
    """Keeps a thumbnail of every clip that it hands on."""

    def __init__(self, batches: Iterable[VideoTextBatch]):
        self._batches = batches
        self.images: dict[int, bytes] = {}

    def __iter__(self) -> Iterator[VideoTextBatch]:
        for batch in self._batches:
            for index, frames in zip(batch.sample_ids.tolist(), batch.video, strict=True):
                if index not in self.images:
                    self.images[index] = animated_thumbnail(frames.cpu().numpy())
            yield batch

    def save_gallery(self, folder: Path, found: RetrievalEmbeddings | EncodedSet, data: str, **shown: Any) -> None:
        """shown: scores and metrics of `save_retrieval_gallery`."""
        save_retrieval_gallery(
            folder / GALLERY_NAME, captions=found.captions, thumbnails=[self.images[index] for index in found.ids],
            ids=found.ids, title=f"Retrieval on {data}", video_of_text=found.video_of_text, **shown,
        )  # fmt: skip


def _encode_clips(
    encode: Callable, opened: OpenedModel, data: str, protocol: EvaluationProtocol, output: Path | None, progress: bool
) -> tuple[Any, _Thumbnails, dict[str, Any]]:
    """What `encode` (`encode_retrieval` or `encode_set`) makes of the clips of `data` with all their captions, their
    thumbnails where there is an output, and their numbers for a report."""
    records = load_annotations(data)
    with evaluation_loader(opened, records, protocol) as loader:
        thumbnails = _Thumbnails(loader)
        encoded = encode(
            opened.model, loader if output is None else thumbnails, device=opened.model.device, progress=progress,
            captions=all_captions(records, opened.tokenizer, _text_length(opened, protocol)),
        )  # fmt: skip
        numbers = {
            "chance_R1": chance_recall(len(encoded.ids), 1),
            "num_test": len(encoded.ids),
            "num_captions": len(encoded.captions),
            "bad_files": bad_file_report(loader.bad_files),
        }
    return encoded, thumbnails, numbers


def _score_retrieval(
    opened: OpenedModel, data: str, protocol: EvaluationProtocol, output: Path | None, _: str | None, progress_bar: bool
) -> dict[str, Any]:
    """Every caption against every clip, both ways, in percent."""
    embeddings, thumbnails, numbers = _encode_clips(encode_retrieval, opened, data, protocol, output, progress_bar)
    similarity, video_of_text = embeddings.similarity(), embeddings.video_of_text
    report = {
        "retrieval": retrieval_metrics(similarity, video_of_text=video_of_text),
        "retrieval_dual_softmax": retrieval_metrics(similarity, video_of_text=video_of_text, dual_softmax=True),
        "shuffled_control": shuffled_control(similarity, seed=0, video_of_text=video_of_text),
        **numbers,
    }
    if output is not None:
        thumbnails.save_gallery(output, embeddings, data, similarity=similarity, metrics=report["retrieval"])
    return report


def _score_matching(
    opened: OpenedModel, data: str, protocol: EvaluationProtocol, output: Path | None, _: str | None, progress_bar: bool
) -> dict[str, Any]:
    """Captions and clips by the matching head, both ways, in percent; and by the contrast alone."""
    if protocol.views != (1, 1):
        raise UserError(f"views {protocol.views}: the matching head reads one view of a clip, expected (1, 1)")
    encoded, thumbnails, numbers = _encode_clips(encode_set, opened, data, protocol, output, progress_bar)
    text_to_video, video_to_text = match_scores(
        opened.model, encoded, top_k=protocol.top_k, add_similarity=protocol.add_similarity, progress=progress_bar
    )
    video_of_text = encoded.video_of_text
    metrics = matching_metrics(text_to_video, video_to_text, video_of_text=video_of_text)
    report = {
        "retrieval": metrics,
        "retrieval_contrast": retrieval_metrics(encoded.similarity, video_of_text=video_of_text),
        "shuffled_control": shuffled_control(text_to_video, seed=0, video_of_text=video_of_text),
        "top_k": protocol.top_k,
        "add_similarity": protocol.add_similarity,
        **numbers,
    }
    if output is not None:
        shown = {"similarity": text_to_video, "video_to_text": video_to_text, "metrics": metrics}
        thumbnails.save_gallery(output, encoded, data, **shown)
    return report


def _score_questions(
    opened: OpenedModel,
    data: str,
    protocol: EvaluationProtocol,
    output: Path | None,
    train_data: str | None,
    progress_bar: bool,
) -> dict[str, Any]:
    """Accuracy of open-ended answers or of choices, with blind baselines, in percent."""
    questions, model = load_questions(data), opened.model
    common: dict[str, Any] = {
        "device": model.device,
        "progress": progress_bar,
        "predictions": None if output is None else output / PREDICTIONS_NAME,
    }
    if opened.answers is None and not has_options(questions, data):
        raise UserError(f"{data}: its questions have no options, and this model chooses among options")
    with evaluation_loader(opened, questions.records, protocol) as loader:
        if opened.answers is None:
            scores = evaluate_multiple_choice(model, loader, questions, opened.tokenizer, **common)
        else:
            training = None if train_data is None else load_questions(train_data)
            scores = evaluate_open_ended(model, loader, questions, opened.answers, training=training, **common)
        return scores_report("question_answering", scores, loader.bad_files)


def _score_classes(
    opened: OpenedModel, data: str, protocol: EvaluationProtocol, _: Path | None, __: str | None, progress_bar: bool
) -> dict[str, Any]:
    """Top-k and per-class accuracy, in percent."""
    classes = load_classes(data, class_names=opened.class_names)
    with evaluation_loader(opened, classes.records, protocol) as loader:
        scores = evaluate_classification(
            opened.model, loader, classes, device=opened.model.device, progress=progress_bar
        )
        return scores_report("classification", scores, loader.bad_files)


def _score_captioner(*given: Any) -> dict[str, Any]:
    from fastvtp.systems.captioner.runs import (
        score_captioner,  # here: it opens models and reads clips as this file does
    )

    return score_captioner(*given)


_SCORERS: dict[str, Callable[..., dict[str, Any]]] = {
    "simvtp": _score_retrieval,
    "dual_encoder": _score_retrieval,
    "video_qa": _score_questions,
    "video_captioner": _score_captioner,
    "video_classifier": _score_classes,
    "alpro": _score_matching,
    "alpro_retrieval": _score_matching,
    "alpro_prompter": _score_retrieval,
    "alpro_qa": _score_questions,
    "video_text_prism": _score_retrieval,
}
