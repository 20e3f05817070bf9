"""What a run of many processes would take, computed from its configuration: memory, traffic, reading, failures.

Every figure is a model, made of the configuration and of `Assumptions`, some of which may have been measured on the
data of the run: see `fastvtp.training.planned_data`. Bytes are bytes, GB are 10^9 of them, GiB 2^30.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from fastvtp.architecture import architecture_of
from fastvtp.errors import ConfigError
from fastvtp.settings import setting_values
from fastvtp.training.config import TrainConfig, find_task
from fastvtp.training.division import micro_batches_each, strategy_of
from fastvtp.training.footprint import Layout, Memory, memory_of, others, traffic_of
from fastvtp.training.planned_data import PlannedData
from fastvtp.training.sizes import ACTIVATIONS_KEPT, FLOAT32, count, model_without_memory, state_bytes

GB, MB, GIB = 1e9, 1e6, 2**30
_DAY, _HOUR, _MONTH_DAYS = 86_400.0, 3600.0, 365.25 / 12


MODELS = {
    "parameters, state": "counted, of the vocabulary and the classes that the configuration has; float32",
    "gathered weights": "two blocks at a time, and what is in no block",
    "gradients being summed": "of whole matrices, where a process has several micro-batches a step",
    "bfloat16 copies": "of the matrices of linear layers, by autocast",
    "activations": ACTIVATIONS_KEPT,
    "not counted": "CUDA's and NCCL's own memory, fragmentation, decoders, losses, heads",
    "sent": "rings: all-reduce 2 (n - 1) / n of the whole, all-gather and reduce-scatter half of that",
    "failures": "each loses half a period of checkpoints and a restart; checkpoints are written beside the steps",
}
"""What the figures of a plan are made of, in words."""

_MAY_BE_ZERO = ("failures", "restart_minutes", "words")


def _stated(what: str) -> Mapping[str, str]:
    return {"what": what}


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a plan takes for granted, since no configuration says it. Raises ConfigError for a value out of range."""

    gpus: int = field(default=8, metadata=_stated("GPUs of the run, one process each"))
    gpus_per_node: int = field(default=8, metadata=_stated("GPUs of a machine"))
    gpu_memory: float = field(default=80.0, metadata=_stated("GiB of memory of a GPU"))
    words: float = field(default=24.0, metadata=_stated("tokens of a text, on average"))
    step_seconds: float | None = field(default=None, metadata=_stated("seconds that a step takes, as you measured it"))
    clips_per_second_per_gpu: float | None = field(
        default=None, metadata=_stated("clips a second that a GPU trains on, as you measured it")
    )
    clip_mb: float = field(default=1.0, metadata=_stated("MB that are read of the storage for a clip"))
    decoded_frames: float | None = field(default=None, metadata=_stated("frames that are decoded for a clip"))
    clips: int | None = field(default=None, metadata=_stated("clips of the data set"))
    network: float = field(default=50.0, metadata=_stated("GB a second that a machine sends to the others"))
    storage: float = field(default=5.0, metadata=_stated("GB a second that all machines together write"))
    failures: float = field(default=1.0, metadata=_stated("failures of a machine a month"))
    restart_minutes: float = field(default=10.0, metadata=_stated("minutes from a failure to the next step"))

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None and not (value > 0 or (value == 0 and entry.name in _MAY_BE_ZERO)):
                raise ConfigError(f"{option_of(entry.name)} must be positive, got {value}")
        if self.step_seconds is not None and self.clips_per_second_per_gpu is not None:
            raise ConfigError("--step-seconds and --clips-per-second-per-gpu say the same: give one of them")
        if self.gpus > self.gpus_per_node and self.gpus % self.gpus_per_node:
            raise ConfigError(f"--gpus={self.gpus} is no multiple of --gpus-per-node={self.gpus_per_node}")

    @property
    def nodes(self) -> int:
        """Machines of the run."""
        return -(-self.gpus // self.gpus_per_node)


def option_of(name: str) -> str:
    """Return the option of `fastvtp plan` that sets an assumption."""
    return "--" + name.replace("_", "-")


def describe(
    config: TrainConfig, assumed: Assumptions, data: PlannedData | None = None, sources: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the plan of a run as JSON holds it, with its assumptions and models.

    data: what was found in the data of the run, whose settings are then `data.config`. sources: of the assumptions that
    were measured, what on, in words.

    Raises ConfigError for processes that cannot share the run.
    """
    values = vars(assumed) | {"decoded_frames": assumed.decoded_frames or decoded_frames(config)}
    stated = {
        entry.name: {
            "what": entry.metadata["what"],
            "value": values[entry.name],
            "option": option_of(entry.name),
        }
        for entry in fields(assumed)
    }
    for name, source in (sources or {}).items():
        stated[name]["measured"] = source
    if data is None:
        return {**plan(config, assumed), "data": None, "assumptions": stated, "models": MODELS}
    found = plan(data.config, assumed)
    if data.stored_bytes is not None and {"clips", "clip_mb"} <= set(sources or ()):
        found["reading"]["stored_bytes"] = data.stored_bytes
    needed = found["reading"]["clips_a_second"]
    found["reading"]["loader"] = {**data.said["loader"], "needed": _over(needed, assumed.gpus)}
    models = MODELS | {"parameters, state": "counted, of the vocabulary and the classes of the data; float32"}
    return {**found, "data": dict(data.said), "assumptions": stated, "models": models}


def plan(config: TrainConfig, assumed: Assumptions) -> dict[str, Any]:
    """Return the figures of a plan: bytes, seconds, counts; None where an assumption is not given.

    Raises ConfigError for processes that cannot share the run.
    """
    each = micro_batches_each(config.batch_size, config.micro_batch, assumed.gpus)
    model = model_without_memory(config.model)
    trained = count(parameter for parameter in model.parameters() if parameter.requires_grad)
    chosen = strategy_of(
        config.parallel, config.optimizer.algorithm, assumed.gpus, trained, int(assumed.gpu_memory * GIB)
    )
    seconds = _step_seconds(config, assumed)
    return {
        "run": {
            "task": config.task,
            "strategy": chosen.name,
            "why": chosen.why,
            "processes": assumed.gpus,
            "machines": assumed.nodes,
            "clips_a_step": config.batch_size,
            "clips_at_a_time": config.clips_at_a_time,
            "micro_batches_a_process": each,
            "steps": config.steps,
            "parameters": count(model.parameters()),
            "trained": trained,
        },
        "strategies": {
            name: _strategy(config, model, shards, each, assumed) for name, shards in _shards(config, assumed).items()
        },
        "exchange": _exchange(config, assumed),
        "reading": _reading(config, assumed, seconds),
        "checkpoints": _checkpoints(config, model, assumed, seconds),
        "failures": _failures(config, assumed, seconds),
    }


def _shards(config: TrainConfig, assumed: Assumptions) -> dict[str, int]:
    """Return how many processes share one copy of the model, by strategy: all that a run of this size could have."""
    size = config.parallel.shard_size or assumed.gpus_per_node
    found = {"ddp" if assumed.gpus > 1 else "none": 1}
    if config.optimizer.algorithm == "adamw" and assumed.gpus > 1:
        found["fsdp2"] = assumed.gpus
        if 1 < size < assumed.gpus and not assumed.gpus % size:
            found["hsdp"] = size
    return found


def _strategy(config: TrainConfig, model: nn.Module, shards: int, each: int, assumed: Assumptions) -> dict[str, Any]:
    layout = Layout(assumed.gpus, assumed.gpus_per_node, shards, each)
    rows = architecture_of(config.model).rows
    memory = memory_of(config, model, layout, None if rows is None else rows(config.model, assumed.words))
    sent = traffic_of(config, model, layout)
    return {
        "shared_by": shards,
        "memory": {**dataclasses.asdict(memory), "total": memory.total},
        "share_of_gpu": memory.total / (assumed.gpu_memory * GIB),
        "largest_micro_batch": _largest_micro_batch(config, memory, assumed),
        "sent_by_process": sent.process,
        "sent_by_machine": sent.node,
        "network_seconds": sent.node / (assumed.network * GB),
    }


def _largest_micro_batch(config: TrainConfig, memory: Memory, assumed: Assumptions) -> int | None:
    """Return the largest micro-batch that fits, of those that the processes can share; 0 where none does, None where
    the model does not tell of its activations."""
    if memory.activations is None:
        return None
    of_clip = memory.activations / config.clips_at_a_time
    free = assumed.gpu_memory * GIB - (memory.total - memory.activations)
    own = config.batch_size // assumed.gpus
    return max((clips for clips in range(1, own + 1) if own % clips == 0 and clips * of_clip <= free), default=0)


def _exchange(config: TrainConfig, assumed: Assumptions) -> dict[str, Any]:
    """Return the bytes a step that a process receives because losses look at other micro-batches."""
    task, values = find_task(config.task), setting_values(config.model)
    contrast, matching = config.scopes
    from_others = others(assumed.gpus) * config.batch_size
    width = values.get("projection_dim") or values.get("width") or 0
    clip = config.model.num_frames * config.model.image_size**2 * 3
    compared, paired = task.contrasts and contrast == "global", task.matches and matching == "global"
    return {
        "features": from_others * 2 * width * FLOAT32 if compared else 0,
        "wrong_clips": from_others / assumed.gpus * clip if paired else 0,
    }


def _step_seconds(config: TrainConfig, assumed: Assumptions) -> float | None:
    if assumed.clips_per_second_per_gpu is not None:
        return config.batch_size / (assumed.gpus * assumed.clips_per_second_per_gpu)
    return assumed.step_seconds


def decoded_frames(config: TrainConfig) -> int | None:
    """Return the frames from the first to the last that a clip takes, where the reading fixes it; else None."""
    reading, frames = config.data.reading, config.model.num_frames
    fixed = reading.sampling == "strided" and reading.fps is None
    return (frames - 1) * reading.frame_stride + 1 if fixed else None


def _reading(config: TrainConfig, assumed: Assumptions, seconds: float | None) -> dict[str, Any]:
    frames = assumed.decoded_frames or decoded_frames(config)
    of_step = {
        "clips": config.batch_size,
        "bytes": config.batch_size * assumed.clip_mb * MB,
        "frames": None if frames is None else config.batch_size * frames,
    }
    rates = {f"{name}_a_second": _over(value, seconds) for name, value in of_step.items()}
    return {
        **{f"{name}_a_step": value for name, value in of_step.items()},
        **rates,
        "clips_a_second_a_machine": _over(rates["clips_a_second"], assumed.nodes),
        "seconds": _times(seconds, config.steps),
        "clips_seen": config.batch_size * config.steps,
        "epochs": _over(config.batch_size * config.steps, assumed.clips),
        "stored_bytes": _times(assumed.clips, assumed.clip_mb * MB),
    }


def _checkpoints(
    config: TrainConfig, model: nn.Module, assumed: Assumptions, seconds: float | None
) -> dict[str, float | None]:
    state = state_bytes(model, config.optimizer, averaged=config.ema_decay is not None)
    size = state.total - state.gradients
    return {
        "bytes": size,
        "bytes_a_process": size / assumed.gpus,
        "write_seconds": size / (assumed.storage * GB),
        "period_seconds": _times(seconds, config.checkpoint_every),
    }


def _failures(config: TrainConfig, assumed: Assumptions, seconds: float | None) -> dict[str, float | None]:
    """Return how often a run fails and what that costs: half a period of checkpoints and a restart each time."""
    if not assumed.failures:
        return {"between_seconds": None, "expected": 0.0, "lost_share": 0.0}
    between = _MONTH_DAYS * _DAY / (assumed.nodes * assumed.failures)
    lost = None if seconds is None else seconds * config.checkpoint_every / 2 + 60 * assumed.restart_minutes
    return {
        "between_seconds": between,
        "expected": None if seconds is None else seconds * config.steps / between,
        "lost_share": None if lost is None else lost / between,
    }


def _over(value: float | None, by: float | None) -> float | None:
    return None if value is None or by is None else value / by


def _times(value: float | None, by: float | None) -> float | None:
    return None if value is None or by is None else value * by
