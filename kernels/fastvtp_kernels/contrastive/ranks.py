"""The processes that share a batch: blocks of features travel around their ring while each computes on another."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

# As functional collectives do: ops take names, not objects.
_resolve: Callable[[str], dist.ProcessGroup] = getattr(dist.distributed_c10d, "_resolve_process_group")  # noqa: B009

_BLOCK_TAG, _TOTAL_TAG = 0, 1


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

    def check_alike(self, op: str, features: Tensor, wanted: Sequence[bool], *more: float) -> None:
        """Raise on every rank unless all hold features of one shape, not empty, and ask for the same otherwise too.

        The host must see that. If the group serves CPU tensors too (it does when init_process_group is not told a
        backend), it goes that way; otherwise the host waits for the device.
        """
        if self.group is None or (features.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        device = "cpu" if "cpu:" in dist.get_backend_config(self.group) else features.device
        found = self.gather(torch.tensor([*features.shape, *wanted], device=device)).tolist()
        shapes, gradients = [rank[: features.ndim] for rank in found], [rank[features.ndim :] for rank in found]
        others = self.gather(
            torch.tensor([features.dtype.itemsize, *more], dtype=torch.float64, device=device)
        ).tolist()
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(f"{op}: the ranks' features have shapes {shapes}, expected the same shape on each rank")
        if shapes[0][0] == 0:
            raise ValueError(f"{op}: the ranks' features have shapes {shapes}, expected at least one row on each")
        if any(other != others[0] for other in others):
            raise ValueError(
                f"{op}: bytes of a feature, label smoothing and bytes of an id of positives (0: none) are {others} on "
                "the ranks, expected the same on each"
            )
        if any(asked != gradients[0] for asked in gradients):
            raise ValueError(
                f"{op}: gradients (of a, of b, of scalars) are asked for as {gradients} by the ranks, "
                "expected the same on each rank"
            )

    def visit(self, block: Tensor, contribute: Callable[[int, Tensor], Tensor | None]) -> Tensor | None:
        """Show every rank's block to every rank.

        `contribute(owner, block)` is called for each block, this rank's own first; the next is on its way meanwhile. If
        it returns tensors, their sums over the ranks travel behind the blocks (the owner's first, then in the order of
        the ring), and the sum for this rank's own block is returned. A rank holds two blocks and two sums at a time.
        """
        total, sums = None, None
        # Transfers take contiguous memory alone.
        block = block.contiguous()
        for step in range(self.size):
            blocks = _Transfer(self, block, _BLOCK_TAG) if step + 1 < self.size else None
            own = contribute((self.rank - step) % self.size, block)
            if own is not None:
                total = own if sums is None else sums.wait().add_(own)
                sums = _Transfer(self, total, _TOTAL_TAG) if self.size > 1 else None
            if blocks is not None:
                block = blocks.wait()
        return total if sums is None else sums.wait()

    def gather(self, tensor: Tensor) -> Tensor:
        """Return every rank's tensor, which must be small, as [ranks, ...]."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self.group)
        return torch.stack(parts)
