"""Processes of one torch.distributed group (gloo, CPU), for tests of what ranks compute together."""

import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from tests.forking import forking_context


def _enter(rank: int, work: Callable[..., Any], folder: Path, processes: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=processes,
        timeout=timedelta(seconds=60),
    )
    torch.save(work(rank, *arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run_ranks(
    work: Callable[..., Any], folder: Path, *arguments: Any, processes: int, seconds: float = 240
) -> list[Any]:
    """What `work(rank, *arguments)`, a function of a module, returns on each rank; `folder` is for their files.

    Raises TimeoutError for processes that have not ended in time, which are killed.
    """
    forking_context()
    context: Any = start_processes(
        _enter, (work, folder, processes, arguments), nprocs=processes, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + seconds
    try:
        while not context.join(timeout=5):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the {processes} processes did not end within {seconds} seconds")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]
