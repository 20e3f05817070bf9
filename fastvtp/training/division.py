"""How the batch of a step is divided into micro-batches, and these among processes."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from fastvtp.errors import ConfigError
from fastvtp.processes import DEFAULT_TIMEOUT
from fastvtp.settings import check_types

BYTES_A_PARAMETER = 16  # float32: weight, gradient, two moments of AdamW
LARGEST_SHARE = 0.5  # of a GPU's memory that these may fill; the rest is for activations


@runtime_checkable
class RecommendsScope(Protocol):
    """A configuration of a model that says whether its contrast compares the clips of the whole batch."""

    gather_negatives: bool


SHARDED = ("fsdp2", "hsdp")
"""The strategies under which a process holds a part of the model."""
STRATEGIES, SCOPES = ("auto", "none", "ddp", *SHARDED), ("global", "micro_batch")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the processes of a run share it; nothing of it changes what the run computes, beyond rounding. Raises
    ValueError for a value out of range."""

    strategy: str = "auto"
    """"none": one process. "ddp": every process holds the whole model. "fsdp2": each holds a part of every matrix and
    of its optimizer state. "hsdp": groups of `shard_size` processes share one copy. "auto": none for one process, ddp
    for several, fsdp2 where weights, gradients and optimizer state would fill more than half of a GPU."""
    shard_size: int | None = None
    """hsdp: processes that share one copy of the model, such as the GPUs of a machine; it divides their number."""
    param_dtype: str = "float32"
    """fsdp2, hsdp: dtype in which the matrices of a block are gathered and used: "float32", or "bfloat16", which halves
    what is sent and needs precision=bfloat16. Norms, heads, embeddings and gradients that are summed stay float32."""
    timeout: float = DEFAULT_TIMEOUT
    """Seconds that a process waits for the others before the run ends, with a line that says so. The inner groups of
    hsdp keep torch's own: 10 minutes of NCCL."""
    stop_exit_code: int = 0
    """Exit code of a run that SIGTERM or SIGUSR1 ended, with a checkpoint to go on from; a scheduler may start it anew
    at one that it knows. After Ctrl-C it is 130."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        if (self.shard_size is None) == (self.strategy == "hsdp"):
            needs = "needs a" if self.strategy == "hsdp" else "takes no"
            raise ValueError(f"strategy={self.strategy} {needs} shard_size, the processes that share a copy")
        if self.shard_size is not None and self.shard_size < 2:
            raise ValueError(f"shard_size must be at least 2, got {self.shard_size}")
        if self.param_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"param_dtype must be 'float32' or 'bfloat16', got {self.param_dtype!r}")
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout must be positive, got {self.timeout}")
        if not 0 <= self.stop_exit_code < 256:
            raise ValueError(f"stop_exit_code must be from 0 to 255, got {self.stop_exit_code}")


@dataclass(frozen=True)
class Strategy:
    """How the processes of a run share its model, "none", "ddp", "fsdp2" or "hsdp", and why so."""

    name: str
    why: str


def strategy_of(settings: ParallelConfig, algorithm: str, processes: int, trained: int, memory: int | None) -> Strategy:
    """Return the strategy that is set, and for "auto" the one that fits the GPUs.

    algorithm: the optimizer's. trained: parameters that are trained. memory: bytes of a GPU; None: the run is on the
    CPU. Raises ConfigError for a strategy that the number of processes, or the optimizer, does not allow.
    """
    check_strategy(settings, algorithm, processes)
    if processes == 1 and settings.strategy in ("auto", "ddp"):
        return Strategy("none", "one process")
    if settings.strategy != "auto":
        return Strategy(settings.strategy, "as set")
    if memory is None:
        return Strategy("ddp", f"{processes} processes on the CPU")
    if algorithm != "adamw":
        return Strategy("ddp", f"{algorithm} needs whole matrices")
    share = trained * BYTES_A_PARAMETER / memory
    state = f"weights, gradients and AdamW's moments fill {share:.1%} of a GPU"
    if share > LARGEST_SHARE:
        return Strategy("fsdp2", f"{state}, more than {LARGEST_SHARE:.0%}")
    return Strategy("ddp", f"{state}, at most {LARGEST_SHARE:.0%}")


def check_strategy(settings: ParallelConfig, algorithm: str, processes: int) -> None:
    """Raise ConfigError for a strategy that the number of processes, or the optimizer's `algorithm`, does not allow."""
    strategy = settings.strategy
    if strategy == "none" and processes > 1:
        raise ConfigError(f"parallel.strategy=none is for one process, there are {processes}: set auto, ddp or fsdp2")
    if strategy in SHARDED:
        if algorithm != "adamw":
            raise ConfigError(
                f"optimizer.algorithm={algorithm} with parallel.strategy={strategy}: the factored moments of a matrix "
                "need all of it; set parallel.strategy=ddp, or optimizer.algorithm=adamw"
            )
        if settings.shard_size is not None and processes % settings.shard_size:
            raise ConfigError(f"parallel.shard_size={settings.shard_size} does not divide the {processes} processes")


def clips_at_a_time(batch_size: int, micro_batch: int | None) -> int:
    """Return the clips of a micro-batch: `micro_batch`, or all of a smaller batch, or of one that is not divided.

    Raises ConfigError where it does not divide the batch.
    """
    size = batch_size if micro_batch is None else min(micro_batch, batch_size)
    if batch_size % size:
        raise ConfigError(
            f"micro_batch={micro_batch} does not divide batch_size={batch_size}: expected {_divisors(batch_size)}"
        )
    return size


def micro_batches_each(batch_size: int, micro_batch: int | None, processes: int) -> int:
    """Return how many micro-batches of a step each of the processes computes.

    Raises ConfigError, in a line that lists what would do, where their number does not divide that of the
    micro-batches: what is random follows from the number of a micro-batch, which must not depend on the processes.
    """
    size = clips_at_a_time(batch_size, micro_batch)
    number = batch_size // size
    if not number % processes:
        return number // processes
    if micro_batch is None and not batch_size % processes:
        cure = f"; or set micro_batch={batch_size // processes}, the clips that each computes at a time"
    elif not batch_size % processes:
        cure = f"; or set micro_batch to a divisor of {batch_size // processes}"
    else:
        cure = f"; or a batch_size that {processes} divides"
    parts = "micro-batch" if number == 1 else "micro-batches"
    raise ConfigError(
        f"{processes} processes cannot share the {number} {parts} of {size} clips that batch_size={batch_size} "
        f"makes: start {_divisors(number)}{cure}"
    )


def _divisors(number: int) -> str:
    """Return the divisors of a number as an enumeration, the largest of them where they are many."""
    found = [str(size) for size in range(1, number + 1) if not number % size]
    shown = found if len(found) <= 12 else ["...", *found[-11:]]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def scopes_of(model: Any, contrast_scope: str | None, matching_scope: str | None) -> tuple[str, str]:
    """Return the scopes of contrast and matching, "global" or "micro_batch" each: as they are set, else as the model's
    configuration recommends by `gather_negatives`, of matching else that of the contrast."""
    narrow = isinstance(model, RecommendsScope) and not model.gather_negatives
    contrast = contrast_scope or ("micro_batch" if narrow else "global")
    return contrast, matching_scope or contrast
