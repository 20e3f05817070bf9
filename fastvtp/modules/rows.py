"""Rows of packed tokens, picked and averaged with gradients that repeat bit for bit.

Shape legend: N = packed rows of all sequences, M = picked rows, S = sequences, D = width.
"""

from typing import Any

import torch
from torch import Tensor, nn


def take_rows(x_ND: Tensor, rows: Tensor | None) -> Tensor:
    """`x_ND[rows]` with a deterministic backward: [N, D], int64 [M] -> [M, D]; a row may be taken several times, and
    None takes all.

    Indexing adds such a row's gradients up in whatever order threads reach it; an embedding look-up sorts them first.
    """
    if rows is None:
        return x_ND
    if torch.compiler.is_compiling() or x_ND.dtype in _HALF:
        return _TakeRows.apply(x_ND, rows)  # pyright: ignore[reportReturnType]
    return nn.functional.embedding(rows, x_ND)


def composed(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """One pick for two: the rows that `second` picks of those that `first` picks. None picks all."""
    return second if first is None else first if second is None else first[second]


_HALF = (torch.float16, torch.bfloat16)
_FEW_ROWS = 3072
"""Up to here torch sums on CUDA by a kernel that adds in the gradient's dtype."""


@torch.library.custom_op("fastvtp::sum_rows", mutates_args=())
def _sum_rows(gradient: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """The gradient of `take_rows`, as one op: Inductor would take the look-up's own apart into atomic additions.

    In half precision the CPU, and CUDA for few rows, would lose what they add to a long sum: those are of float32.
    """
    wide = gradient.float() if gradient.is_cpu or len(rows) <= _FEW_ROWS else gradient
    return torch.ops.aten.embedding_dense_backward(wide, rows, num_rows, -1, False).to(gradient.dtype)


@_sum_rows.register_fake
def _(gradient: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    return gradient.new_empty(num_rows, gradient.shape[1])


def _keep_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


_sum_rows.register_autograd(
    lambda ctx, gradient: (take_rows(gradient, ctx.saved_tensors[0]), None, None), setup_context=_keep_rows
)


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.num_rows = x_ND.shape[0]
        return x_ND.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _sum_rows(gradients[0].contiguous(), ctx.saved_tensors[0], ctx.num_rows), None


def segment_mean(x_ND: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Mean of the rows of each sequence: [N, D] -> float32 [S, D], zero for an empty sequence."""
    lengths = cu_seqlens.diff().long()
    # unsafe: skips the check of the lengths, which would read them back from the device
    total = torch.segment_reduce(x_ND.float(), "sum", lengths=lengths, axis=0, unsafe=True, initial=0.0)
    return total / lengths.clamp(min=1)[:, None]
