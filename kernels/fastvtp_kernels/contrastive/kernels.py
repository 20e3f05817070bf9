"""Triton kernels of the contrastive losses and of hard negatives, and their launchers.

Shape legend: M rows and N columns of a block of logits, D feature width; logits = scale * a[m] . b[n], kept in units of
log 2. One tile of them serves its rows and its columns. What tiles leave behind (log-sum-exp per row and column, sums
per program) is small and is reduced in a fixed order: no atomics, no locks.
"""
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (The body of a @triton.jit function is Triton's language, which looks like Python.)

import math
import sys
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import philox, tuning
from ..launching import blocks, dot_precision, launch
from .blockwise import Found
from .registered import contrastive_loss_with, sigmoid_loss_with
from .targets import Shifts, Targets

LOG2E = tl.constexpr(1.4426950408889634)
# Terms of 2 atanh(t) = log((1 + t) / (1 - t)) that t <= 1/3 needs for float32.
ATANH_TERMS = tl.constexpr(8)


@triton.jit
def _tile(
    a_ptr, b_ptr, M, N, D,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """This program's tile: (number of its rows, of its columns, m, n, a[m] . b[n], which of the pairs exist).

    GROUP row tiles run through all columns together, so that b is read from the cache.
    """
    row_tiles, column_tiles = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    first = program // (GROUP * column_tiles) * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    within = program % (GROUP * column_tiles)
    row_tile, column_tile = first + within % height, within // height
    m, n = row_tile * BLOCK_M + tl.arange(0, BLOCK_M), column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    lane = tl.arange(0, BLOCK_D)
    a_row, b_row = a_ptr + m.to(tl.int64) * D, b_ptr + n.to(tl.int64) * D
    products = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, D, BLOCK_D):
        d = start + lane
        a = tl.load(a_row[:, None] + d[None, :], mask=(m < M)[:, None] & (d < D)[None, :], other=0.0)
        b = tl.load(b_row[:, None] + d[None, :], mask=(n < N)[:, None] & (d < D)[None, :], other=0.0)
        products = tl.dot(a, tl.trans(b), products, input_precision=PRECISION)
    return row_tile, column_tile, m, n, products, (m < M)[:, None] & (n < N)[None, :]


@triton.jit
def _positive(row_ids_ptr, column_ids_ptr, m, n, M, N, offset, IDS: tl.constexpr):
    """bool [BLOCK_M, BLOCK_N]; the caller masks what is outside the block."""
    if IDS:
        row_id = tl.load(row_ids_ptr + m, mask=m < M, other=0)
        column_id = tl.load(column_ids_ptr + n, mask=n < N, other=0)
        return row_id[:, None] == column_id[None, :]
    else:
        return (m + offset)[:, None] == n[None, :]


@triton.jit
def _target(positive, weights_ptr, m, M, positive_weight, even, IDS: tl.constexpr):
    """The target distribution's weight of each pair."""
    if IDS:
        weight = tl.load(weights_ptr + m, mask=m < M, other=0.0)
        return tl.where(positive, weight[:, None], 0.0) + even
    else:
        return tl.where(positive, positive_weight, 0.0) + even


@triton.jit
def _shifts(row_shifts_ptr, column_shifts_ptr, m, n, M, N):
    """What the logits of a row, and of a column, are measured from."""
    row_shift = tl.load(row_shifts_ptr + m, mask=m < M, other=0.0)
    return row_shift[:, None], tl.load(column_shifts_ptr + n, mask=n < N, other=0.0)[None, :]


@triton.jit
def _own_products(a_ptr, b_ptr, products_ptr, M, D, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """products[m] = a[m] . b[m]."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in tl.range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        place, mask = m.to(tl.int64)[:, None] * D + d[None, :], (m < M)[:, None] & (d < D)[None, :]
        a = tl.load(a_ptr + place, mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(a * tl.load(b_ptr + place, mask=mask, other=0.0).to(tl.float32), axis=1)
    tl.store(products_ptr + m, total, mask=m < M)


@triton.jit
def _log_sum(logits, AXIS: tl.constexpr):
    """log2 of the sum of 2^logits along an axis; -inf where there are none."""
    largest = tl.max(logits, axis=AXIS)
    finite = tl.where(largest == float("-inf"), 0.0, largest)
    total = tl.sum(tl.exp2(logits - tl.expand_dims(finite, AXIS)), axis=AXIS)
    # 0 has no logarithm; where the sum is 0, `largest` is -inf.
    return largest + tl.log2(tl.where(total == 0.0, 1.0, total))


@triton.jit(do_not_specialize=["offset"])
def _statistics(
    a_ptr, b_ptr, scale_ptr, row_ids_ptr, column_ids_ptr, weights_ptr, row_shifts_ptr, column_shifts_ptr,
    rows_ptr, columns_ptr, target_ptr, offset, positive_weight, even, M, N, D,
    IDS: tl.constexpr, EXCLUDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of each row [column tiles, M] and column [row tiles, N] over one tile, less its shift.

    target[program] = sum over the tile of target weight * (twice the logit less both shifts). EXCLUDE: positives are
    left out of the log-sum-exps, and there are neither shifts nor a target.
    """
    program = tl.program_id(0)
    row_tile, column_tile, m, n, products, exists = _tile(
        a_ptr, b_ptr, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, GROUP, PRECISION
    )
    logits = products * (tl.load(scale_ptr) * LOG2E)
    positive = _positive(row_ids_ptr, column_ids_ptr, m, n, M, N, offset, IDS)
    if EXCLUDE:
        exists = exists & (positive == 0)
        row_shift, column_shift = 0.0, 0.0
    else:
        row_shift, column_shift = _shifts(row_shifts_ptr, column_shifts_ptr, m, n, M, N)
        target = _target(positive, weights_ptr, m, M, positive_weight, even, IDS)
        tl.store(
            target_ptr + program, tl.sum(tl.where(exists, target * (2.0 * logits - row_shift - column_shift), 0.0))
        )
    logits = tl.where(exists, logits, float("-inf"))
    tl.store(rows_ptr + column_tile.to(tl.int64) * M + m, _log_sum(logits - row_shift, 1), mask=m < M)
    tl.store(columns_ptr + row_tile.to(tl.int64) * N + n, _log_sum(logits - column_shift, 0), mask=n < N)


@triton.jit
def _join(parts_ptr, joined_ptr, parts, count, BLOCK_PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Log-sum-exp over the first axis of [parts, count], in order."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, parts, BLOCK_PARTS):
        part = start + tl.arange(0, BLOCK_PARTS)
        mask = (part < parts)[:, None] & (entry < count)[None, :]
        values = tl.load(
            parts_ptr + part.to(tl.int64)[:, None] * count + entry[None, :], mask=mask, other=float("-inf")
        )
        new_largest = tl.maximum(largest, tl.max(values, axis=0))
        finite = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        total = total * tl.exp2(largest - finite) + tl.sum(tl.exp2(values - finite[None, :]), axis=0)
        largest = new_largest
    tl.store(joined_ptr + entry, largest + tl.log2(tl.where(total == 0.0, 1.0, total)), mask=entry < count)


@triton.jit(do_not_specialize=["offset"])
def _logit_gradient(
    a_ptr, b_ptr, scale_ptr, row_ids_ptr, column_ids_ptr, weights_ptr, row_shifts_ptr, column_shifts_ptr,
    rows_ptr, columns_ptr, gradient_ptr, sum_ptr, offset, positive_weight, even, M, N, D,
    IDS: tl.constexpr, GAIN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """gradient [M, N] = GAIN * g, g = softmax of rows + softmax of columns - 2 target; sum[program]: of g * product."""
    program = tl.program_id(0)
    _, _, m, n, products, exists = _tile(a_ptr, b_ptr, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, GROUP, PRECISION)
    logits = products * (tl.load(scale_ptr) * LOG2E)
    row_lse = tl.load(rows_ptr + m, mask=m < M, other=float("inf"))
    column_lse = tl.load(columns_ptr + n, mask=n < N, other=float("inf"))
    row_shift, column_shift = _shifts(row_shifts_ptr, column_shifts_ptr, m, n, M, N)
    softmaxes = tl.exp2(logits - row_shift - row_lse[:, None]) + tl.exp2(logits - column_shift - column_lse[None, :])
    positive = _positive(row_ids_ptr, column_ids_ptr, m, n, M, N, offset, IDS)
    gradient = softmaxes - 2.0 * _target(positive, weights_ptr, m, M, positive_weight, even, IDS)
    tl.store(sum_ptr + program, tl.sum(tl.where(exists, gradient * products, 0.0)))
    place = gradient_ptr + m.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(place, (gradient * GAIN).to(gradient_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _log1p(x):
    """log(1 + x) of x in [0, 1] to float32's precision, which the device's own logarithm does not have near 1."""
    ratio = x / (2.0 + x)
    square = ratio * ratio
    series = 0.0 * x
    for term in tl.static_range(ATANH_TERMS):
        series = series * square + 2.0 / (2 * (ATANH_TERMS - 1 - term) + 1)
    return ratio * series


@triton.jit(do_not_specialize=["offset"])
def _sigmoid(
    a_ptr, b_ptr, scale_ptr, bias_ptr, gradient_ptr, sums_ptr, offset, M, N, D, programs,
    WITH_GRADIENT: tl.constexpr, GAIN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """sums [3, programs]: of the loss, of g * product, of g, the gradient of a logit; gradient [M, N] = GAIN * g."""
    program = tl.program_id(0)
    _, _, m, n, products, exists = _tile(a_ptr, b_ptr, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, GROUP, PRECISION)
    sign = tl.where((m + offset)[:, None] == n[None, :], -1.0, 1.0)
    # The loss of a pair is log(1 + exp(z)) with z = -logit for positives, +logit for the others.
    z = sign * (products * tl.load(scale_ptr) + tl.load(bias_ptr))
    small = tl.exp2(-tl.abs(z) * LOG2E)
    loss = tl.where(exists, tl.maximum(z, 0.0) + _log1p(small), 0.0)
    tl.store(sums_ptr + program, tl.sum(loss))
    if WITH_GRADIENT:
        gradient = tl.where(exists, sign * tl.where(z > 0, 1.0, small) / (1.0 + small), 0.0)
        tl.store(sums_ptr + programs + program, tl.sum(gradient * products))
        tl.store(sums_ptr + 2 * programs + program, tl.sum(gradient))
        place = gradient_ptr + m.to(tl.int64)[:, None] * N + n[None, :]
        tl.store(place, (gradient * GAIN).to(gradient_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _first_above(cumulative, threshold, entry, weight):
    """The first entry whose cumulative weight exceeds the threshold; where rounding left none, the last with weight."""
    last = tl.max(tl.where(weight > 0, entry, 0))
    return tl.minimum(tl.sum((cumulative <= threshold).to(tl.int32)), last)


@triton.jit(do_not_specialize=["key", "step", "offset"])
def _sample(
    a_ptr, b_ptr, scale_ptr, row_ids_ptr, column_ids_ptr, parts_ptr, chosen_ptr,
    key, step, offset, parts, M, N, D,
    WORD: tl.constexpr, IDS: tl.constexpr, BLOCK_PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """chosen[row] by inverse CDF: first the tile, from the row's parts [parts, M], then the column within the tile."""
    row = tl.program_id(0)
    part = tl.arange(0, BLOCK_PARTS)
    lse = tl.load(parts_ptr + part.to(tl.int64) * M + row, mask=part < parts, other=float("-inf"))
    largest = tl.max(lse)
    has_candidate = largest > float("-inf")
    weight = tl.exp2(lse - tl.where(has_candidate, largest, 0.0)).to(tl.float64)
    cumulative = tl.cumsum(weight, 0)
    zero = tl.full([1], 0, tl.int32)
    words = tl.philox(key, zero + row, zero + step, zero, zero)
    high, low = words[WORD].to(tl.int64) & 0xFFFFFFFF, words[WORD + 2].to(tl.int64) & 0xFFFFFFFF
    # 48 random bits, exact in float64.
    uniform = tl.sum(((high >> 8) << 24) | (low >> 8)).to(tl.float64) * 3.552713678800501e-15
    threshold = uniform * tl.max(cumulative)
    tile = _first_above(cumulative, threshold, part, weight)
    before = tl.max(tl.where(part < tile, cumulative, 0.0))
    inside = tl.sum(tl.where(part == tile, weight, 0.0))
    fraction = (threshold - before) / tl.where(has_candidate, inside, 1.0)

    lane, d_lane = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    n = tile * BLOCK_N + lane
    products = tl.zeros([BLOCK_N], tl.float32)
    for start in tl.range(0, D, BLOCK_D):
        d = start + d_lane
        a = tl.load(a_ptr + row.to(tl.int64) * D + d, mask=d < D, other=0.0).to(tl.float32)
        mask = (n < N)[:, None] & (d < D)[None, :]
        b = tl.load(b_ptr + n.to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
        products += tl.sum(a[None, :] * b, axis=1)
    m = tl.full([1], 0, tl.int32) + row
    positive = tl.max(_positive(row_ids_ptr, column_ids_ptr, m, n, M, N, offset, IDS).to(tl.int32), axis=0) != 0
    candidate = (n < N) & (positive == 0)
    logits = tl.where(candidate, products * (tl.load(scale_ptr) * LOG2E), float("-inf"))
    largest = tl.max(logits)
    weight = tl.exp2(logits - tl.where(largest == float("-inf"), 0.0, largest)).to(tl.float64)
    cumulative = tl.cumsum(weight, 0)
    column = _first_above(cumulative, fraction * tl.max(cumulative), lane, weight)
    tl.store(chosen_ptr + row, tl.where(has_candidate, tile * BLOCK_N + column, -1).to(tl.int64))


def _join_parts(parts: Tensor) -> Tensor:
    """[parts, count] to [count]."""
    joined = parts.new_empty(parts.shape[1])
    tile = tuning.tile("contrastive_join", torch.float32, parts.device)
    launch(_join, (blocks(len(joined), tile.blocks["BLOCK"]),), parts, joined, *parts.shape, tile=tile)
    return joined


def _sweep(
    a: Tensor, b: Tensor, scale: Tensor, targets: Targets, shifts: Shifts | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Without shifts: positives are left out."""
    tile = tuning.tile("contrastive_statistics", a.dtype, a.device)
    row_tiles, column_tiles = blocks(len(a), tile.blocks["BLOCK_M"]), blocks(len(b), tile.blocks["BLOCK_N"])
    rows, columns, target = (
        scale.new_empty(shape) for shape in ((column_tiles, len(a)), (row_tiles, len(b)), row_tiles * column_tiles)
    )
    launch(
        _statistics, (row_tiles * column_tiles,), a, b, scale, targets.row_ids, targets.column_ids, targets.weights,
        *(shifts or (None, None)), rows, columns, target, targets.offset, targets.positive_weight, targets.even,
        len(a), len(b), a.shape[1],
        IDS=targets.row_ids is not None, EXCLUDE=shifts is None, PRECISION=dot_precision(a.dtype), tile=tile,
    )  # fmt: skip
    return rows, columns, target


def shift(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """float32 [M]: the logit of each row's own pair, from which the logits of its row and column are measured.

    The loss of well-aligned pairs is a small difference of large logits: measured from there, they are small.
    """
    products = scale.new_empty(len(a))
    tile = tuning.tile("contrastive_own_products", torch.float32, a.device)
    launch(_own_products, (blocks(len(a), tile.blocks["BLOCK_M"]),), a, b, products, *a.shape, tile=tile)
    return products * (scale * LOG2E.value)


def statistics(a: Tensor, b: Tensor, scale: Tensor, targets: Targets, shifts: Shifts) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of rows [M] and columns [N] less their shifts, and the sum over all pairs of target weight * (twice
    the logit less both shifts), float64 []; all in units of log 2.

    a [M, D] and b [N, D] contiguous; scale float32 [].
    """
    rows, columns, target = _sweep(a, b, scale, targets, shifts)
    return _join_parts(rows), _join_parts(columns), target.sum(dtype=torch.float64)


def prepare(x: Tensor) -> Tensor:
    """As the other functions here want their features."""
    return x.contiguous()


def strip_rows(columns: int) -> int:
    """Rows of logits whose gradient is in memory at a time: up to 2^27 numbers."""
    return max(1024, (1 << 27) // columns)


join = torch.logaddexp2
UNIT = math.log(2)


def gain(dtype: torch.dtype) -> float:
    """What the gradient of a logit, at most 2, is multiplied by: float16 has no small numbers."""
    return 4096.0 if dtype == torch.float16 else 1.0


def logit_gradient(
    a: Tensor, b: Tensor, scale: Tensor, rows: Tensor, columns: Tensor, targets: Targets, shifts: Shifts
) -> tuple[Tensor, Tensor]:
    """gain * (softmax of rows + softmax of columns - 2 target) [M, N] in a's dtype, and its sum with the products.

    The sum is without the gain; the other arguments are those, and the results, of `statistics`.
    """
    tile = tuning.tile("contrastive_gradient", a.dtype, a.device)
    grid = blocks(len(a), tile.blocks["BLOCK_M"]) * blocks(len(b), tile.blocks["BLOCK_N"])
    gradient, sums = a.new_empty(len(a), len(b)), scale.new_empty(grid)
    launch(
        _logit_gradient, (grid,), a, b, scale, targets.row_ids, targets.column_ids, targets.weights, *shifts,
        rows, columns, gradient, sums, targets.offset, targets.positive_weight, targets.even,
        len(a), len(b), a.shape[1],
        IDS=targets.row_ids is not None, GAIN=gain(a.dtype), PRECISION=dot_precision(a.dtype), tile=tile,
    )  # fmt: skip
    return gradient, sums.sum(dtype=torch.float64)


def sigmoid(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, offset: int, with_gradient: bool
) -> tuple[Tensor | None, Tensor]:
    """gain * gradient of each logit [M, N] in a's dtype, and float64 [3]: sums of loss, gradient * product, gradient.

    Row i and column i + offset belong together. Without gradient the first is None and only the sum of the loss counts.
    """
    tile = tuning.tile("contrastive_sigmoid", a.dtype, a.device)
    grid = blocks(len(a), tile.blocks["BLOCK_M"]) * blocks(len(b), tile.blocks["BLOCK_N"])
    gradient = a.new_empty(len(a), len(b)) if with_gradient else None
    sums = scale.new_zeros(3, grid)
    launch(
        _sigmoid, (grid,), a, b, scale, bias, gradient, sums, offset, len(a), len(b), a.shape[1], grid,
        WITH_GRADIENT=with_gradient, GAIN=gain(a.dtype), PRECISION=dot_precision(a.dtype), tile=tile,
    )  # fmt: skip
    return gradient, sums.sum(dim=1, dtype=torch.float64)


def hard_negatives(
    a: Tensor, b: Tensor, scale: Tensor, seed: int, step: int, groups: Tensor | None
) -> tuple[Tensor, Tensor]:
    """int64 [B] each; `seed` in two's complement, scale float32 []."""
    a, b = prepare(a), prepare(b)
    targets = Targets(row_ids=groups, column_ids=groups)
    tile = tuning.tile("contrastive_statistics", a.dtype, a.device)
    rows, columns, _ = _sweep(a, b, scale, targets, None)
    key = philox.signed((seed ^ philox.HARD_NEGATIVES) & 0xFFFFFFFFFFFFFFFF)
    chosen = []
    for word, (x, y, parts, width) in enumerate(
        ((a, b, rows, tile.blocks["BLOCK_N"]), (b, a, columns, tile.blocks["BLOCK_M"]))
    ):
        sampler = tuning.tile("contrastive_sample", torch.float32, a.device)
        chosen.append(torch.empty(len(x), dtype=torch.int64, device=x.device))
        launch(
            _sample, (len(x),), x, y, scale, groups, groups, parts, chosen[-1],
            key, philox.signed(step, 32), 0, len(parts), len(x), len(y), x.shape[1],
            WORD=word, IDS=groups is not None, BLOCK_PARTS=triton.next_power_of_2(len(parts)), BLOCK_N=width,
            tile=sampler,
        )  # fmt: skip
    return chosen[0], chosen[1]


def contrastive_loss(*inputs: Any) -> Found:
    return contrastive_loss_with(sys.modules[__name__], *inputs)


def sigmoid_loss(*inputs: Any) -> Found:
    return sigmoid_loss_with(sys.modules[__name__], *inputs)
