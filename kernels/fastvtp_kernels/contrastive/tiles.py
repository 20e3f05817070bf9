"""Tiles of logits by Triton kernels: what `blockwise.py` computes the losses of.

Shape legend: M rows and N columns of a block of logits, D feature width. Logits are kept in units of log 2.
"""

import math

import torch
from torch import Tensor

from .. import tuning
from ..launching import blocks, dot_precision, launch
from ..precision import accumulate_product
from . import logits
from .targets import LogSums, Shifts, Statistics, Targets


def join_parts(parts: Tensor) -> Tensor:
    """Return the log-sum-exp [count] over the first axis of [parts, count], in a fixed order."""
    joined = parts.new_empty(parts.shape[1])
    tile = tuning.tile("contrastive_join", torch.float32, parts.device)
    launch(logits.join, (blocks(len(joined), tile.blocks["BLOCK"]),), parts, joined, *parts.shape, tile=tile)
    return joined


def sweep(
    a: Tensor, b: Tensor, scale: Tensor, targets: Targets, shifts: Shifts | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernel `logits.statistics` over a block; with shifts it leaves own pairs out, without all positives.

    Returns log-sum-exps of rows [column tiles, M] and of columns [row tiles, N], and each tile's part of the target.
    """
    ids = shifts is not None and targets.row_ids is not None
    tile = tuning.tile("contrastive_statistics", a.dtype, a.device, "_ids" if ids else "")
    row_tiles, column_tiles = blocks(len(a), tile.blocks["BLOCK_M"]), blocks(len(b), tile.blocks["BLOCK_N"])
    rows, columns, target = (
        scale.new_empty(shape) for shape in ((column_tiles, len(a)), (row_tiles, len(b)), row_tiles * column_tiles)
    )
    launch(
        logits.statistics,
        (row_tiles * column_tiles,),
        a,
        b,
        scale,
        targets.row_ids,
        targets.column_ids,
        targets.weights,
        *(shifts or (None, None)),
        rows,
        columns,
        target,
        targets.offset,
        targets.even,
        len(a),
        len(b),
        a.shape[1],
        IDS=targets.row_ids is not None,
        TARGETS=shifts is not None and (targets.row_ids is not None or targets.even != 0),
        EXCLUDE=shifts is None,
        PRECISION=dot_precision(a.dtype),
        tile=tile,
    )
    return rows, columns, target


def shift(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """float32 [M]: the logit of each row's own pair, from which the logits of its row and column are measured."""
    products = scale.new_empty(len(a))
    tile = tuning.tile("contrastive_own_products", a.dtype, a.device)
    grid, precision = (blocks(len(a), tile.blocks["BLOCK_M"]),), dot_precision(a.dtype)
    launch(logits.own_products, grid, a, b, products, *a.shape, PRECISION=precision, tile=tile)
    return products * (scale * logits.LOG2E.value)


def statistics(a: Tensor, b: Tensor, scale: Tensor, targets: Targets, shifts: Shifts) -> Statistics:
    """Compute the `Statistics` of a block of logits; a [M, D] and b [N, D] contiguous, scale float32 []."""
    rows, columns, target = sweep(a, b, scale, targets, shifts)
    own = scale.new_zeros(len(a))
    return Statistics(join_parts(rows), join_parts(columns), own, target.sum(dtype=torch.float64))


def prepare(x: Tensor) -> Tensor:
    """Return features as the other functions here take them: contiguous."""
    return x.contiguous()


def strip_rows(columns: int) -> int:
    """Tell how many rows of logits have their gradient in memory at a time: up to 2^27 numbers.

    A multiple of 128, so that every strip begins where vectors of 16 bytes do, and takes whole tiles.
    """
    return max(1024, (1 << 27) // columns // 128 * 128)


join, accumulate = torch.logaddexp2, accumulate_product
UNIT = math.log(2)


def gain(dtype: torch.dtype) -> float:
    """Return the factor by which gradients of logits, at most 2, are stored: float16 has no small numbers."""
    return 4096.0 if dtype == torch.float16 else 1.0


def _gradient(a: Tensor, b: Tensor, parts: int) -> Tensor:
    shape = len(a), len(b)
    return a.new_empty(shape if parts == 1 else (parts, *shape))


def logit_gradient(
    a: Tensor, b: Tensor, scale: Tensor, sums: LogSums, targets: Targets, shifts: Shifts, parts: int = 1
) -> tuple[Tensor, Tensor]:
    """Return gain * (softmax of rows + softmax of columns - 2 target) [M, N] in a's dtype; its sum with the products.

    The sum is without the gain; the other arguments are those of `statistics`. With two parts the gradient is [2, M,
    N]: rounded, and what that left of it.
    """
    wide = parts > 1 or targets.row_ids is not None
    tile = tuning.tile("contrastive_gradient", a.dtype, a.device, "_ids" if wide else "")
    grid = blocks(len(a), tile.blocks["BLOCK_M"]) * blocks(len(b), tile.blocks["BLOCK_N"])
    gradient, product_sums = _gradient(a, b, parts), scale.new_empty(grid)
    launch(
        logits.logit_gradient,
        (grid,),
        a,
        b,
        scale,
        targets.row_ids,
        targets.column_ids,
        targets.weights,
        *shifts,
        *sums,
        gradient,
        product_sums,
        targets.offset,
        targets.even,
        len(a),
        len(b),
        a.shape[1],
        IDS=targets.row_ids is not None,
        GAIN=gain(a.dtype),
        PARTS=parts,
        PRECISION=dot_precision(a.dtype),
        tile=tile,
    )
    return gradient, product_sums.sum(dtype=torch.float64)


def sigmoid(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, offset: int, with_gradient: bool, parts: int = 1
) -> tuple[Tensor | None, Tensor]:
    """gain * gradient of each logit [M, N] in a's dtype, and float64 [3]: sums of loss, gradient * product, gradient.

    Row i and column i + offset belong together. Without gradient the first is None and only the sum of the loss counts.
    parts: as in `logit_gradient`.
    """
    tile = tuning.tile("contrastive_sigmoid", a.dtype, a.device)
    grid = blocks(len(a), tile.blocks["BLOCK_M"]) * blocks(len(b), tile.blocks["BLOCK_N"])
    gradient = _gradient(a, b, parts) if with_gradient else None
    sums = scale.new_zeros(3, grid)
    launch(
        logits.sigmoid,
        (grid,),
        a,
        b,
        scale,
        bias,
        gradient,
        sums,
        offset,
        len(a),
        len(b),
        a.shape[1],
        grid,
        WITH_GRADIENT=with_gradient,
        GAIN=gain(a.dtype),
        PARTS=parts,
        PRECISION=dot_precision(a.dtype),
        tile=tile,
    )
    return gradient, sums.sum(dim=1, dtype=torch.float64)
