"""What an attention launch is told besides the tensors."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .call import Call, Options, seed_tensor

LARGEST_HEAD = 256
"""Head width that the kernels go up to."""


class Problem(NamedTuple):
    """Everything about a call but the values of query, key and value.

    Packed sequences are found by their offsets; `length` and `inner` are then 0 and 1. The sequences of a grid
    [A, L, C, H, D] are found by its strides, from L = length and C = inner; there are no offsets then.
    """

    sequences: int
    heads: int
    rows: int
    rows_k: int
    width: int
    length: int
    inner: int
    longest: int
    longest_k: int
    offsets: Tensor | None
    offsets_k: Tensor | None
    order: Tensor | None
    """int32 [S], in which programs take the sequences; None: one after another."""
    key_lengths: Tensor | None
    """int32 [S], how many of each sequence's keys answer; None: all."""
    axial: bool
    options: Options

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The width of a head, and length and inner of a grid, in the kernels' order."""
        return self.width, self.length, self.inner

    def numbers(self, device: torch.device) -> tuple[Any, ...]:
        """Scale and cap, and dropout's seed, threshold of the kept words and factor of the kept weights."""
        scale, softcap, _, dropout_p, seed = self.options
        if not dropout_p:
            return scale, softcap, None, 2**32, 1.0
        kept = 1 - dropout_p
        return scale, softcap, seed_tensor(seed, device), round(kept * 2**32), 1 / kept

    def strides(self, tensor: Tensor) -> tuple[int, int, int, int]:
        """Return a tensor's strides of (outer, row, inner, head), in elements; packed rows have no outer and no
        inner."""
        if self.axial:
            outer, row, inner, head, _ = tensor.stride()
            return outer, row, inner, head
        row, head, _ = tensor.stride()
        return 0, row, 0, head


def of_packed(query: Tensor, key: Tensor, call: Call) -> Problem:
    """Return the problem of query [N, H, Dh] and key [Nk, H, Dh].

    Raises:
        ValueError: heads are wider than LARGEST_HEAD.
    """
    rows, heads, width = query.shape
    _check_width(width)
    return Problem(
        sequences=call.cu_seqlens.shape[0] - 1,
        heads=heads,
        rows=rows,
        rows_k=key.shape[0],
        width=width,
        length=0,
        inner=1,
        longest=call.max_seqlen,
        longest_k=call.max_seqlen_k,
        offsets=call.cu_seqlens,
        offsets_k=call.cu_seqlens_k,
        order=call.order,
        key_lengths=call.key_lengths,
        axial=False,
        options=call.options,
    )


def of_axis(query: Tensor, options: Options) -> Problem:
    """Return the problem of query, key and value [A, L, C, H, Dh], attended along L.

    Raises:
        ValueError: heads are wider than LARGEST_HEAD.
    """
    outer, length, inner, heads, width = query.shape
    _check_width(width)
    rows = outer * length * inner
    return Problem(
        sequences=outer * inner,
        heads=heads,
        rows=rows,
        rows_k=rows,
        width=width,
        length=length,
        inner=inner,
        longest=length,
        longest_k=length,
        offsets=None,
        offsets_k=None,
        order=None,
        key_lengths=None,
        axial=True,
        options=options,
    )


def _check_width(width: int) -> None:
    if width > LARGEST_HEAD:
        raise ValueError(f"attention: heads are {width} wide, the Triton kernels take up to {LARGEST_HEAD}")
