"""`fastvtp launch`: the line, and what is refused before it is printed or run."""

import logging
import shlex
import sys

import pytest
from torch.distributed.run import get_args_parser

from fastvtp.cli import main as cli
from fastvtp.model_folder import RUN_CONFIG_NAME
from fastvtp.systems.recipes import get_recipe
from fastvtp.training import launching
from fastvtp.training.config import save_config


@pytest.fixture
def launch(capsys, caplog, monkeypatch, tmp_path):
    """Runs `fastvtp launch ARGUMENTS` in a folder of its own: the exit status, what torchrun reads in the line, None
    without one, and what was said beside it."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str):
        caplog.clear()
        monkeypatch.setattr(sys, "argv", ["fastvtp", "launch", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        words = shlex.split(captured.out)
        start = next((place for place, word in enumerate(words) if word.endswith(("torchrun", ".run"))), None)
        read = None if start is None else get_args_parser().parse_args(words[start + 1 :])
        return int(stopped.value.code or 0), read, captured.err + caplog.text

    return call


def test_a_recipe_becomes_torchrun_s_line(launch):
    status, read, said = launch("simvtp_tiny", "micro_batch=8", "data.train=a b.jsonl", "--gpus", "8", "--resume")
    assert status == 0, said
    assert (read.standalone, read.nproc_per_node) == (True, "8")
    settings = ["micro_batch=8", "data.train=a b.jsonl"]
    assert [read.training_script, *read.training_script_args] == [
        "fastvtp", "pretrain", "simvtp_tiny", *settings, "--resume"
    ]  # fmt: skip
    assert "on this machine data.train=a b.jsonl does not exist" in said
    assert "OMP_NUM_THREADS=" in said


def test_fine_tuning_presets_and_machines(launch):
    arguments = ["qa_finetune", "--preset", "official", "--gpus", "4", "--nodes", "2", "--rendezvous", "n1:29400"]
    status, read, said = launch(*arguments, "--threads", "6")
    assert status == 0, said
    assert (read.nnodes, read.rdzv_endpoint, read.rdzv_id) == ("2", "n1:29400", "runs_qa")
    assert read.training_script_args == ["finetune", "qa_finetune", "--preset", "official"]
    assert "--threads" not in said


def test_restarts_resume(launch):
    status, read, said = launch("simvtp_tiny", "--gpus", "1", "--max-restarts", "3")
    assert (status, read.max_restarts, read.training_script_args[-1]) == (0, 3, "--resume")
    assert "--resume is added" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simvtp_tiny", "--gpus", "8"], "8 processes cannot share the 1 micro-batch"),
        (["simvtp_tiny", "--gpus", "8"], "set micro_batch=8"),
        (["simvtp_tny", "--gpus", "8"], "did you mean 'simvtp_tiny'"),
        (["simvtp_tiny", "micro_bach=8", "--gpus", "8"], "did you mean 'micro_batch'"),
        (["simvtp_tiny", "micro_batch=8", "--gpus", "2", "--nodes", "2"], "2 machines need --rendezvous HOST:PORT"),
        (["simvtp_tiny", "micro_batch=8", "--gpus", "1", "--nodes", "2:3", "--rendezvous", "h"], "3 processes cannot"),
        (["simvtp_tiny", "micro_batch=8"], "say how many processes a machine has, --gpus 8"),
    ],
)
def test_mistakes_are_told_in_a_line_and_no_line_is_printed(launch, monkeypatch, arguments, said):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    status, read, told = launch(*arguments)
    assert (status, read) == (2, None)
    assert said in told
    assert len([line for line in told.splitlines() if line.startswith("fastvtp: ")]) == 1


def test_a_run_that_is_there_is_not_overwritten(launch, tmp_path):
    (tmp_path / "runs/simvtp_tiny").mkdir(parents=True)
    save_config(get_recipe("simvtp_tiny"), tmp_path / "runs/simvtp_tiny" / RUN_CONFIG_NAME)
    for more in ([], ["--max-restarts", "2"]):
        status, read, said = launch("simvtp_tiny", "--gpus", "1", *more)
        assert (status, read) == (2, None)
        assert "already holds a run: add --resume" in said
    assert launch("simvtp_tiny", "--gpus", "1", "--resume")[0] == 0
    status, _, said = launch("simvtp_tiny", "seed=3", "--gpus", "1", "--resume")
    assert status == 2
    assert "seed: was 0, is 3" in said


def test_as_many_as_there_are_gpus(launch, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert launch("simvtp_tiny", "micro_batch=8")[1].nproc_per_node == "4"


def test_running_wants_the_files_and_gives_the_exit_status(launch, monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(launching.Launch, "run", lambda line: started.append(line) or 7)
    status, _, said = launch("simvtp_tiny", "--gpus", "1", "--run")
    assert (status, started) == (2, [])
    assert "data.train=data/train.jsonl does not exist" in said
    arguments = ["simvtp_tiny", f"data.train={tmp_path}", "parallel.stop_exit_code=85", "--gpus", "1", "--run"]
    status, read, said = launch(*arguments)
    assert (status, read) == (7, None), said
    assert [line.processes for line in started] == [1]
    monkeypatch.setattr(launching, "stopped_by", lambda config, since: "SIGUSR1")
    assert launch(*arguments)[0] == 85
