"""The processes of one run, as torchrun starts them: who this one is, their group, and how they agree.

A program that was started alone is the first of one process, and everything here works without a group.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastvtp.errors import ConfigError, FailedElsewhereError

T = TypeVar("T")

# what gloo and NCCL say when a process has gone, or does not come
_TIMED_OUT = re.compile(r"[Tt]imed? ?out")
_LOST = re.compile(r"[Tt]imed? ?out|[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|gloo/transport|remote process")

DEFAULT_TIMEOUT = 1800.0
"""Seconds that a process waits for the others before it gives the run up."""
_PATIENCE = timedelta(days=60)


class _Solitude(NamedTuple):
    """Whether this process works by itself, see `alone`, and whether it leaves a group aside in doing so."""

    alone: bool = False
    hides_group: bool = False


# Not context variables: threads that save or compute for a process must take it for the same as it does itself.
_solitude = _Solitude()
_patient: tuple[Any, Any] | None = None  # the group of all, and the one for long waits that was made beside it
_exchange: Any = None  # the group that exchanges go through; None: that of all
_meeting: Any = None  # the store of torchrun's processes, from the first group on
_groups = 0  # made so far in it
_agreements = 0  # how often `all_or_none` was called: as often on all processes of a group


def has_group() -> bool:
    """Tell whether this process is one of a torch.distributed group."""
    return dist.is_available() and dist.is_initialized() and not _solitude.hides_group


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
    Within `alone` the first two are 0 and 1.

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
    return (0, 1, found[2]) if _solitude.alone else (found[0], found[1], found[2])


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
    which sharding needs. Raises ConfigError for that where a process of a larger group works `alone`.
    """
    number, world, _ = launched()
    if has_group() and "cpu" not in dist.get_backend_config():
        raise ConfigError('the group that there is serves no CPU tensors: make it with backend="cpu:gloo,cuda:nccl"')
    if has_group() or (world == 1 and not alone):
        yield
        return
    if dist.is_initialized():
        raise ConfigError("one of several processes that works by itself has no group of its own, which sharding needs")
    settings: dict[str, Any] = {"backend": backend_of(device), "timeout": timedelta(seconds=timeout)}
    if world == 1:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        settings |= {"store": store, "rank": 0, "world_size": 1}
    else:
        settings |= {"store": _own_store(number, world, timeout), "rank": number, "world_size": world}
    if device.type == "cuda":
        settings["device_id"] = device
    dist.init_process_group(**settings)
    try:
        yield
        if world > 1:
            dist.barrier()  # none leaves while another still writes or reads
    finally:
        dist.destroy_process_group()


def _own_store(number: int, world: int, timeout: float) -> Any:
    """Return the store in which the processes of the next group find each other: in that of the group before, or of
    processes that torchrun has replaced, they would find addresses where nobody is any more."""
    global _meeting, _groups
    if _meeting is None:  # kept, for the first process of a run without torchrun serves it
        (_meeting, _, _) = next(iter(dist.rendezvous("env://", number, world, timeout=timedelta(seconds=timeout))))  # pyright: ignore
    _groups += 1
    name = f"fastvtp/group/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_groups}"
    return dist.PrefixStore(name, _meeting)  # pyright: ignore[reportPrivateImportUsage]


@contextmanager
def alone() -> Iterator[None]:
    """Let this process answer as the only one of its run, whatever group it is in: for a piece of work that it does by
    itself, as a whole training among others. Its device remains its own. Others need not do the same."""
    global _solitude
    before = _solitude
    _solitude = _Solitude(True, before.hides_group or (dist.is_available() and dist.is_initialized()))
    try:
        yield
    finally:
        _solitude = before


@contextmanager
def patience() -> Iterator[None]:
    """Let the processes wait for each other for as long as it takes, where one may work for hours without a word.

    All of them must enter this. One that ends is noticed all the same, one that hangs is not.
    """
    global _patient, _exchange
    if size() == 1:
        yield
        return
    if _patient is None or _patient[0] is not dist.group.WORLD:
        _patient = dist.group.WORLD, dist.new_group(backend="gloo", timeout=_PATIENCE)
    before, _exchange = _exchange, _patient[1]
    try:
        yield
    finally:
        _exchange = before


def gather(value: T) -> list[T]:
    """Return the value of every process, in the order of their ranks. All of them must call this, with what pickle
    takes; nothing is read from files."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value, group=_exchange)
    return found


def collect(value: T) -> list[T]:
    """Return on the first process the value of every process, in the order of their ranks, and nothing on the others.
    As `gather` otherwise."""
    if size() == 1:
        return [value]
    found: list[Any] | None = [None] * size() if is_first() else None
    dist.gather_object(value, found, dst=0, group=_exchange)
    return found or []


def gather_tensors(own: Sequence[Tensor], device: torch.device | str) -> list[list[Tensor]]:
    """Return the tensors of every process, in the order of their ranks, on `device`, where this one's are already.

    For many or large ones: they are sent one by one as they are, of any shapes and dtypes. All processes must call
    this, with as many tensors as each has.
    """
    if size() == 1:
        return [list(own)]
    found = []
    for source, kinds in enumerate(gather([(tensor.shape, tensor.dtype) for tensor in own])):
        if source == rank():
            found.append([tensor.contiguous() for tensor in own])
        else:
            found.append([torch.empty(shape, dtype=dtype, device=device) for shape, dtype in kinds])
        with torch.inference_mode():  # which takes what was made in it and what was not
            for tensor in found[-1]:
                if tensor.numel():
                    dist.broadcast(tensor.view(-1).view(torch.uint8), src=source, group=_exchange)
    return found


def largest(number: int) -> int:
    """Return the largest of the numbers that the processes have. All of them must call this; the host waits for the
    slowest."""
    if size() == 1:
        return number
    told = torch.tensor([number])
    dist.all_reduce(told, op=dist.ReduceOp.MAX, group=_exchange)
    return int(told.item())


def all_or_none(work: Callable[[], T]) -> T:
    """Do `work` on every process; where it fails on one it fails on all of them, as soon as they have done theirs or
    call `check_others` in it, instead of at their next exchange.

    The first process that has an error of its own raises it, and whoever has another one; all others raise
    FailedElsewhereError, which says the same.
    """
    if size() == 1:
        return work()
    global _agreements
    _agreements += 1
    result, error = None, None
    try:
        result = work()
    except Exception as raised:
        error = raised
        _store().set(_failure(), "")
    told = gather(None if error is None else (isinstance(error, FailedElsewhereError), f"{error}"))
    failed = [(*answer, number) for number, answer in enumerate(told) if answer is not None]
    if not failed:
        return result  # pyright: ignore[reportReturnType]
    _, message, first = min(failed, key=lambda answer: (answer[0], answer[2]))
    if error is not None and not isinstance(error, FailedElsewhereError) and (rank() == first or f"{error}" != message):
        raise error
    raise FailedElsewhereError(f"process {first}: {message}")


def check_others() -> None:
    """Raise FailedElsewhereError where another process has failed at what all of them do in `all_or_none`: long work
    calls this now and then, and need not be done to its end. It asks the store of the group, and waits for nobody."""
    if size() > 1 and _store().check([_failure()]):
        raise FailedElsewhereError("another process has failed")


def _store() -> Any:
    return getattr(dist.distributed_c10d, "_get_default_store")()  # noqa: B009


def _failure() -> str:
    """Return the key that stands in the store of the group where the present work has failed on a process."""
    return f"fastvtp/failed/{_agreements}"


def first_decides(work: Callable[[], T]) -> T:
    """Do `work` on the first process, which is `alone` in it, and return its result on all of them.

    Its error is raised there as it is, and on the others as FailedElsewhereError.
    """

    def by_itself() -> Any:
        with alone():  # what is shared out where all do it is then done as a whole, and waits for nobody
            return work()

    result: Any = all_or_none(by_itself if is_first() else lambda: None)
    if size() > 1:
        box = [result]
        dist.broadcast_object_list(box, src=0, group=_exchange)
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


def first_alone(work: Callable[[], T]) -> T:
    """Do `first_decides` while the others wait for as long as it takes."""
    with patience():
        return first_decides(work)


def share(items: Sequence[T]) -> Sequence[T]:
    """Return the part of `items` that is this process's: every size-th, from its rank on."""
    return items[rank() :: size()]
