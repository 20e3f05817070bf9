"""Whole runs, from settings to files on disk: what the commands of the CLI do."""

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from fastvtp.checkpoints.native import CheckpointError
from fastvtp.data.annotations import load_annotations
from fastvtp.data.loader import VideoTextBatch, VideoTextLoader
from fastvtp.data.synthetic import SyntheticConfig, generate_dataset
from fastvtp.data.tokenization import CaptionTokenizer
from fastvtp.errors import UserError
from fastvtp.evaluation.reconstruction import reconstruct
from fastvtp.evaluation.retrieval import chance_recall, encode_retrieval, retrieval_metrics, shuffled_control
from fastvtp.models.registry import load_pretrained
from fastvtp.models.simvtp import SimVTP
from fastvtp.training.config import ConfigError, TrainConfig, apply_overrides
from fastvtp.training.loop import CONFIG_NAME, TrainResult, choose_device, train
from fastvtp.training.metrics import METRICS_NAME
from fastvtp.training.recipes import get_recipe
from fastvtp.training.state import TOKENIZER_NAME, list_checkpoints
from fastvtp.visualization.curves import plot_curves
from fastvtp.visualization.gallery import animated_thumbnail, save_retrieval_gallery
from fastvtp.visualization.reconstruction import save_reconstruction_animation, save_reconstruction_grid

logger = logging.getLogger(__name__)

REPORT_NAME = "report.json"


def _bad_file_report(bad_files: dict[str, str]) -> dict[str, Any]:
    return {"count": len(bad_files), "files": dict(sorted(bad_files.items()))}


def write_report(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def open_model(source: str, device: torch.device) -> tuple[SimVTP, CaptionTokenizer]:
    """Model and tokenizer of a model folder, a checkpoint, or a run folder (its final or newest weights)."""
    folder = Path(source)
    if not folder.is_dir():
        raise CheckpointError(f"{source} is no folder: expected a run, checkpoint or model folder")
    if (folder / CONFIG_NAME).is_file():
        candidates = [folder / "model"] if (folder / "model").is_dir() else list_checkpoints(folder)[-1:]
        if not candidates:
            raise CheckpointError(f"{folder} is a run without a checkpoint yet")
        folder = candidates[0]
    model = load_pretrained(folder, device=device)
    if not (folder / TOKENIZER_NAME).is_file():
        raise CheckpointError(
            f"{folder} has no {TOKENIZER_NAME}: captions cannot be read the way the model learned them"
        )
    return model, CaptionTokenizer.load(folder / TOKENIZER_NAME)


def evaluation_loader(
    model: SimVTP,
    tokenizer: CaptionTokenizer,
    data: str,
    *,
    batch_size: int = 32,
    num_workers: int = 1,
) -> VideoTextLoader:
    """Every clip of `data` once, in order, uniform frames and centre crop."""
    records = load_annotations(data)
    return VideoTextLoader(
        records, tokenizer,
        batch_size=min(batch_size, len(records)),
        num_frames=model.config.num_frames, image_size=model.config.image_size,
        sampling="uniform", max_text_length=model.config.max_text_length, seed=0, train=False,
        num_workers=num_workers, device=model.device,
    )  # fmt: skip


def evaluate(
    model: SimVTP,
    tokenizer: CaptionTokenizer,
    data: str,
    *,
    gallery: Path | None = None,
    num_workers: int = 1,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Zero-shot retrieval of every clip of `data`, both ways, in percent; optionally with the gallery page.

    Returns retrieval, retrieval_dual_softmax, shuffled_control, chance_R1, num_test, bad_files.
    """
    thumbnails: list[bytes] = []

    def with_thumbnails(batches: Iterable[VideoTextBatch]) -> Iterator[VideoTextBatch]:
        for batch in batches:
            thumbnails.extend(animated_thumbnail(frames) for frames in batch.video.cpu().numpy())
            yield batch

    with evaluation_loader(model, tokenizer, data, num_workers=num_workers) as loader:
        batches = loader if gallery is None else with_thumbnails(loader)
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
    if gallery is not None:
        gallery.parent.mkdir(parents=True, exist_ok=True)
        save_retrieval_gallery(
            gallery, similarity=similarity, captions=embeddings.captions, thumbnails=thumbnails, ids=embeddings.ids,
            title=f"Zero-shot retrieval on {data}", metrics=report["retrieval"],
        )  # fmt: skip
    return report


def visualize(
    model: SimVTP, tokenizer: CaptionTokenizer, data: str, output: Path, *, num_clips: int = 4, seed: int = 0
) -> list[Path]:
    """Reconstruction pictures of the first clips of `data`: reconstruction.png and reconstruction.gif in `output`."""
    output.mkdir(parents=True, exist_ok=True)
    with evaluation_loader(model, tokenizer, data, batch_size=num_clips, num_workers=0) as loader:
        batch = next(iter(loader), None)
        if batch is None:
            raise UserError(f"{data}: no clip of it can be decoded")
        examples = reconstruct(model, tokenizer, batch, seed=seed)
    paths = [output / "reconstruction.png", output / "reconstruction.gif"]
    save_reconstruction_grid(paths[0], examples)
    save_reconstruction_animation(paths[1], examples)
    return paths


def _train_report(config: TrainConfig, result: TrainResult) -> dict[str, Any]:
    return {
        "steps": result.steps,
        "train_seconds": round(result.train_seconds, 2),
        "clips_per_second": round(result.steps * config.batch_size / max(result.train_seconds, 1e-9), 2),
        "parameters": sum(parameter.numel() for parameter in result.model.parameters()),
        "bad_files": _bad_file_report(result.bad_files),
        "metrics": result.metrics,
    }


def pretrain(config: TrainConfig, *, resume: bool = False, progress_bar: bool = True) -> dict[str, Any]:
    """Train, score on `data.test` where given, draw the curves, all in `config.output_dir`. Returns the report."""
    if config.data.test is not None:
        load_annotations(config.data.test)  # a wrong path shows before the training, not after it
    result = train(config, resume=resume, progress_bar=progress_bar)
    run_dir = Path(config.output_dir)
    report = _train_report(config, result)
    write_report(run_dir / REPORT_NAME, report)
    plot_curves(run_dir / METRICS_NAME, run_dir / "curves.png", title=run_dir.name)
    if config.data.test is not None:
        scores = evaluate(
            result.model, result.tokenizer, config.data.test,
            gallery=run_dir / "gallery.html", num_workers=config.data.num_workers, progress_bar=progress_bar,
        )  # fmt: skip
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
    model, tokenizer = open_model(str(run_dir), choose_device(config.device))
    visualize(model, tokenizer, str(dataset.test), run_dir)
    return report


def recipe_config(name: str, preset: str, overrides: list[str]) -> TrainConfig:
    """A recipe with overrides applied; a missing training file is reported here, by its setting's name."""
    config = apply_overrides(get_recipe(name, preset), overrides)
    if not Path(config.data.train).exists():
        raise ConfigError(f"data.train={config.data.train} does not exist; give data.train=FILE.jsonl or a folder")
    return config
