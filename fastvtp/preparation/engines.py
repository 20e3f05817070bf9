"""Who does the work on shards: threads of this process, each with a process that it may lose, or Ray."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastvtp.errors import UserError
from fastvtp.preparation.shard_work import ShardWork

ENGINES = ("pool", "ray")


@dataclass(frozen=True)
class Engine:
    """Does a function of a shard for many shards at once.

    name: "pool" or "ray". workers: shards at a time. ray_address: of a cluster that there is, "auto" for the one that
    this machine is part of; "" starts one of this machine alone.
    """

    name: str = "pool"
    workers: int = 1
    ray_address: str = ""

    def __post_init__(self) -> None:
        """Raise UserError for an engine that there is not, and for less than one worker."""
        if self.name not in ENGINES:
            raise UserError(f"engine must be one of {', '.join(ENGINES)}, got {self.name!r}")
        if self.workers < 1:
            raise UserError(f"workers must be at least 1, got {self.workers}")

    def run(self, jobs: Sequence[tuple[Any, ...]], function: Callable[..., Any], seen: Callable[[int], Any]) -> None:
        """Call `function(*job)` for each job, whose first entry is the work on a shard. What one raises is raised.

        seen: is told of items that are done. Jobs are handed out in their order.
        """
        if not jobs:
            return
        run = _by_threads if self.name == "pool" else _by_ray
        for _ in run(self, jobs, function, seen):
            pass


def _by_threads(
    engine: Engine, jobs: Sequence[tuple[Any, ...]], function: Callable[..., Any], seen: Callable[[int], Any]
) -> Iterator[Any]:
    """Do jobs in threads that end with this process: each waits for a process of its own."""
    waiting: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((function(*job, seen=lambda items: done.put(items)), None))
            except BaseException as error:
                done.put((None, error))
                return

    for _ in range(min(engine.workers, len(jobs))):
        threading.Thread(target=work, daemon=True).start()
    left = len(jobs)
    try:
        while left:
            told = done.get()
            if isinstance(told, int):
                seen(told)
                continue
            result, error = told
            if error is not None:
                raise error
            left -= 1
            yield result
    finally:
        stopped.set()


def _by_ray(
    engine: Engine, jobs: Sequence[tuple[Any, ...]], function: Callable[..., Any], seen: Callable[[int], Any]
) -> Iterator[Any]:
    """Do jobs as tasks of Ray Data, a block of its own for each shard."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("engine=ray needs Ray: pip install 'fastvtp[ray]'") from None
    begun = not ray.is_initialized()
    if begun:
        where: dict[str, Any] = {"address": engine.ray_address} if engine.ray_address else {"num_cpus": engine.workers}
        ray.init(**where, log_to_driver=False, logging_level=logging.WARNING)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # the works on shards go by reference: each task fetches its own
        stored = [ray.put(job) for job in jobs]

        def task(row: dict[str, Any]) -> dict[str, Any]:
            job = ray.get(stored[row["item"]])
            try:
                function(*job)
            except (UserError, OSError) as error:  # which end the run, with their line, and are not tried again
                return {"items": 0, "error": str(error)}
            return {"items": len(job[0].items), "error": ""}

        rows = ray.data.from_items(list(range(len(jobs))), override_num_blocks=len(jobs))
        for row in rows.map(task, num_cpus=1, concurrency=engine.workers).iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            seen(row["items"])
            yield None
    finally:
        if begun:
            ray.shutdown()


def share_of(works: Sequence[ShardWork], part: tuple[int, int] | None) -> Sequence[ShardWork]:
    """Return the works on shards I, I + N, I + 2 N ... for `part` (I, N), as of an array of jobs; all for None."""
    return works if part is None else works[part[0] :: part[1]]
