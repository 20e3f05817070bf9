"""The `fastvtp` command in child processes that find its imports done.

A server process imports what the command needs, and forks a child for each run. A child begins like a process started
by hand: nothing of an earlier run is in its memory, and killing it harms no other. That holds as long as the server
itself computes nothing, whose pools of threads would not survive the fork.
"""

import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from fastvtp.cli import main

ROOT = Path(__file__).parents[2]
# the last are imported by functions of the library, when a run comes to need them
IMPORTS = ["fastvtp.cli", "fastvtp.runs", "av", "nvidia.dali.fn", "torch._dynamo", "matplotlib.figure"]
THREADS = 2
ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
    "OMP_NUM_THREADS": str(THREADS),
    "OMP_WAIT_POLICY": "passive",  # two threads that spin while other tests have the cores take minutes
}


def start_command(arguments: list[str], errors: Path) -> BaseProcess:
    """A running `fastvtp ARGUMENTS`, whose stderr goes to the file `errors`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    process = context.Process(target=_command, args=(arguments, errors))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        process.start()  # the first one starts the server
    return process


def _command(arguments: list[str], errors: Path) -> None:
    with errors.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = ["fastvtp", *arguments]
    assert torch.get_num_threads() == THREADS
    main()
