"""What the processes of a run tell each other with every step: means, features, and clips that another one has."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from fastvtp import processes


def means_of_processes(values: Sequence[Tensor]) -> Tensor:
    """Return the means over the processes of numbers [] that each has, [len(values)], on their device."""
    together = torch.stack(list(values))
    if processes.size() > 1:
        dist.all_reduce(together)
        together /= processes.size()
    return together


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes: [n, ...] on each -> [size, n, ...]."""
    if processes.size() == 1:
        return rows[None]
    found = rows.new_empty(processes.size(), *rows.shape)
    dist.all_gather(list(found.unbind()), rows.contiguous())
    return found


def exchange_rows(pick: Callable[[Sequence[int]], Tensor], count: int, wanted: Sequence[Sequence[int]]) -> Tensor:
    """Fetch rows from the processes that have them.

    pick: returns these rows of this process, [n, ...], of none an empty tensor of the same shape. count: how many it
    has; every process has as many. wanted: for each process the global numbers (process * count + row) that it asks
    for, the same lists on all of them. Returns those of this process, [len(wanted[rank]), ...], in their order.
    """
    rank, world = processes.rank(), processes.size()
    own = wanted[rank]
    if world == 1:
        return pick(own)
    sent = [[number % count for number in numbers if number // count == rank] for numbers in wanted]
    received = [[place for place, number in enumerate(own) if number // count == other] for other in range(world)]
    outgoing = pick([row for part in sent for row in part]).contiguous()
    incoming = outgoing.new_empty(len(own), *outgoing.shape[1:])
    dist.all_to_all_single(incoming, outgoing, list(map(len, received)), list(map(len, sent)))
    places = torch.tensor([place for part in received for place in part], dtype=torch.long, device=incoming.device)
    return torch.empty_like(incoming).index_copy_(0, places, incoming)
