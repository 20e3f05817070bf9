"""What an attention launch is told besides the tensors."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..launching import dot_precision
from .reference import Options, seed_tensor

LARGEST_HEAD = 256
"""Head width that the kernels go up to."""


class Problem(NamedTuple):
    """Everything about a call but the tensors' values."""

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
    """Of the sequences, one after another without it."""
    axial: bool
    options: Options

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.width, self.length, self.inner

    def flags(self, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "AXIAL": self.axial, "CAUSAL": self.options.causal, "SOFTCAP": self.options.softcap > 0,
            "DROPOUT": self.options.dropout_p > 0, "PRECISION": dot_precision(dtype), "BLOCK_D": self.block_d,
        }  # fmt: skip

    @property
    def block_d(self) -> int:
        return max(16, 1 << (self.width - 1).bit_length())

    def numbers(self, device: torch.device) -> tuple[Any, ...]:
        """Scale, cap, and of dropout: the seed, the threshold of the kept words, the factor of the kept weights."""
        scale, softcap, _, dropout_p, seed = self.options
        kept = 1 - dropout_p
        return scale, softcap, seed_tensor(seed, device) if dropout_p else None, round(kept * 2**32), 1 / kept

    def strides(self, tensor: Tensor) -> tuple[int, int, int, int]:
        """Those of (outer, row, inner, head)."""
        if self.axial:
            outer, row, inner, head, _ = tensor.stride()
            return outer, row, inner, head
        return 0, tensor.stride(0), 0, tensor.stride(1)


def of_packed(
    query: Tensor, key: Tensor, offsets: Tensor, longest: int, offsets_k: Tensor, longest_k: int, options: Options,
    order: Tensor | None,
) -> Problem:  # fmt: skip
    rows, heads, width = query.shape
    _check_width(width)
    return Problem(
        sequences=offsets.shape[0] - 1, heads=heads, rows=rows, rows_k=key.shape[0], width=width, length=0, inner=1,
        longest=longest, longest_k=longest_k, offsets=offsets, offsets_k=offsets_k, order=order, axial=False,
        options=options,
    )  # fmt: skip


def of_axis(query: Tensor, options: Options) -> Problem:
    outer, length, inner, heads, width = query.shape
    _check_width(width)
    rows = outer * length * inner
    return Problem(
        sequences=outer * inner, heads=heads, rows=rows, rows_k=rows, width=width, length=length, inner=inner,
        longest=length, longest_k=length, offsets=None, offsets_k=None, order=None, axial=True, options=options,
    )  # fmt: skip


def _check_width(width: int) -> None:
    if width > LARGEST_HEAD:
        raise ValueError(f"attention: heads are {width} wide, the Triton kernels take up to {LARGEST_HEAD}")
