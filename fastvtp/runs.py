"""Whole runs, from settings to files on disk: what the commands of the CLI do."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from fastvtp import processes
from fastvtp.architecture import architecture_of, of_all_runs
from fastvtp.data.annotations import load_annotations
from fastvtp.data.formats.listing import describe_list
from fastvtp.data.reading import ClipReading
from fastvtp.data.synthetic import SyntheticConfig, generate_dataset
from fastvtp.errors import UserError
from fastvtp.evaluation.protocol import EvaluationProtocol
from fastvtp.evaluation.report import REPORT_NAME, bad_file_report, write_report
from fastvtp.evaluation.scoring import evaluate, evaluation_loader
from fastvtp.model_folder import OpenedModel, open_model, with_files_beside
from fastvtp.training.config import TrainConfig, find_task
from fastvtp.training.loop import TrainResult, run_group, train
from fastvtp.training.metrics import METRICS_NAME
from fastvtp.training.paths import check_paths
from fastvtp.training.task import Task
from fastvtp.visualization.curves import plot_curves


def visualize(
    opened: OpenedModel,
    data: str | os.PathLike[str],
    output: Path,
    *,
    num_clips: int = 4,
    seed: int = 0,
    framing: str | None = None,
) -> list[Path]:
    """Draw the first clips of `data` in the folder `output`, as the model's system draws them; returns their
    paths.

    seed: of masks and crops. framing: as in `ClipReading`. Of several processes one calls this. Raises UserError for a
    model that has no pictures, and where no clip can be decoded.
    """
    pictures = of_all_runs("pictures of", lambda runs: runs.pictures)
    name = architecture_of(opened.model).name
    if name not in pictures:
        raise UserError(f"pictures are of {' and '.join(pictures)}, this model is a {name}")
    protocol = EvaluationProtocol(reading=ClipReading(framing=framing), batch_size=num_clips, num_workers=0)
    output.mkdir(parents=True, exist_ok=True)
    with evaluation_loader(opened, load_annotations(data), protocol, dealt=False) as loader:
        batch = next(iter(loader), None)
    if batch is None:
        raise UserError(f"{data}: no clip of it can be decoded")
    return pictures[name](opened, batch, output, seed=seed)


def _train_report(config: TrainConfig, result: TrainResult) -> dict[str, Any]:
    clips = result.steps * config.batch_size
    return {
        "steps": result.steps,
        "train_seconds": round(result.train_seconds, 2),
        "clips_per_second": round(clips / max(result.train_seconds, 1e-9), 2),
        "parameters": sum(parameter.numel() for parameter in result.model.parameters()),
        "train_data": describe_list(config.data.train_list),
        "bad_files": bad_file_report(result.bad_files),
        "metrics": result.metrics,
        **({} if config.data.reading.fps is None else {"fps": config.data.reading.fps}),
        **({} if result.stopped_by is None else {"stopped_by": result.stopped_by}),
    }


def pretrain(config: TrainConfig, *, resume: bool = False, progress_bar: bool = True) -> dict[str, Any]:
    """Pretrain or fine-tune, score on `data.test` where given, draw the curves, all in `config.output_dir`: on one
    process, or on all that torchrun started, each of which must call this.

    Returns the report; of a run that a signal ended, or the first Ctrl-C, it has "stopped_by", and no scores.
    """
    with run_group(config):
        return _pretrain(config, resume=resume, progress_bar=progress_bar and processes.is_first())


def _pretrain(config: TrainConfig, *, resume: bool, progress_bar: bool) -> dict[str, Any]:
    def check() -> None:
        check_paths(config, resume=resume)
        find_task(config.task).check_test_settings(config)

    processes.all_or_none(check)
    result = train(config, resume=resume, progress_bar=progress_bar, check=Task.check_test_data, heed_interrupts=True)
    run_dir = Path(config.output_dir)
    report = _train_report(config, result)
    if processes.is_first():
        write_report(run_dir / REPORT_NAME, report)
        if result.stopped_by is None:
            plot_curves(run_dir / METRICS_NAME, run_dir / "curves.png", title=run_dir.name)
    data = config.data
    if (test_list := data.test_list) is not None and result.stopped_by is None:
        protocol = EvaluationProtocol(
            reading=data.test_reading,
            views=data.test_views,
            num_workers=data.num_workers,
            top_k=data.test_top_k,
            max_text_length=data.max_text_length,
            precision=config.precision,
        )
        opened = with_files_beside(result.model, result.model_dir)
        scores = evaluate(
            opened,
            test_list,
            protocol=protocol,
            output=run_dir,
            train_data=data.train_list,
            progress_bar=progress_bar,
        )
        bad_files = result.bad_files | scores.pop("bad_files")["files"]
        report = {**scores, **report, "bad_files": bad_file_report(bad_files)}
        if processes.is_first():
            write_report(run_dir / REPORT_NAME, report)
    return report


def demo(config: TrainConfig, synthetic: SyntheticConfig, *, progress_bar: bool = True) -> dict[str, Any]:
    """Generate captioned videos, pretrain on them, score and draw. An interrupted demo continues where it stopped."""
    run_dir = Path(config.output_dir)
    with run_group(config) as device:
        dataset = generate_dataset(run_dir / "data", synthetic, progress=progress_bar)
        data = dataclasses.replace(config.data, train=str(dataset.train), test=str(dataset.test))
        report = pretrain(dataclasses.replace(config, data=data), resume=True, progress_bar=progress_bar)
        if processes.is_first() and "stopped_by" not in report:
            visualize(open_model(run_dir, device), str(dataset.test), run_dir)
    return report
