"""The line of torchrun, and what is refused before anything is started."""

import os
import shlex
import signal
import sys
import time

import pytest
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import get_args_parser

from fastvtp.errors import ConfigError
from fastvtp.model_folder import RUN_CONFIG_NAME
from fastvtp.systems.recipes import get_recipe
from fastvtp.training import launching
from fastvtp.training.config import apply_overrides, save_config
from fastvtp.training.launching import Launch, Nodes, check_run, run_id_of, stopped_by, threads_of

ARGUMENTS = [
    "pretrain",
    "simvtp_tiny",
    "data.train=my clips.jsonl",
    "micro_batch=4",
    "--resume",
    "--preset",
    "official",
]


def failure(exitcode: int, timestamp: int) -> ProcessFailure:
    """The failure of a process that left no file about it."""
    found = ProcessFailure(local_rank=0, pid=1, exitcode=exitcode, error_file="")
    found.timestamp = timestamp
    return found


def understood(launch: Launch):
    """What torchrun reads in the line, and the variables before it."""
    words = shlex.split(launch.line())
    start = next(place for place, word in enumerate(words) if word in ("torch.distributed.run", "torchrun"))
    return get_args_parser().parse_args(words[start + 1 :]), [word for word in words[:start] if "=" in word]


def test_one_machine_stands_alone():
    read, variables = understood(Launch(arguments=ARGUMENTS, processes=8, threads=4))
    assert (read.standalone, read.nproc_per_node, read.nnodes, read.max_restarts) == (True, "8", "1:1", 0)
    assert (read.module, read.training_script, read.training_script_args) == (True, "fastvtp", ARGUMENTS)
    assert variables == ["OMP_NUM_THREADS=4", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600"]
    assert "SIGUSR1" in read.signals_to_handle.split(","), "Slurm's --signal=USR1 would end torchrun at once"


def test_several_machines_meet():
    launch = Launch(
        arguments=ARGUMENTS, processes=8, nodes=Nodes(2, 4), rendezvous="n1:29400", run_id="mine", max_restarts=3
    )
    read, variables = understood(launch)
    assert (read.standalone, read.nproc_per_node, read.nnodes, read.max_restarts) == (False, "8", "2:4", 3)
    assert (read.rdzv_backend, read.rdzv_endpoint, read.rdzv_id) == ("c10d", "n1:29400", "mine")
    assert read.training_script_args == ARGUMENTS
    assert variables[-1] == "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"


def test_the_program_is_this_python_s(monkeypatch, tmp_path):
    launch = Launch(arguments=ARGUMENTS, processes=2)
    other = tmp_path / "torchrun"
    other.touch(mode=0o755)
    module = f"{sys.executable} -m torch.distributed.run"
    own = os.path.join(os.path.dirname(sys.executable), "torchrun")
    for path, program in ((own, "torchrun"), (str(other), module), (None, module)):
        monkeypatch.setattr(launching.shutil, "which", lambda _, path=path: path)
        assert f"=600 {program} --standalone " in launch.line()


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        (None, 0),
        (ChildFailedError("fastvtp", {1: failure(5, 30), 0: failure(-15, 40)}), 5),
        (ChildFailedError("fastvtp", {0: failure(-9, 30)}), 137),
        (SignalException("asked", signal.SIGUSR1), 128 + signal.SIGUSR1),
    ],
)
def test_the_exit_status_is_that_of_the_process_that_failed_first(ends, status, monkeypatch):
    started = []

    def main(options):
        started.append(get_args_parser().parse_args(options).training_script_args)
        if ends is not None:
            raise ends

    monkeypatch.setattr("torch.distributed.run.main", main)
    for name in ("OMP_NUM_THREADS", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.setenv(name, "9")
    assert Launch(arguments=ARGUMENTS, processes=2, threads=3).run() == status
    assert started == [ARGUMENTS]
    assert (os.environ["OMP_NUM_THREADS"], os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) == ("3", "600")


def test_a_run_that_was_stopped_says_so_in_its_report(tmp_path):
    config = apply_overrides(get_recipe("simvtp_tiny"), [f"output_dir={tmp_path}"])
    now = time.time()
    assert stopped_by(config, now) is None
    (tmp_path / "report.json").write_text('{"steps": 3, "stopped_by": "SIGUSR1"}')
    assert stopped_by(config, now - 60) == "SIGUSR1"
    assert stopped_by(config, now + 60) is None, "the report of an earlier run"
    (tmp_path / "report.json").write_text('{"steps": 3}')
    assert stopped_by(config, now - 60) is None


@pytest.mark.parametrize(("text", "nodes"), [("4", Nodes(4, 4)), ("2:4", Nodes(2, 4)), ("1", Nodes())])
def test_numbers_of_machines(text, nodes):
    assert Nodes.read(text) == nodes
    assert str(nodes) == text


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Nodes.read("4:2"),
            "--nodes expects a number of machines such as 4, or a range such as 2:4, got '4:2'",
        ),
        (lambda: Nodes.read("0"), "got '0'"),
        (lambda: Launch(arguments=[], processes=0), "--gpus must be at least 1, got 0"),
        (lambda: Launch(arguments=[], processes=1, max_restarts=-1), "--max-restarts must not be negative, got -1"),
        (lambda: Launch(arguments=[], processes=1, nodes=Nodes(1, 2)), "1:2 machines need --rendezvous HOST:PORT"),
        (
            lambda: Launch(arguments=[], processes=1, rendezvous="a:b"),
            "--rendezvous expects HOST or HOST:PORT, got 'a:b",
        ),
    ],
)
def test_what_cannot_be_is_named(make, said):
    with pytest.raises(ConfigError) as raised:
        make()
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "worlds", "said"),
    [
        (["micro_batch=8"], [4, 5], "5 processes cannot share the 8 micro-batch"),
        (["micro_batch=8", "parallel.strategy=none"], [2], "parallel.strategy=none is for one process, there are 2"),
        (["micro_batch=8", "parallel.strategy=hsdp", "parallel.shard_size=4"], [8, 2], "shard_size=4 does not divide"),
    ],
)
def test_a_run_is_refused_for_any_of_its_numbers_of_processes(settings, worlds, said, tmp_path):
    config = apply_overrides(get_recipe("simvtp_tiny"), [f"output_dir={tmp_path / 'run'}", *settings])
    for allowed in worlds[:-1]:
        check_run(config, [allowed])
    with pytest.raises(ConfigError, match=said):
        check_run(config, worlds)


def test_a_folder_that_is_taken_is_refused_before_it_costs_anything(tmp_path):
    config = apply_overrides(get_recipe("simvtp_tiny"), [f"output_dir={tmp_path}"])
    save_config(config, tmp_path / RUN_CONFIG_NAME)
    with pytest.raises(ConfigError, match="already holds a run: add --resume"):
        check_run(config, [1])
    check_run(config, [1], resume=True)


def test_threads_are_those_given_or_a_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(launching.os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert threads_of(4, {"OMP_NUM_THREADS": "2"})[0] == 2
    assert threads_of(4, {}) == (3, "12 cores of this machine for 4 processes")
    assert threads_of(16, {"OMP_NUM_THREADS": "many"})[0] == 1


def test_a_run_is_known_by_its_folder():
    assert run_id_of("runs/my run") == "runs_my_run"
    assert run_id_of("/") == "fastvtp"
