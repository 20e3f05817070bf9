"""What the ranks of a data-parallel run share: their group, and means whose divisor differs from rank to rank."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_group(gather: bool = True) -> dist.ProcessGroup | None:
    """Return the group of all ranks where `gather` asks for it and torch.distributed is initialised, else None."""
    return dist.group.WORLD if gather and dist.is_available() and dist.is_initialized() else None


def means_over_ranks(count: int | Tensor, *means: Tensor) -> tuple[Tensor, ...]:
    """Weigh means over the `count` items of this rank so that the ranks' average of each is its mean over the items of
    all ranks: [] each, with their graphs.

    Data-parallel training averages gradients over the ranks as if each had as many items, which masked words, pairs
    with a mismatch or tokens of captions are not: each rank's mean is multiplied by its share of all items and by the
    number of ranks. A rank without items contributes 0. Every rank must call this as often, and none waits for its
    device. One process gets its means back as they are, without any communication.

    count: a host integer, or a tensor [] on the device of the means.
    """
    group = world_group()
    if group is None or group.size() == 1:
        return means
    own = count.float() if isinstance(count, Tensor) else torch.full((), float(count), device=means[0].device)
    total = own.clone()
    dist.all_reduce(total, group=group)
    weight = own * group.size() / total.clamp(min=1)
    return tuple(torch.where(own > 0, mean, 0.0) * weight for mean in means)
