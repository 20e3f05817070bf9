"""The processes of one run, as torchrun starts them: who this one is, their group, and how they agree.

A program that was started alone is the first of one process, and everything here works without a group.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fastvtp.errors import ConfigError, FailedElsewhereError

T = TypeVar("T")

# what gloo and NCCL say when a process has gone, or does not come
_TIMED_OUT = re.compile(r"[Tt]imed? ?out")
_LOST = re.compile(r"[Tt]imed? ?out|[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|gloo/transport|remote process")

DEFAULT_TIMEOUT = 1800.0
"""Seconds that a process waits for the others before it gives the run up."""


def has_group() -> bool:
    """Tell whether this process is one of a torch.distributed group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process among those of the run, from 0."""
    return dist.get_rank() if has_group() else 0


def size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if has_group() else 1


def is_first() -> bool:
    """Tell whether this is the process that writes files, draws progress bars and reports."""
    return rank() == 0


def launched() -> tuple[int, int, int]:
    """Return what torchrun, or a scheduler, says in RANK, WORLD_SIZE and LOCAL_RANK; (0, 1, 0) where nobody does.

    Raises ConfigError for what is no number, and for a rank outside the world.
    """
    found = []
    for name, absent in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        text = os.environ.get(name, absent)
        if not text.isdecimal():
            raise ConfigError(f"the environment has {name}={text!r}, expected a number as torchrun sets it")
        found.append(int(text))
    if not found[0] < found[1]:
        raise ConfigError(f"the environment has RANK={found[0]} and WORLD_SIZE={found[1]}, expected 0 <= rank < world")
    return found[0], found[1], found[2]


def own_device(device: torch.device) -> torch.device:
    """Return the device of this process, and make it torch's current one: of CUDA without an index that of LOCAL_RANK.

    Raises ConfigError where this machine has fewer devices than it has processes.
    """
    if device.type != "cuda":
        return device
    index = launched()[2] if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"process {index} of this machine has no GPU of its own: torch sees {torch.cuda.device_count()}; "
            "start fewer (--nproc-per-node), or set device=cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def backend_of(device: torch.device) -> str:
    """Return the backends of a group on this kind of device: gloo for what is on the host, NCCL for CUDA."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


@contextmanager
def process_group(device: torch.device, timeout: float = DEFAULT_TIMEOUT, *, alone: bool = False) -> Iterator[None]:
    """Make the group that torchrun's environment describes, and end it afterwards; nothing where there is one already,
    or this process is the only one.

    timeout: seconds after which a process that waits for others fails. alone: make a group of a single process too,
    which sharding needs.
    """
    number, world, _ = launched()
    if has_group() or (world == 1 and not alone):
        yield
        return
    settings: dict[str, Any] = {"backend": backend_of(device), "timeout": timedelta(seconds=timeout)}
    if world == 1:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        settings |= {"store": store, "rank": 0, "world_size": 1}
    else:
        settings |= {"rank": number, "world_size": world}
    if device.type == "cuda":
        settings["device_id"] = device
    dist.init_process_group(**settings)
    try:
        yield
        if world > 1:
            dist.barrier()  # none leaves while another still writes or reads
    finally:
        dist.destroy_process_group()


def gather(value: T) -> list[T]:
    """Return the value of every process, in the order of their ranks. All of them must call this, with what pickle
    takes; nothing is read from files."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value)
    return found


def any_of(flag: bool) -> bool:
    """Tell whether any process says so. All of them must call this; the host waits for the slowest."""
    if size() == 1:
        return flag
    told = torch.tensor([int(flag)])
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return bool(told.item())


def all_or_none(work: Callable[[], T]) -> T:
    """Do `work` on every process; where it fails on one it fails on all of them, at once instead of at their next
    exchange.

    The first process that has an error of its own raises it, and whoever has another one that; all others raise
    FailedElsewhereError, which says the same.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as raised:
        error = raised
    told = gather(None if error is None else f"{error}")
    if all(message is None for message in told):
        return result  # pyright: ignore[reportReturnType]
    first = next(number for number, message in enumerate(told) if message is not None)
    if error is not None and (rank() == first or told[rank()] != told[first]):
        raise error
    raise FailedElsewhereError(f"process {first}: {told[first]}")


def first_decides(work: Callable[[], T]) -> T:
    """Do `work` on the first process alone and return its result on all of them.

    Its error is raised there as it is, and on the others as FailedElsewhereError.
    """
    result: Any = None
    if is_first():
        result = all_or_none(work)
    else:
        all_or_none(lambda: None)
    if size() > 1:
        box = [result]
        dist.broadcast_object_list(box, src=0)
        result = box[0]
    return result


def lost_others(error: BaseException) -> str | None:
    """Return, in a line, that this process waited in vain for the others of its run, where that is what `error`, raised
    by a collective operation, means; None for any other error."""
    if launched()[1] == 1 and not has_group():
        return None
    text = str(error)
    if not (isinstance(error, dist.DistError) or _LOST.search(text)):
        return None
    number = launched()[0]
    if _TIMED_OUT.search(text):
        return f"process {number} waited for another one longer than parallel.timeout: {text.splitlines()[0]}"
    return f"process {number} ends, as another process of the run has ended"


def share(items: Sequence[T]) -> Sequence[T]:
    """Return the part of `items` that is this process's: every size-th, from its rank on."""
    return items[rank() :: size()]
