"""Runs that signals end: what is left of them, and what their commands return."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastvtp import runs
from fastvtp.data.synthetic import SyntheticConfig
from fastvtp.model_folder import list_checkpoints, read_weights
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.gradients import Gradients
from fastvtp.training.loop import train
from fastvtp.training.stopping import StopSignals
from tests.forking import ENVIRONMENT, ROOT
from tests.ranks import run_ranks
from tests.training.test_many_processes import records_of
from tests.training.tiny_runs import RUNS, prepare


@pytest.fixture(scope="module")
def data(captioned_videos) -> Path:
    return prepare(captioned_videos)


@pytest.fixture
def stop_at(monkeypatch):
    """Lets a run receive a signal after so many questions for one; the first comes before its first step."""

    def stop(question: int, name: str = "SIGTERM") -> None:
        asked = iter([None] * question)
        monkeypatch.setattr(StopSignals, "asked", lambda _: next(asked, name))

    return stop


_COMMAND = """
from fastvtp.training.loop import train
from tests.training.tiny_runs import RUNS
from pathlib import Path
import sys
if __name__ == "__main__":
    config = RUNS["videomae"].config(Path(sys.argv[1]), Path(sys.argv[2]), "steps=4000", "data.num_workers=2")
    print(train(config, progress_bar=False).stopped_by)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_of_a_job_leaves_the_workers_working(number, data, tmp_path):
    """As Slurm sends it: to the run, to its decoding workers, and to the helpers of the standard library."""
    (script := tmp_path / "run.py").write_text(_COMMAND)
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(script), str(data), str(tmp_path / "run")],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    metrics, deadline = tmp_path / "run/metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert process.poll() is None and time.monotonic() < deadline  # noqa: PT018
        time.sleep(0.05)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said.strip()) == (0, number.name)
    assert len(list_checkpoints(tmp_path / "run")) == 1
    deadline = time.monotonic() + 10
    while _alive(process.pid):
        assert time.monotonic() < deadline, "some of its processes are left"
        time.sleep(0.05)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_that_stops_before_its_first_record_is_reported(data, tmp_path, stop_at):
    stop_at(1)
    config = RUNS["videomae"].config(data, tmp_path / "run", "steps=30", "log_every=10")
    report = runs.pretrain(config, progress_bar=False)
    assert (report["steps"], report["stopped_by"]) == (1, "SIGTERM")
    assert json.loads((tmp_path / "run/report.json").read_text()) == report


def test_a_signal_before_the_first_step_ends_the_run_without_one(data, tmp_path, stop_at):
    stop_at(0, "SIGUSR1")
    result = train(RUNS["videomae"].config(data, tmp_path / "run"), progress_bar=False)
    assert (result.steps, result.stopped_by) == (0, "SIGUSR1")
    assert not list_checkpoints(tmp_path / "run")


def test_a_signal_while_the_model_is_written_is_not_forgotten(data, tmp_path, stop_at):
    stop_at(3)
    result = train(RUNS["videomae"].config(data, tmp_path / "run", "steps=2"), progress_bar=False)
    assert (result.steps, result.stopped_by) == (2, "SIGTERM")
    assert (tmp_path / "run/model").is_dir()


def test_a_stopped_run_in_shards_returns_its_own_weights(data, tmp_path, stop_at):
    """And not those of the shorter run that it goes on from."""
    sharded = "parallel.strategy=fsdp2"
    train(RUNS["videomae"].config(data, tmp_path / "run", "steps=2", sharded), progress_bar=False)
    stop_at(2)
    longer = RUNS["videomae"].config(data, tmp_path / "run", "steps=8", sharded)
    result = train(longer, resume=True, progress_bar=False)
    assert (result.steps, result.stopped_by) == (4, "SIGTERM")
    earlier = read_weights(tmp_path / "run/model")
    name, weight = next(iter(result.model.named_parameters()))
    assert not torch.equal(weight.detach().full_tensor(), earlier[name])


def test_a_loader_that_ends_within_a_step_is_an_error(data, tmp_path, monkeypatch):
    short = Gradients._with_rests
    monkeypatch.setattr(Gradients, "_with_rests", lambda self, batches, step: list(short(self, batches, step))[:-1])
    with pytest.raises(RuntimeError, match="step 0 has 3 micro-batches, expected 4: the loader ended"):
        train(RUNS["videomae"].config(data, tmp_path / "run"), progress_bar=False)


def _demo(rank: int, output: str) -> dict[str, float]:
    settings = [
        f"output_dir={output}", "device=cpu", "data.num_workers=0", "tensorboard=false", "model.width=48",
        "model.depth=1", "model.num_heads=2", "model.decoder_width=24", "model.decoder_num_heads=2", "steps=2",
        "model.image_size=32", "model.num_frames=4", "model.tubelet=2,8,8", "batch_size=8", "micro_batch=2",
        "data.vocab_size=300", "log_every=1",
    ]  # fmt: skip
    config = apply_overrides(get_recipe("simvtp_demo"), settings)
    synthetic = SyntheticConfig(num_train=12, num_test=4, num_frames=8, height=64, width=64)
    report = runs.demo(config, synthetic, progress_bar=False)
    return {"R1": report["retrieval"]["t2v"]["R1"], "steps": report["steps"]}


def test_the_demo_runs_on_two_processes(tmp_path):
    (two := tmp_path / "two").mkdir()
    found = run_ranks(_demo, two, str(two / "demo"), processes=2)
    assert found == [_demo(0, str(tmp_path / "one"))] * 2
    for one, other in zip(records_of(tmp_path / "one"), records_of(two / "demo"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert (two / "demo/gallery.html").is_file()


def test_a_resumed_run_without_a_checkpoint_says_that_it_starts_anew(data, tmp_path, stop_at, caplog):
    config = RUNS["videomae"].config(data, tmp_path / "run", "steps=2")
    train(config, progress_bar=False)
    shutil.rmtree(tmp_path / "run/checkpoints")
    caplog.clear()
    assert train(config, resume=True, progress_bar=False).steps == 2
    assert f"{tmp_path / 'run'} has no checkpoint: starts anew, without the 2 steps on record" in caplog.text


def test_whoever_may_read_the_folder_may_read_the_weights(data, tmp_path):
    train(RUNS["videomae"].config(data, tmp_path / "run", "steps=1"), progress_bar=False)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run/model").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
