"""Triton kernels of the contrastive losses: tiles of logits, their statistics and their gradients.

Shape legend: M rows and N columns of a block of logits, D feature width; logits = scale * a[m] . b[n], kept in units of
log 2. One tile of them serves its rows and its columns. What tiles leave behind (log-sum-exp per row and column, sums
per program) is small and is reduced in a fixed order: no atomics, no locks.
"""
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (The body of a @triton.jit function is Triton's language, which looks like Python.)

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# Terms of 2 atanh(t) = log((1 + t) / (1 - t)) that t <= 1/3 needs for float32.
ATANH_TERMS = tl.constexpr(8)


@triton.jit
def _products(
    a_ptr,
    b_ptr,
    m,
    n,
    M,
    N,
    D,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return a[m] . b[n], float32 [BLOCK_M, BLOCK_N]."""
    lane = tl.arange(0, BLOCK_D)
    a_row, b_row = a_ptr + m.to(tl.int64) * D, b_ptr + n.to(tl.int64) * D
    products = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in tl.range(0, D, BLOCK_D):
        d = start + lane
        a = tl.load(a_row[:, None] + d[None, :], mask=(m < M)[:, None] & (d < D)[None, :], other=0.0)
        b = tl.load(b_row[:, None] + d[None, :], mask=(n < N)[:, None] & (d < D)[None, :], other=0.0)
        products = tl.dot(a, tl.trans(b), products, input_precision=PRECISION)
    return products


@triton.jit
def _tile(
    a_ptr,
    b_ptr,
    M,
    N,
    D,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return this program's tile: number of its rows, of its columns, m, n, a[m] . b[n].

    GROUP row tiles run through all columns together, so that b is read from the cache.
    """
    row_tiles, column_tiles = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    first = program // (GROUP * column_tiles) * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    within = program % (GROUP * column_tiles)
    row_tile, column_tile = first + within % height, within // height
    m, n = row_tile * BLOCK_M + tl.arange(0, BLOCK_M), column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    products = _products(a_ptr, b_ptr, m, n, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
    return row_tile, column_tile, m, n, products


@triton.jit
def _is_cut(row_tile, column_tile, M, N, offset, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Tell whether a tile has own pairs (column = row + offset) or pairs that do not exist: most tiles need no mask."""
    m, n = row_tile * BLOCK_M, column_tile * BLOCK_N
    outside = (m + BLOCK_M > M) | (n + BLOCK_N > N)
    return outside | ((m + offset < n + BLOCK_N) & (n < m + offset + BLOCK_M))


@triton.jit
def _pairs(m, n, M, N, offset):
    """bool [BLOCK_M, BLOCK_N] twice: which pairs exist, and which are own pairs."""
    return (m < M)[:, None] & (n < N)[None, :], (m + offset)[:, None] == n[None, :]


@triton.jit
def positive_pairs(row_ids_ptr, column_ids_ptr, m, n, M, N, offset, IDS: tl.constexpr):
    """bool [BLOCK_M, BLOCK_N], True for pairs that belong together; the caller masks what is outside the block."""
    if IDS:
        row_id = tl.load(row_ids_ptr + m, mask=m < M, other=0)
        column_id = tl.load(column_ids_ptr + n, mask=n < N, other=0)
        return row_id[:, None] == column_id[None, :]
    else:
        return (m + offset)[:, None] == n[None, :]


@triton.jit
def _target(row_ids_ptr, column_ids_ptr, weights_ptr, m, n, M, N, offset, even, IDS: tl.constexpr):
    """Return the weight of each pair but the own in the target distribution, label smoothing (`even`) included."""
    if IDS:
        weight = tl.load(weights_ptr + m, mask=m < M, other=0.0)
        positive = positive_pairs(row_ids_ptr, column_ids_ptr, m, n, M, N, offset, IDS)
        return tl.where(positive, weight[:, None], 0.0) + even
    else:
        return even


@triton.jit
def _shifts(row_shifts_ptr, column_shifts_ptr, m, n, M, N):
    """Load what the logits of each row [M], and of each column [N], are measured from."""
    row_shift = tl.load(row_shifts_ptr + m, mask=m < M, other=0.0)
    return row_shift, tl.load(column_shifts_ptr + n, mask=n < N, other=0.0)


@triton.jit
def own_products(
    a_ptr, b_ptr, products_ptr, M, D, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr
):
    """products[m] = a[m] . b[m], the diagonal of a whole tile: with the bits that the tiles of logits have there.

    Otherwise the logits of equal pairs, which tie, would differ by their rounding.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    products = _products(a_ptr, b_ptr, m, m, M, M, D, BLOCK_M, BLOCK_M, BLOCK_D, PRECISION)
    own = tl.sum(tl.where(m[:, None] == m[None, :], products, 0.0), axis=1)
    tl.store(products_ptr + m, own, mask=m < M)


@triton.jit
def _log_sum(logits, shift, AXIS: tl.constexpr):
    """log2 of the sum of 2^(logits - shift) along an axis, of one shift for each sum; -inf where all logits are."""
    largest = tl.max(logits, axis=AXIS)
    finite = tl.where(largest == float("-inf"), 0.0, largest)
    total = tl.sum(tl.exp2(logits - tl.expand_dims(finite, AXIS)), axis=AXIS)
    # 0 has no logarithm; where the sum is 0, `largest` is -inf.
    return (largest - shift) + tl.log2(tl.where(total == 0.0, 1.0, total))


@triton.jit(do_not_specialize=["offset"])
def statistics(
    a_ptr, b_ptr, scale_ptr, row_ids_ptr, column_ids_ptr, weights_ptr, row_shifts_ptr, column_shifts_ptr,
    rows_ptr, columns_ptr, target_ptr, offset, even, M, N, D,
    IDS: tl.constexpr, TARGETS: tl.constexpr, EXCLUDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write the log-sum-exp of each row [column tiles, M] and column [row tiles, N] over one tile, less its shift.

    Own pairs (column = row + offset) are left out. target[program] = sum over the others of the tile of target weight *
    (twice the logit less both shifts); without TARGETS these weights are zero. EXCLUDE: all positives are left out, and
    there are neither shifts nor a target.
    """
    program = tl.program_id(0)
    row_tile, column_tile, m, n, products = _tile(a_ptr, b_ptr, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, GROUP, PRECISION)
    cut = _is_cut(row_tile, column_tile, M, N, offset, BLOCK_M, BLOCK_N)
    logits = products * (tl.load(scale_ptr) * LOG2E)
    row_shift, column_shift = 0.0, 0.0
    if not EXCLUDE:
        row_shift, column_shift = _shifts(row_shifts_ptr, column_shifts_ptr, m, n, M, N)
    if TARGETS:
        target = _target(row_ids_ptr, column_ids_ptr, weights_ptr, m, n, M, N, offset, even, IDS)
        weighted = target * (2.0 * logits - row_shift[:, None] - column_shift[None, :])
        if cut:
            exists, own = _pairs(m, n, M, N, offset)
            weighted = tl.where(exists & (own == 0), weighted, 0.0)
        tl.store(target_ptr + program, tl.sum(weighted))
    elif not EXCLUDE:
        tl.store(target_ptr + program, 0.0)
    if EXCLUDE and IDS:
        positive = positive_pairs(row_ids_ptr, column_ids_ptr, m, n, M, N, offset, IDS)
        logits = tl.where(positive, float("-inf"), logits)
    if cut:
        exists, own = _pairs(m, n, M, N, offset)
        logits = tl.where(exists & (own == 0), logits, float("-inf"))
    tl.store(rows_ptr + column_tile.to(tl.int64) * M + m, _log_sum(logits, row_shift, 1), mask=m < M)
    tl.store(columns_ptr + row_tile.to(tl.int64) * N + n, _log_sum(logits, column_shift, 0), mask=n < N)


@triton.jit
def join(parts_ptr, joined_ptr, parts, count, BLOCK_PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """joined[count] = log-sum-exp over the first axis of parts [parts, count], in order."""
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


@triton.jit
def _store_parts(output_ptr, values, m, n, M, N, PARTS: tl.constexpr):
    """Write values to output [PARTS, M, N]: rounded, and in a second part what that left of them."""
    exists = (m < M)[:, None] & (n < N)[None, :]
    row = m.to(tl.int64)[:, None]
    rounded = values.to(output_ptr.dtype.element_ty)
    tl.store(output_ptr + row * N + n[None, :], rounded, mask=exists)
    if PARTS == 2:
        rest = (values - rounded.to(tl.float32)).to(output_ptr.dtype.element_ty)
        tl.store(output_ptr + (row + M) * N + n[None, :], rest, mask=exists)


@triton.jit(do_not_specialize=["offset"])
def logit_gradient(
    a_ptr, b_ptr, scale_ptr, row_ids_ptr, column_ids_ptr, weights_ptr, row_shifts_ptr, column_shifts_ptr,
    rows_ptr, columns_ptr, own_gradient_ptr, gradient_ptr, sum_ptr, offset, even, M, N, D,
    IDS: tl.constexpr, GAIN: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """gradient [PARTS, M, N] = GAIN * g with g = softmax of rows + softmax of columns - 2 target.

    sum[program] = sum over the tile of g * product.
    """
    program = tl.program_id(0)
    _, _, m, n, products = _tile(a_ptr, b_ptr, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, GROUP, PRECISION)
    logits = products * (tl.load(scale_ptr) * LOG2E)
    row_lse = tl.load(rows_ptr + m, mask=m < M, other=float("inf"))
    column_lse = tl.load(columns_ptr + n, mask=n < N, other=float("inf"))
    row_shift, column_shift = _shifts(row_shifts_ptr, column_shifts_ptr, m, n, M, N)
    gradient = tl.exp2(logits - row_shift[:, None] - row_lse[:, None])
    gradient += tl.exp2(logits - column_shift[None, :] - column_lse[None, :])
    gradient -= 2.0 * _target(row_ids_ptr, column_ids_ptr, weights_ptr, m, n, M, N, offset, even, IDS)
    # Masks cost less here than a branch around them, which would hold products and gradient in registers at once.
    exists, own = _pairs(m, n, M, N, offset)
    own_gradient = tl.load(own_gradient_ptr + m, mask=m < M, other=0.0)
    gradient = tl.where(own, own_gradient[:, None], gradient)
    tl.store(sum_ptr + program, tl.sum(tl.where(exists, gradient * products, 0.0)))
    _store_parts(gradient_ptr, gradient * GAIN, m, n, M, N, PARTS)


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
def sigmoid(
    a_ptr,
    b_ptr,
    scale_ptr,
    bias_ptr,
    gradient_ptr,
    sums_ptr,
    offset,
    M,
    N,
    D,
    programs,
    WITH_GRADIENT: tl.constexpr,
    GAIN: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """gradient [PARTS, M, N] = GAIN * g, the gradient of each logit.

    sums [3, programs] are over each tile: of the loss, of g * product and of g.
    """
    program = tl.program_id(0)
    _, _, m, n, products = _tile(a_ptr, b_ptr, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, GROUP, PRECISION)
    exists, own = _pairs(m, n, M, N, offset)
    sign = tl.where(own, -1.0, 1.0)
    # The loss of a pair is log(1 + exp(z)) with z = -logit for positives, +logit for the others.
    z = sign * (products * tl.load(scale_ptr) + tl.load(bias_ptr))
    small = tl.exp2(-tl.abs(z) * LOG2E)
    loss = tl.where(exists, tl.maximum(z, 0.0) + _log1p(small), 0.0)
    tl.store(sums_ptr + program, tl.sum(loss))
    if WITH_GRADIENT:
        gradient = tl.where(exists, sign * tl.where(z > 0, 1.0, small) / (1.0 + small), 0.0)
        tl.store(sums_ptr + programs + program, tl.sum(gradient * products))
        tl.store(sums_ptr + 2 * programs + program, tl.sum(gradient))
        _store_parts(gradient_ptr, gradient * GAIN, m, n, M, N, PARTS)
