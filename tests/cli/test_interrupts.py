"""Ctrl-C during a run: a real command in a process group of its own, all of which gets the signal, as of a terminal."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.labelled import settings

ROOT = Path(__file__).parents[2]
_COMMAND = """
import signal, sys, time
from fastvtp.cli.main import main
from fastvtp.training.checkpoints import CheckpointWriter
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # however the tests were started
    if sys.argv.pop(1) == "slow":
        CheckpointWriter.save = lambda *_, **__: time.sleep(120)
    main()
"""
HEARD = "Ctrl-C: the run ends after this step, with a checkpoint; press it again to end at once"


@pytest.fixture
def begin(captioned_videos, tmp_path):
    """Starts a run of `fastvtp pretrain` with two workers, and returns it once it has done some steps."""
    begun = []

    def start(how: str = "", *more: str, command: tuple[str, ...] = ("pretrain",)) -> subprocess.Popen[str]:
        (script := tmp_path / "run.py").write_text(_COMMAND)
        folder = tmp_path / "run"
        before = steps_in(folder)
        given = settings(captioned_videos / "train.jsonl", folder, "steps=100000", "data.num_workers=2")
        run = subprocess.Popen(
            [sys.executable, str(script), how, *command, "simvtp_tiny", *given, "checkpoint_every=100000", *more],
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        begun.append(run)
        deadline = time.monotonic() + 120
        while steps_in(folder) < before + 3:
            if run.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(run.communicate()[1])
            time.sleep(0.05)
        return run

    yield start
    for run in begun:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()


def steps_in(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def none_is_left(group: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_the_first_ends_the_run_with_a_checkpoint_and_says_where(begin, tmp_path):
    run = begin()
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    step = int(saved.name.removeprefix("step_"))
    assert out.splitlines() == [
        f"stopped by Ctrl-C after step {step}; {saved} is its checkpoint: the same command with --resume goes on"
    ]
    assert [line for line in err.splitlines() if "Ctrl-C" in line] == [HEARD]
    assert "Traceback" not in err
    assert json.loads((tmp_path / "run/report.json").read_text())["stopped_by"] == "SIGINT"
    assert none_is_left(run.pid)


def test_the_second_ends_it_at_once(begin, tmp_path):
    run = begin("slow")
    os.killpg(run.pid, signal.SIGINT)
    time.sleep(1)
    assert run.poll() is None
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=20)
    assert (run.returncode, out) == (130, "")
    assert "fastvtp: interrupted; what was written so far is kept" in err
    assert "Traceback" not in err
    assert none_is_left(run.pid)


@pytest.mark.long
def test_all_processes_of_a_run_end_together(begin, tmp_path):
    """The terminal's Ctrl-C reaches torchrun, which passes it on to processes in sessions of their own."""
    run = begin("", "micro_batch=4", "--gpus", "2", "--run", command=("launch",))
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=100)
    assert run.returncode == 130, err
    (saved,) = (tmp_path / "run/checkpoints").iterdir()
    step = int(saved.name.removeprefix("step_"))
    assert f"stopped by Ctrl-C after step {step}; {saved} is its checkpoint" in out
    assert [line for line in err.splitlines() if "Ctrl-C" in line] == [HEARD]
    assert json.loads((tmp_path / "run/report.json").read_text())["stopped_by"] == "SIGINT"
