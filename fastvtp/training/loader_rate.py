"""How many clips a second the loader of a run makes on this machine, by a short trial of it."""

import time
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from fastvtp.data.text import Tokenizer
from fastvtp.data.workers.child_processes import cores
from fastvtp.settings import choose_device
from fastvtp.training.config import TrainConfig
from fastvtp.training.loading import training_loader
from fastvtp.training.state import Progress
from fastvtp.training.task import Task

_CLIPS = 8  # of a batch
_STEPS = 1_000_000
_WARM_UP = 3  # batches that are made while workers start, or were ready before they were asked for


@dataclass(frozen=True)
class LoaderRate:
    """What a trial of a loader came to.

    Attributes:
        clips_a_second: of one process of the run, with its workers.
        clips: that were counted.
        workers: that decoded them; 0: the process itself.
        cores: that this process may use.
    """

    clips_a_second: float
    clips: int
    workers: int
    cores: int


def loader_rate(
    config: TrainConfig, task: Task, tokenizer: Tokenizer | None, *, seconds: float, progress: bool = False
) -> LoaderRate:
    """Let the loader of a run make its first batches, and count.

    Args:
        config, task, tokenizer: of the run; the batches are of a few clips.
        seconds: that the trial takes, about: a file that takes longer counts as bad.
        progress: show a bar.

    Raises:
        UserError: what reading the clips raises.
    """
    limit = config.data.file_seconds
    data = replace(config.data, file_seconds=max(1.0, seconds if limit is None else min(limit, seconds)))
    batch = max(2, min(_CLIPS, config.clips_at_a_time))
    steps = max(config.steps, _STEPS)  # the trial ends by its time, not with a run of few steps
    small = replace(config, data=data, batch_size=batch, micro_batch=None, steps=steps)
    nothing = Progress(annotations="", device="cpu")
    began = since = time.perf_counter()
    clips = 0
    with (
        training_loader(small, task, tokenizer, _device(config), nothing, 1) as loader,
        tqdm(total=round(seconds, 1), desc="trying the loader", unit="s", disable=not progress, leave=False) as bar,
    ):
        for number, made in enumerate(loader, start=1):
            now = time.perf_counter()
            bar.update(min(round(now - began, 1), bar.total) - bar.n)
            if number <= _WARM_UP:
                since = now
            else:
                clips += len(made.sample_ids)
            if clips and now - began >= seconds:
                break
        took = time.perf_counter() - since
    return LoaderRate(clips / took, clips, data.num_workers, cores())


def _device(config: TrainConfig) -> torch.device:
    """Return the device of the run, or the CPU where this machine has none of its kind."""
    there = config.device == "auto" or not config.device.startswith("cuda") or torch.cuda.is_available()
    return choose_device(config.device) if there else torch.device("cpu")
