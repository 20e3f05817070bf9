"""Launchers of the kernels of the contrastive losses and of hard negatives.

Shape legend: M rows and N columns of a block of logits, D feature width. Logits are kept in units of log 2.
"""

import importlib
import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor

from .. import philox, tuning
from ..launching import blocks, dot_precision, launch
from ..precision import accumulate_product
from . import blockwise, logits, sampling
from .blockwise import LossAndGradients
from .ranks import gather_batch
from .targets import LogSums, Shifts, Statistics, Targets


def join_parts(parts: Tensor) -> Tensor:
    """Return the log-sum-exp [count] over the first axis of [parts, count], in a fixed order."""
    joined = parts.new_empty(parts.shape[1])
    tile = tuning.tile("contrastive_join", torch.float32, parts.device)
    launch(logits.join, (blocks(len(joined), tile.blocks["BLOCK"]),), parts, joined, *parts.shape, tile=tile)
    return joined


def _sweep(
    a: Tensor, b: Tensor, scale: Tensor, targets: Targets, shifts: Shifts | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernel `logits.statistics` over a block; with shifts it leaves own pairs out, without all positives.

    Returns log-sum-exps of rows [column tiles, M] and of columns [row tiles, N], and each tile's part of the target.
    """
    tile = tuning.tile("contrastive_statistics", a.dtype, a.device)
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
        targets.positive_weight,
        targets.even,
        len(a),
        len(b),
        a.shape[1],
        IDS=targets.row_ids is not None,
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
    rows, columns, target = _sweep(a, b, scale, targets, shifts)
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
    tile = tuning.tile("contrastive_gradient", a.dtype, a.device)
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
        targets.positive_weight,
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


def hard_negatives(
    a: Tensor, b: Tensor, scale: Tensor, seed: int, step: int, groups: Tensor | None, split: bool, group: str
) -> tuple[Tensor, Tensor]:
    """Return b_for_a and a_for_b, int64 [B] each; `seed` is in two's complement, scale float32 [].

    With `split` tiles are drawn by products as `split.py` makes them, and columns of a tile by float32 products.
    """
    batch = gather_batch(a, b, seed, step, groups, group)
    own, own_ids = batch.own, None if batch.groups is None else batch.groups[batch.own]
    every_a, every_b = prepare(batch.a), prepare(batch.b)
    a, b = every_a[own], every_b[own]
    products: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = _splitting().wide if split else lambda x, y: (x, y)
    targets = Targets(own.start, row_ids=own_ids, column_ids=batch.groups)
    x, y = products(a, every_b)
    rows, columns, _ = _sweep(x, y, scale, targets, None)
    if len(a) < len(every_a):
        # Not of b's rows with all columns of a: these tiles are those of one process, and so are their sums' bits.
        targets = Targets(-own.start, row_ids=batch.groups, column_ids=own_ids)
        x, y = products(every_a, b)
        _, columns, _ = _sweep(x, y, scale, targets, None)
    tile = tuning.tile("contrastive_statistics", torch.bfloat16 if split else a.dtype, a.device)
    key = philox.signed((seed ^ philox.HARD_NEGATIVES) & 0xFFFFFFFFFFFFFFFF)
    chosen = []
    for word, (x, y, parts, width) in enumerate(
        ((a, every_b, rows, tile.blocks["BLOCK_N"]), (b, every_a, columns, tile.blocks["BLOCK_M"]))
    ):
        sampler = tuning.tile("contrastive_sample", torch.float32, a.device)
        chosen.append(torch.empty(len(x), dtype=torch.int64, device=x.device))
        launch(
            sampling.sample,
            (len(x),),
            x,
            y,
            scale,
            own_ids,
            batch.groups,
            parts,
            chosen[-1],
            key,
            philox.signed(step, 32),
            own.start,
            len(parts),
            len(x),
            len(y),
            x.shape[1],
            WORD=word,
            IDS=groups is not None,
            BLOCK_PARTS=triton.next_power_of_2(len(parts)),
            BLOCK_N=width,
            tile=sampler,
        )
    return chosen[0], chosen[1]


def _splitting() -> ModuleType:
    # Imported late: it is made of this module.
    return importlib.import_module(".split", __package__)


def _tiles(split: bool) -> ModuleType:
    return _splitting() if split else sys.modules[__name__]


def contrastive_loss(*inputs: Any) -> LossAndGradients:
    """Compute `blockwise.contrastive_loss` with these tiles, or those of `split`, for the registered op's arguments."""
    return blockwise.contrastive_loss_of_flat(_tiles(inputs[5]), *inputs)


def sigmoid_loss(*inputs: Any) -> LossAndGradients:
    """Compute `blockwise.sigmoid_loss` in the same way."""
    return blockwise.sigmoid_loss_of_flat(_tiles(inputs[4]), *inputs)
