"""Runs whose processes are killed, all at once or one of them, at random moments, and are started anew."""

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from fastvtp.model_folder import list_checkpoints
from fastvtp.training.checkpoints import newest_whole
from fastvtp.training.loop import train
from tests.forking import forking_context
from tests.training.test_many_processes import records_of
from tests.training.tiny_runs import RUNS, prepare

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
# a checkpoint each step: one is always being written
MORE = ("checkpoint_every=1", "keep_checkpoints=3")


def _train(rank: int, root: str, output: str, store: str, more: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    train(RUNS["simvtp-hard"].config(Path(root), Path(output), *more), resume=True, progress_bar=False)
    dist.barrier()
    dist.destroy_process_group()


def start(folder: Path, *arguments: Any) -> Any:
    folder.mkdir(parents=True)
    forking_context()
    root, output, more = arguments
    shared = (str(root), str(output), str(folder / "store"), more)
    return start_processes(_train, shared, nprocs=2, join=False, start_method="forkserver")


def ended(context: Any, seconds: float) -> bool:
    """Whether the processes came to their end in time; one that failed, as its peer was killed, is an end too."""
    deadline = time.monotonic() + seconds
    while any(process.is_alive() for process in context.processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(process.is_alive() for process in context.processes)


def kill(context: Any, which: tuple[int, ...]) -> None:
    for number in which:
        context.processes[number].kill()
    # those that are left find out, or are waiting for a write; torchrun would end them likewise
    if not ended(context, 5):
        for process in context.processes:
            process.kill()
    for process in context.processes:
        process.join()


def killed_again_and_again(data: Path, folder: Path, *, steps: int, kills: int, seed: int) -> dict[str, int]:
    """Train with kills at random moments of the training, until it is done. Returns how often the newest checkpoint
    was damaged, a kill found one being written, and a kill came."""
    drawn, output = random.Random(seed), folder / "runs"
    more, seen = (*MORE, f"steps={steps}"), {"killed": 0, "writing": 0, "alone": 0}
    for attempt in range(10 * kills):
        before = {path.name for path in list_checkpoints(output)}
        context = start(folder / f"attempt{attempt}", data, output, more)
        if seen["killed"] < kills:
            # the moments lie behind the first new checkpoint, so that the run gets ahead
            while {path.name for path in list_checkpoints(output)} <= before and not ended(context, 0):
                time.sleep(0.005)
            time.sleep(drawn.random() * 0.4)
            which = drawn.choice([(0, 1), (0, 1), (0,), (1,)])
            if not ended(context, 0):
                seen["killed"] += 1
                seen["alone"] += len(which) == 1
                seen["writing"] += any((output / "checkpoints").glob("partial_*"))
            kill(context, which)
            newest = newest_whole(output)  # raises where none is whole
            assert newest is not None
            assert newest == list_checkpoints(output)[-1], "the newest checkpoint is damaged"
        else:
            assert ended(context, 240)
            context.join()
        if (output / "model").is_dir():
            return seen
    raise AssertionError(f"the run came to no end: {seen}")


@pytest.fixture(scope="module")
def data(captioned_videos) -> Path:
    return prepare(captioned_videos)


def check(data: Path, folder: Path, *, steps: int, kills: int, seed: int) -> dict[str, int]:
    whole = folder / "whole"
    context = start(folder / "uninterrupted", data, whole, (*MORE, f"steps={steps}"))
    assert ended(context, 240)
    context.join()
    seen = killed_again_and_again(data, folder, steps=steps, kills=kills, seed=seed)
    assert records_of(whole) == records_of(folder / "runs")
    first, second = (path / "model/model.safetensors" for path in (whole, folder / "runs"))
    assert first.read_bytes() == second.read_bytes()
    shutil.rmtree(folder / "runs")
    return seen


def test_killed_groups_go_on_and_end_alike(data, tmp_path):
    seen = check(data, tmp_path, steps=8, kills=2, seed=1)
    assert seen["killed"] >= 1


@pytest.mark.long
def test_twenty_kills(data, tmp_path):
    seen = check(data, tmp_path, steps=60, kills=20, seed=2)
    print(seen)
    assert seen["killed"] == 20
    assert seen["writing"] > 0
    assert seen["alone"] > 0
