"""Rows of packed tokens: which of them a layer reads and computes, and picks whose gradients repeat bit for bit.

Shape legend: N = packed rows of all sequences, M = rows of a source or of a pick, R = query rows, S = sequences,
D = width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastvtp.modules.packing import Packing
from fastvtp_kernels.derivatives import beyond_reverse, transforming
from fastvtp_kernels.segments.op import sum_rows, sum_sequences
from fastvtp_kernels.validation import values_readable


@dataclass(frozen=True)
class Takers:
    """Who takes each row of a table: the way back of gradients, where rows are taken several times.

        rows        2   0   2   1        taker 0 takes row 2, taker 1 takes row 0, ...
        places      1 │ 3 │ 0   2        the takers of row 0, of row 1, and of row 2
        starts      0   1   2       4

    A plan lists them on the host, so that no backward pass has to sort.

    places: int64 [N or more]; -1 is nobody. starts: int32 [M+1], where the takers of each of M rows begin, and where
    those of the last end. ignored: a row that gets no gradient, as a table's row of [PAD] does; -1: there is none.
    """

    places: Tensor
    starts: Tensor
    ignored: int = -1

    @staticmethod
    def of(rows: Tensor, num_rows: int, ignored: int = -1) -> "Takers":
        """List the takers of each of `num_rows` rows by sorting, on the device of `rows`: int64 [N], the row that each
        takes."""
        ordered, places = rows.sort(stable=True)
        every = torch.arange(num_rows + 1, device=rows.device)
        return Takers(places, torch.searchsorted(ordered, every, out_int32=True), ignored)

    def among(self, picked: Tensor, count: int) -> "Takers":
        """Return who of the takers `picked`, int64 [P], all different, of `count` takes which row, by their numbers in
        `picked`."""
        numbers = torch.arange(len(picked), device=picked.device)
        # the place behind the last, which -1 names too, is nobody's
        found = picked.new_full((count + 1,), -1).index_copy_(0, picked, numbers)
        return Takers(found[self.places], self.starts, self.ignored)


@dataclass(frozen=True)
class Pick:
    """Rows that are taken of a table, and the way back of their gradients.

    rows: int64 [N]. takers: of the table's rows; None: no row is taken twice.
    """

    rows: Tensor
    takers: Takers | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def sorted(rows: Tensor, num_rows: int) -> "Pick":
        """Return a pick of rows, int64 [N], of which any may be taken several times, from `num_rows`: with lists of the
        takers if gradients are recorded, for rows that only the device knows."""
        return Pick(rows, Takers.of(rows, num_rows) if torch.is_grad_enabled() else None)

    def among(self, picked: Tensor) -> "Pick":
        """Return what of this pick has the numbers `picked`, int64 [P], all different."""
        takers = None if self.takers is None else self.takers.among(picked, len(self))
        return Pick(self.rows[picked], takers)


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
    sources: of N rows. The layer's input is [M, D], and packed row n is the n-th of this pick of it, so that what
        stands in several sequences is normalised and projected once. None: the input is the packed rows themselves,
        [N, D].

    Where a layer picks nothing, a bare `Packing` says as much and is accepted in place of a `Rows`.
    """

    packing: Packing
    queries: QueryRows | None = None
    sources: Pick | None = None

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

    def source_of(self, picked: Tensor | None) -> Pick | None:
        """Return the rows of the layer's input that these packed rows begin as: int64 [P], all different. None stands
        for all rows in their order, on either side."""
        if picked is None:
            return self.sources
        return Pick(picked) if self.sources is None else self.sources.among(picked)


def take_rows(x_ND: Tensor, rows: Pick | Tensor | None) -> Tensor:
    """Return `x_ND[rows]` with a backward that repeats bit for bit: [N, D] -> [M, D]; None takes all rows.

    rows: int64 [M] that names no row twice, whose gradients are copied back; or a `Pick`, where rows may be taken
    several times, and their gradients are added up in the order of its lists. Indexing would add them in whatever order
    threads reach them.

    Raises ValueError for a row that is named twice without a list of takers, where it costs nothing to see that.
    """
    if rows is None:
        return x_ND
    pick = rows if isinstance(rows, Pick) else Pick(rows)
    takers = pick.takers
    if not torch.compiler.is_compiling() and (transforming() or beyond_reverse((x_ND,))):
        ignored = None if takers is None or takers.ignored < 0 else takers.ignored
        return nn.functional.embedding(pick.rows, x_ND, ignored)
    if takers is not None:
        lists = takers.places, takers.starts, takers.ignored
        return _TakeListed.apply(x_ND, pick.rows, *lists)  # pyright: ignore[reportReturnType]
    if x_ND.requires_grad and values_readable(pick.rows) and len(pick) and pick.rows.bincount().max() > 1:
        raise ValueError("rows name a row twice: their gradients need a Pick with its Takers")
    return _TakeDifferent.apply(x_ND, pick.rows)  # pyright: ignore[reportReturnType]


class _TakeDifferent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.num_rows = x_ND.shape[0]
        return x_ND.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        zeros = gradients[0].new_zeros(ctx.num_rows, *gradients[0].shape[1:])
        return zeros.index_copy_(0, ctx.saved_tensors[0], gradients[0]), None


class _TakeListed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, rows: Tensor, places: Tensor, starts: Tensor, ignored: int) -> Tensor:
        ctx.save_for_backward(rows, places, starts)
        ctx.ignored = ignored
        return x_ND.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, places, starts = ctx.saved_tensors
        return sum_rows(gradients[0].contiguous(), rows, places, starts, ctx.ignored), None, None, None, None


def segment_mean(x_ND: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Return the mean of each sequence's rows: [N, D] divided by cu_seqlens int32 [S+1] -> float32 [S, D] (float64 of
    float64), zero for an empty sequence."""
    return sum_sequences(x_ND, cu_seqlens) / cu_seqlens.diff().clamp(min=1)[:, None]
