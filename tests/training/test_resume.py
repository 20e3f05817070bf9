"""A run killed with SIGKILL and resumed must equal an uninterrupted one, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = 8


def start(settings: list[str], run_dir: Path, *flags: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    command = [
        sys.executable,
        "-m",
        "fastvtp",
        "pretrain",
        "simvtp_demo",
        *settings,
        f"steps={STEPS}",
        f"output_dir={run_dir}",
    ]
    return subprocess.Popen([*command, "--quiet", *flags], env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def logged_steps(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def kill_when(process: subprocess.Popen, run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while logged_steps(run_dir) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_and_resumed_equals_uninterrupted(tiny_settings, tmp_path, workers):
    settings = [*tiny_settings, f"data.num_workers={workers}", "checkpoint_every=3"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(settings, whole))

    kill_when(start(settings, broken), broken, step=5)  # after the checkpoint of step 3, two steps beyond it
    assert not (broken / "model").exists(), "the run ended before it could be killed"
    assert logged_steps(broken) >= 5
    finish(start(settings, broken, "--resume"))

    assert (broken / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
    assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert logged_steps(whole) == STEPS


def test_killed_before_the_first_checkpoint_starts_over(tiny_settings, tmp_path):
    settings, run_dir = [*tiny_settings, "checkpoint_every=100"], tmp_path / "run"
    kill_when(start(settings, run_dir), run_dir, step=2)
    finish(start(settings, run_dir, "--resume"))
    assert logged_steps(run_dir) == STEPS
