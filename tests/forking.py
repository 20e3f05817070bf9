"""Child processes that find their imports done.

A server process imports what they need, and forks each of them. A child begins like a process started by hand: nothing
of another is in its memory, and it may be killed. That holds as long as the server itself computes nothing: torch's
pools of threads would not survive the fork.
"""

import multiprocessing
import os
import runpy
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
# the last are imported by functions of the library, when a run comes to need them
IMPORTS = ["typer", "fastvtp.runs", "av", "nvidia.dali.fn", "torch._dynamo", "matplotlib.figure"]
THREADS = 2
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": str(THREADS)}


def forking_context() -> ForkServerContext:
    """Starts the server if this is the first call. Children get the environment that the server got."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    return context


def start_command(arguments: list[str], errors: Path) -> BaseProcess:
    """A running `fastvtp ARGUMENTS` with two threads, whose stderr goes to the file `errors`."""
    process = forking_context().Process(target=_command, args=(arguments, errors))
    process.start()
    return process


def _command(arguments: list[str], errors: Path) -> None:
    with errors.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = ["fastvtp", *arguments]
    assert torch.get_num_threads() == THREADS
    runpy.run_module("fastvtp", run_name="__main__")
