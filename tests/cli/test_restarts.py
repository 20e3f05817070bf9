"""A run that `fastvtp launch` started: one of its processes is killed, a scheduler stops it, and it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.loop import TrainResult, train
from tests.training.labelled import DECODER, settings

STEPS = 150
ROOT = Path(__file__).parents[2]


def settings_of(clips: Path, folder: Path) -> list[str]:
    few = [f"steps={STEPS}", "checkpoint_every=4", "keep_checkpoints=1", "log_every=1", "micro_batch=4"]
    return settings(clips, folder, *few, "parallel.stop_exit_code=85", *DECODER)


def launch(clips: Path, folder: Path, *options: str) -> subprocess.Popen:
    """Start a run of two processes; the caller waits for it."""
    command = [sys.executable, "-m", "fastvtp", "launch", "simvtp_tiny", *settings_of(clips, folder)]
    return subprocess.Popen(
        [*command, "--gpus", "2", *options, "--run"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def started_by(torchrun: int) -> dict[int, int]:
    """The processes that torchrun has started, by their RANK."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            variables = dict(
                pair.split(b"=", 1) for pair in (entry / "environ").read_bytes().split(b"\0") if b"=" in pair
            )
            if parent == torchrun and b"RANK" in variables:
                found[int(variables[b"RANK"])] = int(entry.name)
        except (OSError, ValueError, IndexError):  # it has ended meanwhile, or is none
            continue
    return found


def wait_for_a_checkpoint(run: subprocess.Popen, folder: Path, *, after: int) -> int:
    """Return the step of the newest checkpoint, once there is one behind the step `after`."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and run.poll() is None:
        if (steps := [int(name.removeprefix("step_")) for name in checkpoints(folder)]) and steps[-1] > after:
            return steps[-1]
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint after step {after}")


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoints/step_*"))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds a rank by Linux's /proc")
def test_a_killed_process_is_made_up_for_and_a_stopped_run_goes_on(captioned_videos, tmp_path):
    """Two processes; one is killed, both start anew; the scheduler's signal stops them; one process does the rest."""
    clips, folder = captioned_videos / "train.jsonl", tmp_path / "run"
    run = launch(clips, folder, "--max-restarts", "1")
    try:
        first = wait_for_a_checkpoint(run, folder, after=0)
        os.kill(started_by(run.pid)[1], signal.SIGKILL)
        wait_for_a_checkpoint(run, folder, after=first + 8)
        run.send_signal(signal.SIGUSR1)
        said = run.communicate(timeout=180)[0]
    finally:
        # torchrun's processes have sessions of their own, and would outlive it
        for process in [*started_by(run.pid).values(), run.pid] if run.poll() is None else []:
            os.kill(process, signal.SIGKILL)
        run.wait()
    assert run.returncode == 85, said
    assert "resuming" in said
    assert "stopped by SIGUSR1 after step" in said
    steps = len((folder / "metrics.jsonl").read_text().splitlines())
    assert steps == int(checkpoints(folder)[-1].removeprefix("step_")) < STEPS

    def alone(folder: Path) -> TrainResult:
        config = apply_overrides(get_recipe("simvtp_tiny"), [*settings_of(clips, folder), "checkpoint_every=1000"])
        return train(config, resume=True, progress_bar=False)

    resumed, whole = alone(folder), alone(tmp_path / "whole")
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
