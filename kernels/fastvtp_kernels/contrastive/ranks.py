"""The processes that share a batch: how each sees the features of all, and how sums find their way back."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from ..validation import values_readable

# As functional collectives do: ops take names, not objects.
_resolve: Callable[[str], dist.ProcessGroup] = getattr(dist.distributed_c10d, "_resolve_process_group")  # noqa: B009
# Renamed in torch 2.13, which warns of the name before.
_all_gather: Callable[..., object] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

# Features of all ranks together that are gathered at once; larger ones travel a block at a time. Each hop of a ring,
# and the launches for its block, take their time however small the block is, which adds up over 1024 ranks. Memory of
# this size is nobody's worry: with sums of gradients, there and back in float32, five times that for 16-bit features.
GATHERED_BYTES = 64 << 20

_BLOCK_TAG, _TOTAL_TAG = 0, 1

Contribute: TypeAlias = Callable[[slice, Tensor], Tensor | None]
"""Takes rows of the global batch and says what this rank adds to them, if anything: where they lie in it, and they."""


def name_of(op: str, group: dist.ProcessGroup | None) -> str:
    """Return the name by which ops know a group; empty for none."""
    if group is None:
        return ""
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"{op}: group is {type(group).__name__}, expected a torch.distributed.ProcessGroup or None")
    return group.group_name


class _Transfer:
    """A tensor on its way to the next rank, and the one that comes from the rank before."""

    def __init__(self, ring: "Ring", outgoing: Tensor, tag: int):
        # Kept until the end of the transfer, which may still read it.
        self._outgoing = outgoing
        self._incoming = torch.empty_like(outgoing)
        after, before = (
            dist.get_global_rank(ring.group, (ring.rank + step) % ring.size) if ring.group else 0 for step in (1, -1)
        )
        self._works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, self._outgoing, after, ring.group, tag),
                dist.P2POp(dist.irecv, self._incoming, before, ring.group, tag),
            ]
        )

    def wait(self) -> Tensor:
        """Return the tensor from the rank before, once both transfers are done."""
        for work in self._works:
            work.wait()
        return self._incoming


class Ring:
    """The ranks of a group in a circle; without a group this process alone."""

    def __init__(self, group_name: str):
        self.group = _resolve(group_name) if group_name else None
        self.rank = dist.get_rank(self.group) if self.group else 0
        self.size = dist.get_world_size(self.group) if self.group else 1

    def check_alike(self, op: str, features: Tensor, wanted: Sequence[bool], others: Mapping[str, float]) -> None:
        """Raise on every rank unless all hold features of one shape, not empty, and ask for the same otherwise too.

        `wanted` are the gradients that are asked for, `others` what else must be equal, by names for the message. The
        host must see all that. If the group serves CPU tensors too (it does when init_process_group is not told a
        backend), it goes that way; otherwise the host waits for the device.
        """
        if self.group is None or (features.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        device = "cpu" if "cpu:" in dist.get_backend_config(self.group) else features.device
        others = {"bytes of a feature": features.dtype.itemsize, **others}
        # Sizes, flags and halves of 64-bit integers are exact in float64.
        told = torch.tensor([*features.shape, *wanted, *others.values()], dtype=torch.float64, device=device)
        found = self.gather(told).tolist()
        first, last = features.ndim, features.ndim + len(wanted)
        shapes, gradients = (
            [[int(x) for x in rank[part]] for rank in found] for part in (slice(first), slice(first, last))
        )
        rest = [rank[last:] for rank in found]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(f"{op}: the ranks' features have shapes {shapes}, expected the same shape on each rank")
        if shapes[0][0] == 0:
            raise ValueError(f"{op}: the ranks' features have shapes {shapes}, expected at least one row on each")
        if any(values != rest[0] for values in rest):
            raise ValueError(f"{op}: {', '.join(others)} are {rest} on the ranks, expected the same on each")
        if any(asked != gradients[0] for asked in gradients):
            raise ValueError(
                f"{op}: gradients (of a, of b, of scalars) are asked for as {gradients} by the ranks, "
                "expected the same on each rank"
            )

    def visits(self, block: Tensor) -> Callable[[Contribute], Tensor | None]:
        """Return what shows every rank's block [B, D] to every rank, each time that it is called.

        It calls `contribute(place, rows)` until all rows of the global batch, which hold the blocks in the order of the
        ranks, were shown. If that returns tensors, it returns their sums over the ranks for this rank's own block, in
        an order that is the same each time.

        Small blocks are gathered here and shown at once, and their sums go back in one exchange. Of large ones (see
        GATHERED_BYTES) a rank holds two and two sums at a time.
        """
        # Transfers take contiguous memory alone.
        block = block.contiguous()
        if self.size == 1 or self.size * block.nbytes <= GATHERED_BYTES:
            whole = self.gather(block).flatten(0, 1)
            return lambda contribute: self._at_once(whole, contribute)
        return lambda contribute: self._around(block, contribute)

    def _at_once(self, whole: Tensor, contribute: Contribute) -> Tensor | None:
        totals = contribute(slice(0, len(whole)), whole)
        if totals is None or self.size == 1:
            return totals
        # Not reduced on the way: that order is the backend's affair.
        return self.exchange(totals.unflatten(0, (self.size, -1))).sum(dim=0)

    def _around(self, block: Tensor, contribute: Contribute) -> Tensor | None:
        """Send the blocks around the ring, each on its way while another is worked on.

        This rank's own comes first. The sums travel behind them: the owner's part first, then in the order of the ring.
        """
        rows, total, sums = len(block), None, None
        for step in range(self.size):
            blocks = _Transfer(self, block, _BLOCK_TAG) if step + 1 < self.size else None
            owner = (self.rank - step) % self.size
            own = contribute(slice(owner * rows, (owner + 1) * rows), block)
            if own is not None:
                total = own if sums is None else sums.wait().add_(own)
                sums = _Transfer(self, total, _TOTAL_TAG)
            if blocks is not None:
                block = blocks.wait()
        return None if sums is None else sums.wait()

    def gather(self, tensor: Tensor) -> Tensor:
        """Return every rank's tensor [N, ...] as [ranks, N, ...]."""
        if self.size == 1:
            return tensor[None]
        found = tensor.new_empty(self.size * len(tensor), *tensor.shape[1:])
        _all_gather(found, tensor.contiguous(), group=self.group)
        return found.view(self.size, *tensor.shape)

    def exchange(self, parts: Tensor) -> Tensor:
        """Send parts[r] of [ranks, ...] to each rank r and return what every rank has for this one, as [ranks, ...]."""
        if self.size == 1:
            return parts
        parts = parts.contiguous()
        found = torch.empty_like(parts)
        dist.all_to_all_single(found, parts, group=self.group)
        return found


class GlobalBatch(NamedTuple):
    """The rows of all ranks: features [ranks * B, D] and ids [ranks * B], and which of them are this rank's."""

    a: Tensor
    b: Tensor
    groups: Tensor | None
    own: slice


def gather_batch(
    a: Tensor, b: Tensor, draw: Sequence[int], on_device: Tensor | None, groups: Tensor | None, group_name: str
) -> GlobalBatch:
    """Return the batch that `hard_negatives` draws from; the arguments are the op's.

    Raises on every rank what `Ring.check_alike` does; draws of ranks whose seeds or steps differ would be nobody's. On
    a GPU they are not compared where they are tensors, for which the host would have to wait.
    """
    ring = Ring(group_name)
    seed, step = draw if on_device is None or not values_readable(on_device) else on_device.tolist()
    others = {
        "bytes of an id of groups (0: none)": 0 if groups is None else groups.dtype.itemsize,
        "step": step & 0xFFFFFFFF,
        "upper half of the seed": seed >> 32 & 0xFFFFFFFF,
        "lower half of the seed": seed & 0xFFFFFFFF,
    }
    ring.check_alike("hard_negatives", a, (), others)
    first = ring.rank * len(a)
    own = slice(first, first + len(a))
    a, b = (ring.gather(x).flatten(0, 1) for x in (a, b))
    return GlobalBatch(a, b, None if groups is None else ring.gather(groups).flatten(), own)
