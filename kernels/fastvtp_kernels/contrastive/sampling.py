"""Triton kernel that draws hard negatives from the softmax of logits, of which only the log-sum-exps of tiles exist.

Shape legend as in `logits`.
"""
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (The body of a @triton.jit function is Triton's language, which looks like Python.)

import triton
import triton.language as tl

from .. import philox
from ..device_draw import key_and_step
from .logits import LOG2E, positive_pairs

STREAM = tl.constexpr(philox.signed(philox.HARD_NEGATIVES))


@triton.jit
def _first_above(cumulative, threshold, entry, weight):
    """Return the first entry whose cumulative weight exceeds the threshold; where rounding left none, the last with
    weight."""
    last = tl.max(tl.where(weight > 0, entry, 0))
    return tl.minimum(tl.sum((cumulative <= threshold).to(tl.int32)), last)


@triton.jit(do_not_specialize=["key", "step", "offset"])
def sample(
    a_ptr,
    b_ptr,
    scale_ptr,
    row_ids_ptr,
    column_ids_ptr,
    parts_ptr,
    chosen_ptr,
    draw_ptr,
    key,
    step,
    offset,
    parts,
    M,
    N,
    D,
    WORD: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    IDS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Draw chosen[row] by inverse CDF: first a tile, from the row's log-sum-exps parts [parts, M], then its column.

    The rows are those from `offset` on of a batch whose columns are all here; the random word is of the row's place in
    that.
    """
    key, step = key_and_step(draw_ptr, key, step, STREAM, ON_DEVICE)
    row = tl.program_id(0)
    part = tl.arange(0, BLOCK_PARTS)
    lse = tl.load(parts_ptr + part.to(tl.int64) * M + row, mask=part < parts, other=float("-inf"))
    largest = tl.max(lse)
    has_candidate = largest > float("-inf")
    weight = tl.exp2(lse - tl.where(has_candidate, largest, 0.0)).to(tl.float64)
    cumulative = tl.cumsum(weight, 0)
    zero = tl.full([1], 0, tl.int32)
    words = tl.philox(key, zero + row + offset, zero + step, zero, zero)
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
    positive = tl.max(positive_pairs(row_ids_ptr, column_ids_ptr, m, n, M, N, offset, IDS).to(tl.int32), axis=0) != 0
    candidate = (n < N) & (positive == 0)
    logits = tl.where(candidate, products * (tl.load(scale_ptr) * LOG2E), float("-inf"))
    largest = tl.max(logits)
    weight = tl.exp2(logits - tl.where(largest == float("-inf"), 0.0, largest)).to(tl.float64)
    cumulative = tl.cumsum(weight, 0)
    column = _first_above(cumulative, fraction * tl.max(cumulative), lane, weight)
    tl.store(chosen_ptr + row, tl.where(has_candidate, tile * BLOCK_N + column, -1).to(tl.int64))
