"""Rows of packed tokens: which of them a layer reads and computes, and picks whose gradients repeat bit for bit.

Shape legend: N = packed rows of all sequences, M = rows of a source or of a pick, R = query rows, S = sequences,
D = width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastvtp.modules.packing import Packing
from fastvtp.modules.precision import wide
from fastvtp_kernels.derivatives import beyond_reverse, transforming


@dataclass(frozen=True)
class QueryRows:
    """The packed rows whose results are computed; attention still looks at the keys and values of all rows.

    The last layer of an encoder needs no queries, no projection and no MLP of rows whose result no loss reads.

    rows: int64 [R], numbers of packed rows, one sequence's behind the other's.
    packing: how these R rows divide into the sequences that they come from; a sequence may have none.
    """

    rows: Tensor
    packing: Packing

    @staticmethod
    def first(packing: Packing) -> "QueryRows":
        """Return the first row of every sequence of `packing`."""
        return QueryRows._one_each(packing.cu_seqlens[:-1].long())

    @staticmethod
    def last(packing: Packing) -> "QueryRows":
        """Return the last row of every sequence of `packing`."""
        return QueryRows._one_each(packing.cu_seqlens[1:].long() - 1)

    @staticmethod
    def _one_each(rows: Tensor) -> "QueryRows":
        return QueryRows(rows, Packing.uniform(len(rows), 1, rows.device))


@dataclass(frozen=True)
class Rows:
    """What rows a transformer layer reads, how they make up sequences, and which of them it returns.

                 sources             packing             queries
        x [M, D] ───────▶ rows [N] ─────────▶ sequences ─────────▶ results [R, D]

    packing: how the N packed rows divide into sequences.
    queries: the rows that the layer returns, [R, D]; None: all, [N, D].
    sources: int64 [N]. The layer's input is [M, D], and packed row n is its row sources[n], so that what stands in
        several sequences is normalised and projected once. None: the input is the packed rows themselves, [N, D].

    Where a layer picks nothing, a bare `Packing` says as much and is accepted in place of a `Rows`.
    """

    packing: Packing
    queries: QueryRows | None = None
    sources: Tensor | None = None

    @staticmethod
    def of(rows: "Rows | Packing") -> "Rows":
        """Return `rows` itself, or the `Rows` of a bare packing, which picks nothing."""
        return Rows(rows) if isinstance(rows, Packing) else rows

    @property
    def results(self) -> Packing:
        """How the returned rows divide into sequences."""
        return self.packing if self.queries is None else self.queries.packing

    def residual(self, x_MD: Tensor) -> Tensor:
        """Return the rows of the layer's input that its returned rows begin as: [M, D] -> [R, D], to add the layer's
        update to."""
        return take_rows(x_MD, self.source_of(None if self.queries is None else self.queries.rows))

    def source_of(self, picked: Tensor | None) -> Tensor | None:
        """Return rows of the layer's input that these packed rows begin as: int64 [P] -> int64 [P]. None stands for all
        rows in their order, on either side."""
        if self.sources is None or picked is None:
            return picked if self.sources is None else self.sources
        return self.sources[picked]


def take_rows(x_ND: Tensor, rows: Tensor | None) -> Tensor:
    """Return `x_ND[rows]` with a backward that repeats bit for bit: [N, D], int64 [M] -> [M, D]; None takes all rows.

    A row may be taken several times. Indexing adds such a row's gradients up in whatever order threads reach it; an
    embedding look-up sorts them first.
    """
    if rows is None:
        return x_ND
    compiling = torch.compiler.is_compiling()
    if compiling or (x_ND.dtype in _HALF and not transforming() and not beyond_reverse((x_ND,))):
        return _TakeRows.apply(x_ND, rows)  # pyright: ignore[reportReturnType]
    return nn.functional.embedding(rows, x_ND)


_HALF = (torch.float16, torch.bfloat16)
_FEW_ROWS = 3072
"""Picked rows up to which torch, on CUDA, sums their gradients by a kernel that adds in the gradients' dtype."""


@torch.library.custom_op("fastvtp::sum_rows", mutates_args=())
def _sum_rows(gradient: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Return the gradient of `take_rows`: [M, D], int64 [M] -> [num_rows, D]. It is one op, since Inductor would take
    the look-up's own gradient apart into atomic additions.

    In half precision the CPU, and CUDA for few rows, would lose small terms of a long sum, and so sum in float32.
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
    """Return the mean of each sequence's rows: [N, D] divided by cu_seqlens int32 [S+1] -> float32 [S, D] (float64 of
    float64), zero for an empty sequence."""
    lengths = cu_seqlens.diff().long()
    # unsafe: skips the check of the lengths, which would read them back from the device
    total = torch.segment_reduce(wide(x_ND), "sum", lengths=lengths, axis=0, unsafe=True, initial=0.0)
    return total / lengths.clamp(min=1)[:, None]
