"""Whole runs, from settings to files on disk: what the commands of the CLI do."""

import dataclasses
from pathlib import Path
from typing import Any

from fastvtp.data.annotations import load_annotations
from fastvtp.data.classes import load_classes
from fastvtp.data.questions import has_options, lists_questions, load_questions
from fastvtp.data.reading import ClipReading
from fastvtp.data.synthetic import SyntheticConfig, generate_dataset
from fastvtp.errors import ConfigError, UserError
from fastvtp.evaluation.report import REPORT_NAME, bad_file_report, write_report
from fastvtp.evaluation.scoring import (
    EvaluationProtocol,
    OpenedModel,
    evaluate,
    evaluation_loader,
    open_model,
    with_companions,
)
from fastvtp.settings import choose_device
from fastvtp.systems.alpro.model import Alpro
from fastvtp.systems.alpro.pictures import predict_entities, save_entity_picture
from fastvtp.systems.catalogue import architecture_of
from fastvtp.systems.simvtp.model import SimVTP
from fastvtp.systems.simvtp.pictures import reconstruct
from fastvtp.training.config import TrainConfig
from fastvtp.training.loop import TrainResult, train
from fastvtp.training.metrics import METRICS_NAME
from fastvtp.visualization.curves import plot_curves
from fastvtp.visualization.reconstruction import save_reconstruction_animation, save_reconstruction_grid


def visualize(
    opened: OpenedModel, data: str, output: Path, *, num_clips: int = 4, seed: int = 0, framing: str | None = None
) -> list[Path]:
    """Pictures of the first clips of `data` in `output`: a SimVTP's reconstructions (reconstruction.png and .gif), or
    what an ALPRO sees in crops (entities.png). framing: as in `ClipReading`."""
    model = opened.model
    if not isinstance(model, SimVTP | Alpro):
        raise UserError(f"pictures are of a simvtp or an alpro, this model is a {architecture_of(model)}")
    if isinstance(model, Alpro) and not opened.entities:
        raise UserError("this alpro comes without a list of its entities: nothing to show")
    protocol = EvaluationProtocol(reading=ClipReading(framing=framing), batch_size=num_clips, num_workers=0)
    output.mkdir(parents=True, exist_ok=True)
    with evaluation_loader(opened, load_annotations(data), protocol) as loader:
        batch = next(iter(loader), None)
    if batch is None:
        raise UserError(f"{data}: no clip of it can be decoded")
    if isinstance(model, Alpro):
        path = output / "entities.png"
        save_entity_picture(path, predict_entities(model, batch, opened.entities, seed=seed))
        return [path]
    examples = reconstruct(model, opened.tokenizer, batch, seed=seed)
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
        "bad_files": bad_file_report(result.bad_files),
        "metrics": result.metrics,
    }


def _check_test_data(config: TrainConfig) -> None:
    """Raise what is wrong with `data.test` before the training, not after it."""
    data = config.data
    if data.test is None:
        return
    if config.task in ("pretrain_videomae", "pretrain_videoprism_distillation"):
        raise ConfigError(f"data.test={data.test}: {config.task} has no scores; leave it out")
    if config.task in ("finetune_qa", "finetune_alpro_qa"):
        choices = [has_options(load_questions(path), path) for path in (data.train, data.test)]
        if choices == [True, False]:
            raise ConfigError(f"data.test={data.test}: its questions have no options, those of data.train do")
    elif config.task == "finetune_captioning":
        if config.model.backbone is None:
            raise ConfigError(f"data.test={data.test}: clips need model.backbone; leave it out where there is none")
        (load_questions if lists_questions(data.test) else load_annotations)(data.test)
    elif config.task == "finetune_classification":
        load_classes(data.test, class_names=load_classes(data.train, names_file=data.class_names).class_names)
    else:
        load_annotations(data.test)
        if data.test_views != (1, 1) and config.task in ("pretrain_alpro", "finetune_alpro_retrieval"):
            raise ConfigError(f"data.test_views={data.test_views}: the matching head reads one view of a clip")


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
        protocol = EvaluationProtocol(
            reading=data.test_reading,
            views=data.test_views,
            num_workers=data.num_workers,
            top_k=data.test_top_k,
            max_text_length=data.max_text_length,
            precision=config.precision,
        )
        opened = with_companions(result.model, result.model_dir)
        scores = evaluate(
            opened, data.test, protocol=protocol, output=run_dir, train_data=data.train, progress_bar=progress_bar
        )
        bad_files = result.bad_files | scores.pop("bad_files")["files"]
        report = {**scores, **report, "bad_files": bad_file_report(bad_files)}
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
