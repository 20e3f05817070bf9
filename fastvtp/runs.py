"""Whole runs, from settings to files on disk: what the commands of the CLI do."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvtp.checkpoints.native import CheckpointError
from fastvtp.data.annotations import VideoRecord, load_annotations
from fastvtp.data.labels import AnswerVocabulary, load_classes, load_questions
from fastvtp.data.loader import VideoTextBatch, VideoTextLoader
from fastvtp.data.synthetic import SyntheticConfig, generate_dataset
from fastvtp.data.tokenization import CaptionTokenizer
from fastvtp.errors import UserError
from fastvtp.evaluation.classification import evaluate_classification
from fastvtp.evaluation.question_answering import evaluate_multiple_choice, evaluate_open_ended
from fastvtp.evaluation.reconstruction import reconstruct
from fastvtp.evaluation.retrieval import chance_recall, encode_retrieval, retrieval_metrics, shuffled_control
from fastvtp.models.registry import architecture_of, load_pretrained
from fastvtp.models.simvtp import SimVTP
from fastvtp.training.config import ConfigError, TrainConfig, apply_overrides
from fastvtp.training.loop import TrainResult, choose_device, train
from fastvtp.training.metrics import METRICS_NAME
from fastvtp.training.recipes import get_recipe
from fastvtp.training.state import TOKENIZER_NAME, model_folder
from fastvtp.training.tasks import ANSWERS_NAME, CLASSES_NAME, MIN_TEXT_LENGTH, has_options, no_text
from fastvtp.visualization.curves import plot_curves
from fastvtp.visualization.gallery import animated_thumbnail, save_retrieval_gallery
from fastvtp.visualization.reconstruction import save_reconstruction_animation, save_reconstruction_grid

logger = logging.getLogger(__name__)

REPORT_NAME, GALLERY_NAME, PREDICTIONS_NAME = "report.json", "gallery.html", "predictions.jsonl"


@dataclass(frozen=True)
class OpenedModel:
    """A model ready for evaluation, with what stands beside its weights.

    tokenizer: reads texts the way the model learned them. answers: those of an open-ended question answerer.
    class_names: those of a classifier; their numbers where nobody named them.
    """

    model: Any
    tokenizer: CaptionTokenizer
    answers: AnswerVocabulary | None = None
    class_names: Sequence[str] = ()


@dataclass(frozen=True)
class EvaluationProtocol:
    """How clips are read for scores.

    views: segments and crops of each clip, see `VideoTextLoader`. sampling, frame_stride: its frames, see
    `FrameSampling`.
    """

    views: tuple[int, int] = (1, 1)
    sampling: str = "uniform"
    frame_stride: int = 1
    num_workers: int = 1
    batch_size: int = 32
    """Most views at a time."""


def _bad_file_report(bad_files: dict[str, str]) -> dict[str, Any]:
    return {"count": len(bad_files), "files": dict(sorted(bad_files.items()))}


def write_report(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def open_model(source: str | Path, device: torch.device) -> OpenedModel:
    """The model of a model folder, a checkpoint, or a run folder (its final or newest weights)."""
    folder = model_folder(source)
    return _with_companions(load_pretrained(folder, device=device), folder)


def _with_companions(model: Any, folder: Path) -> OpenedModel:
    """`model` with tokenizer and labels from its folder."""
    tokenizer = no_text()
    if hasattr(model.config, "vocab_size"):
        if not (folder / TOKENIZER_NAME).is_file():
            raise CheckpointError(
                f"{folder} has no {TOKENIZER_NAME}: texts cannot be read the way the model learned them"
            )
        tokenizer = CaptionTokenizer.load(folder / TOKENIZER_NAME)
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
        names = json.loads(path.read_text()) if path.is_file() else [str(i) for i in range(model.config.num_classes)]
    return OpenedModel(model, tokenizer, answers, names)


def evaluation_loader(
    opened: OpenedModel, records: Sequence[VideoRecord], protocol: EvaluationProtocol
) -> VideoTextLoader:
    """Every clip of `records` in order, in all its views."""
    config = opened.model.config
    return VideoTextLoader(
        records, opened.tokenizer,
        batch_size=min(protocol.batch_size, len(records) * protocol.views[0] * protocol.views[1]),
        num_frames=config.num_frames, image_size=config.image_size,
        max_text_length=getattr(config, "max_text_length", MIN_TEXT_LENGTH),
        sampling=protocol.sampling, frame_stride=protocol.frame_stride, views=protocol.views,
        seed=0, train=False, num_workers=protocol.num_workers, device=opened.model.device,
    )  # fmt: skip


def evaluate(
    opened: OpenedModel,
    data: str,
    *,
    protocol: EvaluationProtocol = EvaluationProtocol(),
    output: Path | None = None,
    train_data: str | None = None,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Score a model on `data` in the way of its architecture: retrieval, question answering or classification.

    output: a folder for what shows single clips: the retrieval gallery, or the answer to each question. train_data: the
    training questions, for the baseline by kind. Returns the scores, num_test and bad_files. Raises UserError for data
    of another kind, and for a model of pixels alone.
    """
    architecture = architecture_of(opened.model)
    if architecture not in _SCORERS:
        raise UserError(f"a {architecture} has no scores: fine-tune it (fastvtp finetune RECIPE init=FOLDER)")
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    return _SCORERS[architecture](opened, data, protocol, output, train_data, progress_bar)


def _score_retrieval(
    opened: OpenedModel, data: str, protocol: EvaluationProtocol, output: Path | None, _: str | None, progress_bar: bool
) -> dict[str, Any]:
    """Every caption against every clip, both ways, in percent."""
    thumbnails: dict[int, bytes] = {}

    def with_thumbnails(batches: Iterable[VideoTextBatch]) -> Iterator[VideoTextBatch]:
        for batch in batches:
            for index, frames in zip(batch.sample_ids.tolist(), batch.video, strict=True):
                if index not in thumbnails:
                    thumbnails[index] = animated_thumbnail(frames.cpu().numpy())
            yield batch

    model = opened.model
    with evaluation_loader(opened, load_annotations(data), protocol) as loader:
        batches = loader if output is None else with_thumbnails(loader)
        embeddings = encode_retrieval(model, batches, device=model.device, progress=progress_bar)
        bad_files = loader.bad_files
    similarity = embeddings.similarity()
    report = {
        "retrieval": retrieval_metrics(similarity),
        "retrieval_dual_softmax": retrieval_metrics(similarity, dual_softmax=True),
        "shuffled_control": shuffled_control(similarity, seed=0),
        "chance_R1": chance_recall(len(similarity), 1),
        "num_test": len(similarity),
        "bad_files": _bad_file_report(bad_files),
    }
    if output is not None:
        save_retrieval_gallery(
            output / GALLERY_NAME, similarity=similarity, captions=embeddings.captions,
            thumbnails=[thumbnails[index] for index in embeddings.ids], ids=embeddings.ids,
            title=f"Retrieval on {data}", metrics=report["retrieval"],
        )  # fmt: skip
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
        return _with_bad_files("question_answering", scores, loader)


def _score_classes(
    opened: OpenedModel, data: str, protocol: EvaluationProtocol, _: Path | None, __: str | None, progress_bar: bool
) -> dict[str, Any]:
    """Top-k and per-class accuracy, in percent."""
    classes = load_classes(data, class_names=opened.class_names)
    with evaluation_loader(opened, classes.records, protocol) as loader:
        scores = evaluate_classification(
            opened.model, loader, classes, device=opened.model.device, progress=progress_bar
        )
        return _with_bad_files("classification", scores, loader)


_SCORERS: dict[str, Callable[..., dict[str, Any]]] = {
    "simvtp": _score_retrieval,
    "dual_encoder": _score_retrieval,
    "video_qa": _score_questions,
    "video_classifier": _score_classes,
}


def _with_bad_files(name: str, scores: Any, loader: VideoTextLoader) -> dict[str, Any]:
    """The report of an evaluation; why a clip was left out stands in bad_files."""
    values = dataclasses.asdict(scores)
    del values["left_out"]
    return {name: values, "num_test": values.pop("count"), "bad_files": _bad_file_report(loader.bad_files)}


def visualize(opened: OpenedModel, data: str, output: Path, *, num_clips: int = 4, seed: int = 0) -> list[Path]:
    """Reconstruction pictures of the first clips of `data`: reconstruction.png and reconstruction.gif in `output`."""
    if not isinstance(opened.model, SimVTP):
        raise UserError(f"reconstructions are of a simvtp, this model is a {architecture_of(opened.model)}")
    output.mkdir(parents=True, exist_ok=True)
    protocol = EvaluationProtocol(batch_size=num_clips, num_workers=0)
    with evaluation_loader(opened, load_annotations(data), protocol) as loader:
        batch = next(iter(loader), None)
        if batch is None:
            raise UserError(f"{data}: no clip of it can be decoded")
        examples = reconstruct(opened.model, opened.tokenizer, batch, seed=seed)
    paths = [output / "reconstruction.png", output / "reconstruction.gif"]
    save_reconstruction_grid(paths[0], examples)
    save_reconstruction_animation(paths[1], examples)
    return paths


def _train_report(config: TrainConfig, result: TrainResult) -> dict[str, Any]:
    clips = result.steps * config.accumulate * config.batch_size
    return {
        "steps": result.steps,
        "train_seconds": round(result.train_seconds, 2),
        "clips_per_second": round(clips / max(result.train_seconds, 1e-9), 2),
        "parameters": sum(parameter.numel() for parameter in result.model.parameters()),
        "bad_files": _bad_file_report(result.bad_files),
        "metrics": result.metrics,
    }


def _check_test_data(config: TrainConfig) -> None:
    """Raise what is wrong with `data.test` before the training, not after it."""
    data = config.data
    if data.test is None:
        return
    if config.task == "pretrain_videomae":
        raise ConfigError(f"data.test={data.test}: pretrain_videomae has no scores; leave it out")
    if config.task == "finetune_qa":
        choices = [has_options(load_questions(path), path) for path in (data.train, data.test)]
        if choices == [True, False]:
            raise ConfigError(f"data.test={data.test}: its questions have no options, those of data.train do")
    elif config.task == "finetune_classification":
        load_classes(data.test, class_names=load_classes(data.train).class_names)
    else:
        load_annotations(data.test)


def pretrain(config: TrainConfig, *, resume: bool = False, progress_bar: bool = True) -> dict[str, Any]:
    """Pretrain or fine-tune, score on `data.test` where given, draw the curves, all in `config.output_dir`.

    Returns the report.
    """
    _check_test_data(config)
    result = train(config, resume=resume, progress_bar=progress_bar)
    run_dir = Path(config.output_dir)
    report = _train_report(config, result)
    write_report(run_dir / REPORT_NAME, report)
    plot_curves(run_dir / METRICS_NAME, run_dir / "curves.png", title=run_dir.name)
    data = config.data
    if data.test is not None:
        protocol = EvaluationProtocol(data.test_views, data.test_sampling, data.frame_stride, data.num_workers)
        opened = _with_companions(result.model, result.model_dir)
        scores = evaluate(
            opened, data.test, protocol=protocol, output=run_dir, train_data=data.train, progress_bar=progress_bar
        )
        bad_files = result.bad_files | scores.pop("bad_files")["files"]
        report = {**scores, **report, "bad_files": _bad_file_report(bad_files)}
        write_report(run_dir / REPORT_NAME, report)
    return report


def demo(config: TrainConfig, synthetic: SyntheticConfig, *, progress_bar: bool = True) -> dict[str, Any]:
    """Generate captioned videos, pretrain on them, score and draw. An interrupted demo continues where it stopped."""
    run_dir = Path(config.output_dir)
    dataset = generate_dataset(run_dir / "data", synthetic, progress=progress_bar)
    data = dataclasses.replace(config.data, train=str(dataset.train), test=str(dataset.test))
    report = pretrain(dataclasses.replace(config, data=data), resume=True, progress_bar=progress_bar)
    visualize(open_model(run_dir, choose_device(config.device)), str(dataset.test), run_dir)
    return report


def recipe_config(name: str, preset: str, overrides: list[str]) -> TrainConfig:
    """A recipe with overrides applied; missing files are reported here, by their settings' names."""
    config = apply_overrides(get_recipe(name, preset), overrides)
    if not Path(config.data.train).exists():
        raise ConfigError(f"data.train={config.data.train} does not exist; give data.train=FILE.jsonl or a folder")
    for setting in ("init", "text_init"):
        source = getattr(config, setting)
        if source is not None and not Path(source).exists():
            raise ConfigError(f"{setting}={source} does not exist; give a checkpoint file or folder, or {setting}=none")
    return config
