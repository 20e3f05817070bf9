"""A run killed with SIGKILL and resumed must equal an uninterrupted one, bit for bit."""

import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from fastvtp.tensor_files import read_tensors
from tests.conftest import tiny_overrides
from tests.forking import start_command

STEPS = 20


def start(settings: list[str], run_dir: Path, *flags: str) -> BaseProcess:
    # two threads, and batches large enough that torch uses both: sums must not depend on who comes first
    command = ["pretrain", "simvtp_demo", *settings, f"steps={STEPS}", f"output_dir={run_dir}", "--quiet", *flags]
    return start_command(command, errors_of(run_dir))


def errors_of(run_dir: Path) -> Path:
    return run_dir.with_name("errors.txt")


def finish(process: BaseProcess, run_dir: Path) -> None:
    process.join(timeout=300)
    assert process.exitcode == 0, errors_of(run_dir).read_text()


def logged_steps(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def kill_when(process: BaseProcess, run_dir: Path, step: int, *, checkpoints: int = 0) -> None:
    """Kill a run once it has logged a step and has so many checkpoints, which are written beside the training."""
    deadline = time.monotonic() + 300
    while logged_steps(run_dir) < step or len([*run_dir.glob("checkpoints/step_*")]) < checkpoints:
        assert process.is_alive(), errors_of(run_dir).read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"


@pytest.fixture(scope="module")
def settings(captioned_videos, tmp_path_factory):
    return [
        *tiny_overrides(captioned_videos, tmp_path_factory.mktemp("unused")),
        "batch_size=8", "checkpoint_every=3", "model.text_dropout=0.1", "data.test=none",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory) -> Path:
    """The uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    finish(start(settings, run_dir), run_dir)
    assert logged_steps(run_dir) == STEPS
    return run_dir


def assert_equal_runs(run_dir: Path, whole: Path) -> None:
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert (run_dir / name).read_bytes() == (whole / name).read_bytes(), name
    found, expected = (read_tensors(newest(run)) for run in (run_dir, whole))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def newest(run_dir: Path) -> Path:
    return sorted((run_dir / "checkpoints").glob("step_*"))[-1]


@pytest.mark.parametrize(("workers", "kills"), [(0, (5,)), (1, (4,)), (0, (2, 4, 7))])
def test_killed_and_resumed_equals_uninterrupted(settings, whole, tmp_path, workers, kills):
    """Killed at steps before, at and after the checkpoints of steps 3 and 6, also several times in one run."""
    run_dir, settings = tmp_path / "run", [*settings, f"data.num_workers={workers}"]
    for i, step in enumerate(kills):
        flags = ["--resume"] if i else []
        kill_when(start(settings, run_dir, *flags), run_dir, step)
        assert not (run_dir / "model").exists(), "the run ended before it could be killed"
    finish(start(settings, run_dir, "--resume"), run_dir)
    assert_equal_runs(run_dir, whole)


def test_leftovers_of_a_kill_while_writing_do_no_harm(settings, whole, tmp_path):
    """A half-written checkpoint, a half-written line of metrics, and a checkpoint half deleted."""
    run_dir = tmp_path / "run"
    kill_when(start(settings, run_dir), run_dir, step=5, checkpoints=1)
    checkpoints = run_dir / "checkpoints"
    shutil.copytree(newest(run_dir), checkpoints / "partial_step_00000006")
    shutil.copytree(newest(run_dir), checkpoints / "step_00000007")
    (checkpoints / "step_00000007" / "manifest.json").unlink()
    with (run_dir / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 6, "lo')
    finish(start(settings, run_dir, "--resume"), run_dir)
    shutil.rmtree(checkpoints / "step_00000007", ignore_errors=True)
    assert_equal_runs(run_dir, whole)
