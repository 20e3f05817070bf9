"""Batches that are dealt out to the processes of a run, and what they make of them put together again.

Batch n of a pass belongs to process n % W as its step n // W, see `fastvtp.data.source.Batches`, so that every batch
holds the clips that it holds on one process. What a model makes of it is then the same to the last bit, on machines of
one kind with as many threads each (torchrun gives a process one, where OMP_NUM_THREADS says nothing else).

All processes of a group must call what is here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeVar

from torch import Tensor
from tqdm import tqdm

from fastvtp import processes

T = TypeVar("T")
S = TypeVar("S")


def over_own_batches(
    loader: Iterable[Any], work: Callable[[Any], T], *, description: str, progress: bool
) -> list[tuple[int, T]]:
    """Do `work` on the batches that this process has; returns the number of each in the whole pass, and the result.

    Where it fails on one process, all raise after the batch that they are at. Raises ValueError, on several processes,
    for batches without a `step`.
    """
    return processes.all_or_none(lambda: list(_numbered(loader, work, description, progress)))


def over_batches(loader: Iterable[Any], work: Callable[[Any], T], *, description: str, progress: bool) -> Iterator[T]:
    """Do `work` on the batches that this process has; gives the results of all processes in the order of one.

    On one process each comes as soon as it is there, on several when all are, so that pickle must take them. Tensors
    that are views of a larger one would be sent with all of it. Errors as in `over_own_batches`.
    """
    if processes.size() == 1:
        for _, result in _numbered(loader, work, description, progress):
            yield result
    else:
        found = over_own_batches(loader, work, description=description, progress=progress)
        yield from in_order([number for number, _ in found], processes.gather([result for _, result in found]))


def over_shares(
    items: Sequence[S], work: Callable[[S], T], *, done: Callable[[S], object] = lambda item: None
) -> list[T]:
    """Do `work` on every size-th of `items`, which all processes have alike; returns the results of all, in order.

    done: is called with each item of this process after its work. Where it fails on one process, all raise.
    """

    def own() -> list[T]:
        results = []
        for item in processes.share(items):
            processes.check_others()
            results.append(work(item))
            done(item)
        return results

    found = processes.gather(processes.all_or_none(own))
    return [found[place % len(found)][place // len(found)] for place in range(len(items))]


def in_order(numbers: Sequence[int], found: Sequence[Sequence[T]]) -> list[T]:
    """Put what each process found in the batches `numbers` that it had into the order of these; all call this.

    found: by process, as gathered.
    """
    places = [number for own in processes.gather(list(numbers)) for number in own]
    values = [value for own in found for value in own]
    return [value for _, value in sorted(zip(places, values, strict=True), key=itemgetter(0))]


def portable(tensor: Tensor) -> Tensor:
    """Bring a tensor to the CPU if it will be sent to other processes."""
    return tensor if processes.size() == 1 else tensor.cpu()


def progress_bar(total: int, *, description: str, unit: str, progress: bool) -> tqdm:
    """Make a bar, which the first process alone draws, and only if wanted."""
    return tqdm(total=total, desc=description, unit=unit, disable=not (progress and processes.is_first()))


def joined(bad_files: Mapping[str, str]) -> dict[str, str]:
    """Join the bad files, reasons by path, that the processes met; all call this."""
    return {path: reason for own in reversed(processes.gather(dict(bad_files))) for path, reason in own.items()}


def _numbered(
    loader: Iterable[Any], work: Callable[[Any], T], description: str, progress: bool
) -> Iterator[tuple[int, T]]:
    bar = tqdm(loader, desc=description, unit="batch", disable=not (progress and processes.is_first()))
    for place, batch in enumerate(bar):
        processes.check_others()
        yield batch_number(batch, place), work(batch)


def batch_number(batch: Any, place: int) -> int:
    """Tell which batch of the whole pass this is, the one that came at `place` here.

    Raises ValueError, on several processes, for a batch without a `step`.
    """
    if processes.size() == 1:
        return place
    if not hasattr(batch, "step"):
        raise ValueError("batches of several processes must say their step: deal them out, Batches(rank, world_size)")
    return batch.step * processes.size() + processes.rank()
