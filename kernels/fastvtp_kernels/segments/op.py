"""The sums' entries in torch's dispatcher: one node each, which no compiler takes apart into atomic additions."""

from typing import Any

import torch
from torch import Tensor

from ..dispatch import runs_triton
from ..precision import compute_dtype
from ..registration import define_gradient, define_op, launcher
from . import reference

_sum_rows, _sum_rows_reference = (
    define_op(
        f"sum_rows{suffix}(Tensor gradient, Tensor rows, Tensor places, Tensor starts, int ignored) -> Tensor",
        launch=launch,
        reference=reference.sum_rows,
        fake=lambda gradient, rows, places, starts, ignored: gradient.new_empty(starts.shape[0] - 1, gradient.shape[1]),
    )
    for suffix, launch in (("", launcher(__name__, "sum_rows")), ("_reference", reference.sum_rows))
)
_sum_sequences = define_op(
    "sum_sequences(Tensor x, Tensor offsets) -> Tensor",
    launch=launcher(__name__, "sum_sequences"),
    reference=reference.sum_sequences,
    fake=lambda x, offsets: x.new_empty(offsets.shape[0] - 1, x.shape[1], dtype=compute_dtype(x.dtype)),
)
_spread_sequences = define_op(
    "spread_sequences(Tensor values, Tensor offsets, SymInt num_rows, ScalarType dtype) -> Tensor",
    launch=launcher(__name__, "spread_sequences"),
    reference=reference.spread_sequences,
    fake=lambda values, offsets, num_rows, dtype: values.new_empty(num_rows, values.shape[1], dtype=dtype),
)


def _on_device(x: Tensor) -> bool:
    """Tell whether the kernels run: not in the interpreter, where every backward pass of a model would be slow."""
    return x.is_cuda and runs_triton(x)


def _keep_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:4])
    ctx.ignored = inputs[4]


def _gradient_of_sum(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.ignored >= 0:
        grad = grad.index_fill(0, torch.full((1,), ctx.ignored, device=grad.device), 0)
    return grad.index_select(0, ctx.saved_tensors[0]), None, None, None, None


for _name in ("sum_rows", "sum_rows_reference"):
    torch.library.register_autograd(f"fastvtp::{_name}", _gradient_of_sum, setup_context=_keep_for_gradient)


def sum_rows(gradient: Tensor, rows: Tensor, places: Tensor, starts: Tensor, ignored: int = -1) -> Tensor:
    """Sum, for each row of a table of S rows, the gradients of those that took it, in a fixed order and in float32.

    Args:
        gradient: [M, D].
        rows: int64 [M], which row each took.
        places: int64, the numbers in [0, M) of those who took row 0, then of those who took row 1, and so on; -1 is
            nobody. The kernels read these lists, plain PyTorch reads `rows` alone.
        starts: int32 or int64 [S + 1], where the list of each row begins, and where that of the last ends.
        ignored: a row whose sum is left at zero, whoever took it; -1: there is none.

    Returns:
        [S, D] in the dtype of `gradient`.
    """
    run = _sum_rows if _on_device(gradient) else _sum_rows_reference
    return run(gradient, rows, places, starts, ignored)


def _keep_offsets(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    x, offsets = inputs
    ctx.save_for_backward(offsets)
    ctx.num_rows, ctx.dtype = x.shape[0], x.dtype


def _gradient_of_sequences(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _spread_sequences(grad, ctx.saved_tensors[0], ctx.num_rows, ctx.dtype), None


_differentiable = define_gradient(_sum_sequences, _keep_offsets, _gradient_of_sequences)


def sum_sequences(x: Tensor, offsets: Tensor) -> Tensor:
    """Sum the rows of each sequence: [N, D] divided by offsets int32 [S+1] -> [S, D] in float32 (float64 of float64).

    An empty sequence gives zeros; rows behind the last sequence belong to none.
    """
    return _differentiable(x, offsets) if _on_device(x) else reference.sum_sequences(x, offsets)
