"""One of the processes that `scaling` starts: it times the steps of a case together with the others.

All variants take turns call by call, each call begun together; a call takes as long as on the slowest process. The
learning rate is 0, so that a variant gives the same loss each time.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fastvtp import processes
from fastvtp.architecture import build_model
from fastvtp.data.loader import VideoTextBatch
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.gradients import Gradients, seed_micro_batch
from fastvtp.training.optimizer import build_optimizer
from fastvtp.training.parallel import Parallel
from fastvtp.training.task import Task, build_task

from ..harness.memory import peak_bytes
from .step import draw_captions

LONGEST_CAPTION = 32
WARM_UP, LEAST_ROUNDS, MOST_ROUNDS = 2, 3, 200
# What every process computes by itself, the others being busy with the same: the step without any communication.
ALONE = "alone"
PLAIN = "plain ddp"
NEAR = ("contrast_scope=micro_batch", "matching_scope=micro_batch")


@dataclass(frozen=True)
class Setting:
    """A case has a recipe, settings that make it small in a smoke run, and its variants: name -> settings."""

    recipe: str
    smoke: tuple[str, ...]
    variants: dict[str, tuple[str, ...]]


_DDP, _FSDP2 = "parallel.strategy=ddp", "parallel.strategy=fsdp2"
_SMALL = (
    "model.width=32", "model.depth=2", "model.num_heads=2", "model.decoder_width=16", "model.decoder_num_heads=1",
    "model.num_frames=4", "model.image_size=32", "model.tubelet=2,8,8",
)  # fmt: skip
CASES = {
    "videomae_base": Setting(
        "videomae_pretrain_base",
        (*_SMALL, "model.decoder_depth=1"),
        {"fastvtp, ddp": (_DDP,), "fastvtp, fsdp2": (_FSDP2,)},
    ),
    "simvtp_base": Setting(
        "simvtp_base",
        (*_SMALL, "model.decoder_depth=1"),
        {
            "fastvtp, ddp, within micro-batches": (_DDP, *NEAR),
            "fastvtp, ddp, over the whole batch": (_DDP,),
            "fastvtp, fsdp2, over the whole batch": (_FSDP2,),
        },
    ),
}


@dataclass
class Step:
    """A variant of a case: its call, and the bytes of weights and optimizer state that this process holds for it."""

    call: Callable[[], Tensor]
    state: Callable[[], int]


@dataclass(frozen=True)
class Work:
    """What a process computes in a step: clips, in tiny sizes where it is a smoke run, in float32 or bfloat16."""

    clips: int
    precision: str = "float32"
    smoke: bool = False


def config_of(case: str, settings: Sequence[str], work: Work, folder: Path) -> TrainConfig:
    """Return the run of a variant, whose data are names alone."""
    clips, listed = work.clips, folder / "clips.jsonl"
    listed.write_text(
        "".join(f'{{"video": "{n}.mp4", "caption": "a clip"}}\n' for n in range(clips * processes.size()))
    )
    setting = CASES[case]
    own = [f"data.train={listed}", "init=none", f"batch_size={clips * processes.size()}", f"micro_batch={clips}"]
    own.append(f"precision={work.precision}")
    if case.startswith("simvtp"):
        own.append("text_init=none")
    return apply_overrides(get_recipe(setting.recipe), [*own, *(setting.smoke if work.smoke else ()), *settings])


def make_batch(config: TrainConfig, device: torch.device) -> VideoTextBatch:
    """Draw this process's micro-batch of step 0; the clips of the others are other ones."""
    model, clips, rank = config.model, config.clips_at_a_time, processes.rank()
    generator = torch.Generator().manual_seed(rank)
    shape = (clips, model.num_frames, model.image_size, model.image_size, 3)
    ids, lengths = draw_captions(clips, 1000, LONGEST_CAPTION, generator)
    return VideoTextBatch(
        video=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device),
        input_ids=ids,
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        text_lengths=tuple(lengths),
        max_text_length=max(lengths),
        sample_ids=torch.arange(clips) + clips * rank,
        captions=["a clip"] * clips,
        step=rank,
    )


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    optimizer = build_optimizer(model, config.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return optimizer


def _local_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    own = [value.to_local() if isinstance(value, DTensor) else value for value in (*model.parameters(), *states)]
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


def engine_step(config: TrainConfig, task: Task, batch: VideoTextBatch, device: torch.device) -> Step:
    """Return the library's step: what its training loop does but for reading and logging."""
    torch.manual_seed(0)
    parallel = Parallel(build_model(config.model, device).train(), config, device, leaves_out=task.leaves_out)
    optimizer = _optimizer(parallel.model, config)
    gradients = Gradients(config, task, parallel, 1, device)

    def call() -> Tensor:
        sums = gradients.of_step(iter([batch]), 0)
        parallel.clip_gradients(float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return sums.totals["loss"]

    return Step(call, lambda: _local_bytes(parallel.model, optimizer))


def plain_step(
    config: TrainConfig, task: Task, batch: VideoTextBatch, device: torch.device, *, together: bool = True
) -> Step:
    """Return the usual loop in plain PyTorch on the same model: DistributedDataParallel around it, forward, backward,
    the norm of the gradients, fused AdamW. together: False leaves DDP out."""
    torch.manual_seed(0)
    model = build_model(config.model, device).train()
    wrapped = (
        DistributedDataParallel(model, gradient_as_bucket_view=True) if together and processes.size() > 1 else model
    )
    optimizer = _optimizer(model, config)

    def call() -> Tensor:
        seed_micro_batch(config.seed, batch.step)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss, _ = task.loss(wrapped, model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return Step(call, lambda: _local_bytes(model, optimizer))


def steps_of(case: str, device: torch.device, work: Work, folder: Path) -> dict[str, Step]:
    """Return all variants of a case, each with a model of its own and the same clips."""
    steps = {}
    for name, settings in CASES[case].variants.items():
        config = config_of(case, settings, work, folder)
        task, batch = build_task(config), make_batch(config, device)
        steps[name] = engine_step(config, task, batch, device)
    config = config_of(case, NEAR, work, folder)
    task, batch = build_task(config), make_batch(config, device)
    steps[PLAIN] = plain_step(config, task, batch, device)
    steps[ALONE] = plain_step(config, task, batch, device, together=False)
    return steps


def time_together(steps: dict[str, Step], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Time the steps in turns for about `seconds`; returns what each call took on the slowest process, in seconds."""
    samples: dict[str, list[float]] = {name: [] for name in steps}

    def round_of() -> float:
        began = time.perf_counter()
        for name, step in steps.items():
            processes.gather(None)  # all begin together
            start = time.perf_counter()
            step.call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            samples[name].append(time.perf_counter() - start)
        return time.perf_counter() - began

    for _ in range(WARM_UP):
        length = round_of()
    rounds = max(processes.gather(min(max(int(seconds / length), LEAST_ROUNDS), MOST_ROUNDS)))
    for _ in range(rounds):
        round_of()
    of_all = processes.gather({name: values[WARM_UP:] for name, values in samples.items()})
    return {name: [max(calls) for calls in zip(*(own[name] for own in of_all), strict=True)] for name in steps}


def measure(case: str, device: torch.device, work: Work, seconds: float) -> dict[str, dict[str, Any]]:
    """Measure a case; every process must call this. Returns of each variant its loss, the mean over the processes, the
    times of its calls, and of the process that needs most the bytes of state and at the peak of a call above it."""
    with tempfile.TemporaryDirectory() as folder:
        steps = steps_of(case, device, work, Path(folder))
    losses = {name: statistics.fmean(processes.gather(step.call().item())) for name, step in steps.items()}
    times = time_together(steps, device, seconds)
    found = {}
    for name, step in steps.items():
        peaks = processes.gather((peak_bytes(step.call, device), step.state()))
        found[name] = {
            "loss": losses[name],
            "times": times[name],
            "peak_bytes": max((peak for peak, _ in peaks if peak is not None), default=None),
            "state_bytes": max(state for _, state in peaks),
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the cases that are named, and let the first process write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="+", choices=CASES, required=True)
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--clips", type=int, required=True)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args(arguments)
    device, work = processes.own_device(given.device), Work(given.clips, given.precision, given.smoke)
    with processes.process_group(device, 300, alone=True):
        found = {}
        for case in given.case:
            found[case] = measure(case, device, work, given.seconds)
            if processes.is_first():
                given.json.write_text(json.dumps(found))
        dist.barrier()


if __name__ == "__main__":
    main()
