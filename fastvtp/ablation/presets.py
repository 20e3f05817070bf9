"""The demo's two presets against each other at equal training time."""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from fastvtp import processes
from fastvtp.data.synthetic import SyntheticDataset
from fastvtp.errors import UserError
from fastvtp.evaluation.report import REPORT_NAME, write_report
from fastvtp.model_folder import RUN_CONFIG_NAME
from fastvtp.runs import pretrain
from fastvtp.training.config import TrainConfig
from fastvtp.training.loop import run_group, train
from fastvtp.training.metrics import SPEED_NAME

PROBE_STEPS, PROBE_ROUNDS = 12, 2
_KEPT = ("steps", "train_seconds", "retrieval")


def compare_presets(
    config: TrainConfig, other: TrainConfig, *, names: tuple[str, str], progress_bar: bool = True
) -> dict[str, dict[str, Any]]:
    """After `fastvtp.runs.demo(config)`, train `other` on the same clips for as long, and score it the same way.

    Its steps are as many as fit the first run's time by the speed of a short probe of both, and its schedule ends with
    them. names: of the two presets. Adds presets = {name: {steps, train_seconds, retrieval}} to the demo's report.json
    and returns it. An interrupted comparison continues where it stopped. All processes that torchrun started call this,
    as they do `fastvtp.runs.demo`.
    """
    with run_group(config):
        return _compared(config, other, names, progress_bar=progress_bar)


def _compared(
    config: TrainConfig, other: TrainConfig, names: tuple[str, str], *, progress_bar: bool
) -> dict[str, dict[str, Any]]:
    run_dir = Path(config.output_dir)
    dataset, report_path = SyntheticDataset(run_dir / "data"), run_dir / REPORT_NAME
    report = processes.first_decides(lambda: json.loads(report_path.read_text()))
    folder = run_dir / "presets" / names[1]
    config, other = (
        dataclasses.replace(each, data=dataclasses.replace(each.data, train=str(dataset.train), test=str(dataset.test)))
        for each in (config, other)
    )
    steps = processes.first_decides(lambda: _steps_begun(folder)) or steps_in_equal_time(config, other)
    second = pretrain(
        dataclasses.replace(other, steps=steps, output_dir=str(folder)), resume=True, progress_bar=progress_bar
    )
    if (signal := second.get("stopped_by")) is not None:
        raise UserError(f"{folder}: stopped by {signal} after step {second['steps']}: the same command goes on")
    found = dict(zip(names, (report, second), strict=True))
    presets = {name: {key: scored[key] for key in _KEPT} for name, scored in found.items()}
    processes.first_decides(lambda: write_report(report_path, {**report, "presets": presets}))
    return presets


def _steps_begun(folder: Path) -> int | None:
    """Return the steps of the run that was begun in a folder; None where none was."""
    begun = folder / RUN_CONFIG_NAME
    return json.loads(begun.read_text())["steps"] if begun.is_file() else None


def steps_in_equal_time(config: TrainConfig, other: TrainConfig) -> int:
    """Return steps of `other` in the time that `config.steps` steps of `config` take; both are timed in turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(PROBE_ROUNDS):
        for each, found in zip((config, other), seconds, strict=True):
            found += step_seconds(each)
    return max(1, round(config.steps * median(seconds[0]) / median(seconds[1])))


def step_seconds(config: TrainConfig) -> list[float]:
    """Return the wall time of single steps of a short run, without those in which workers and caches warm up.

    The processes of a group all call this, and get the times of the first.
    """
    parent = Path(config.output_dir).parent  # which all of them see

    def seconds() -> list[float]:
        records = map(json.loads, (Path(folder) / SPEED_NAME).read_text().splitlines())
        clips = config.batch_size
        return [clips / record["clips_per_second"] for record in records][PROBE_STEPS // 2 :]

    folder = processes.first_decides(lambda: _temporary_folder(parent))
    try:
        train(
            dataclasses.replace(
                config,
                steps=PROBE_STEPS,
                log_every=1,
                checkpoint_every=PROBE_STEPS,
                tensorboard=False,
                output_dir=folder,
            ),
            progress_bar=False,
        )
        return processes.first_decides(seconds)
    finally:
        if processes.is_first():
            shutil.rmtree(folder, ignore_errors=True)


def _temporary_folder(parent: Path) -> str:
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.mkdtemp(prefix=".step_seconds_", dir=parent)


def preset_table(presets: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each preset."""
    return [
        f"{name:<9}{scores['steps']:>6} steps in {scores['train_seconds']:.0f} s  "
        + "  ".join(
            f"{way} R1 {recalls['R1']:.1f} R5 {recalls['R5']:.1f}" for way, recalls in scores["retrieval"].items()
        )
        for name, scores in presets.items()
    ]
