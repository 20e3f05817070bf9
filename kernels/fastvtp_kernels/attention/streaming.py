"""The long regime: keys pass by a tile of queries, queries by a tile of keys. Backward is two ordered passes."""

# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
import triton
import triton.language as tl

from .common import (
    backward_tile,
    empty_state,
    extent,
    finish,
    first_of,
    forward_tile,
    keyless,
    load_rows,
    numbered,
    philox_key,
    store_rows,
    visible,
    zero_forward_tail,
    zero_tail,
)


@triton.jit
def _work(order_ptr, heads, tiles):
    """Return this program's slot, sequence, head and tile: tiles of one sequence and head run side by side."""
    slot = tl.program_id(0) // (heads * tiles)
    sequence = slot if order_ptr is None else tl.load(order_ptr + slot)
    return slot, sequence, (tl.program_id(0) // tiles % heads).to(tl.int64), tl.program_id(0) % tiles


@triton.jit(do_not_specialize=["sequences", "tiles", "rows", "threshold", "factor"])
def stream_forward(
    query_ptr, key_ptr, value_ptr, output_ptr, lse_ptr, offsets_ptr, offsets_k_ptr, order_ptr,
    q_strides, k_strides, v_strides, o_strides, sequences, heads, tiles, rows, D, length, inner,
    scale, softcap, seed_ptr, threshold, factor,
    AXIAL: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    slot, sequence, head, tile = _work(order_ptr, heads, tiles)
    dropout = philox_key(seed_ptr, DROPOUT), threshold, factor
    d = tl.arange(0, BLOCK_D)
    if not AXIAL:
        part, parts = slot * tiles + tile, sequences * tiles
        zero_forward_tail(
            output_ptr, lse_ptr, offsets_ptr, head, part, parts, sequences, rows, o_strides, d, D, BLOCK_M
        )
    start, len_q = extent(offsets_ptr, sequence, length, AXIAL)
    if tile * BLOCK_M >= len_q:
        return
    start_k, len_k = extent(offsets_k_ptr, sequence, length, AXIAL)
    key_ptr = first_of(key_ptr, start_k, sequence, inner, head, k_strides, AXIAL)
    value_ptr = first_of(value_ptr, start_k, sequence, inner, head, v_strides, AXIAL)
    query_ptr = first_of(query_ptr, start, sequence, inner, head, q_strides, AXIAL)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query = load_rows(query_ptr, numbered(row, WIDE), q_strides[1], len_q, d, D)
    state = empty_state(BLOCK_M, BLOCK_D)
    end = tl.minimum(len_k, (tile + 1) * BLOCK_M + len_k - len_q) if CAUSAL else len_k
    for first in tl.range(0, end, BLOCK_N):
        position = first + tl.arange(0, BLOCK_N)
        key = load_rows(key_ptr, numbered(position, WIDE), k_strides[1], len_k, d, D)
        value = load_rows(value_ptr, numbered(position, WIDE), v_strides[1], len_k, d, D)
        state = forward_tile(
            state,
            query,
            key,
            value,
            visible(row, position, len_q, len_k, CAUSAL),
            start + row,
            position,
            head,
            scale,
            softcap,
            dropout,
            SOFTCAP,
            DROPOUT,
            PRECISION,
        )
    output, lse = finish(state, keyless(row, len_q, len_k, CAUSAL), dropout, DROPOUT)
    output_ptr = first_of(output_ptr, start, sequence, inner, head, o_strides, AXIAL)
    store_rows(output_ptr, numbered(row, WIDE), o_strides[1], len_q, d, D, output)
    tl.store(lse_ptr + head * rows + start + row, lse, mask=row < len_q)


@triton.jit(do_not_specialize=["rows"])
def row_dots(
    output_ptr,
    grad_ptr,
    delta_ptr,
    o_strides,
    rows,
    D,
    length,
    inner,
    AXIAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """delta[head, row] = output . grad, which both passes of backward subtract."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    if AXIAL:
        sequence = row // length
        address = (sequence // inner) * o_strides[0] + (sequence % inner) * o_strides[2] + row % length * o_strides[1]
    else:
        address = row * o_strides[1]
    address = address[:, None] + head * o_strides[3] + d[None, :]
    mask = (row < rows)[:, None] & (d < D)[None, :]
    output = tl.load(output_ptr + address, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + address, mask=mask, other=0.0).to(tl.float32)
    tl.store(delta_ptr + head * rows + row, tl.sum(output * grad, axis=1), mask=row < rows)


@triton.jit(do_not_specialize=["sequences", "tiles", "rows", "rows_k", "threshold", "factor"])
def stream_backward_keys(
    query_ptr, key_ptr, value_ptr, grad_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    offsets_ptr, offsets_k_ptr, order_ptr,
    q_strides, k_strides, v_strides, o_strides, dk_strides,
    sequences, heads, tiles, rows, rows_k, D, length, inner,
    scale, softcap, seed_ptr, threshold, factor,
    AXIAL: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    slot, sequence, head, tile = _work(order_ptr, heads, tiles)
    dropout = philox_key(seed_ptr, DROPOUT), threshold, factor
    d = tl.arange(0, BLOCK_D)
    if not AXIAL:
        part, parts = slot * tiles + tile, sequences * tiles
        zero_tail(dk_ptr, offsets_k_ptr, head, part, parts, sequences, rows_k, dk_strides, d, D, BLOCK_N)
        zero_tail(dv_ptr, offsets_k_ptr, head, part, parts, sequences, rows_k, dk_strides, d, D, BLOCK_N)
    start_k, len_k = extent(offsets_k_ptr, sequence, length, AXIAL)
    if tile * BLOCK_N >= len_k:
        return
    start, len_q = extent(offsets_ptr, sequence, length, AXIAL)
    query_ptr = first_of(query_ptr, start, sequence, inner, head, q_strides, AXIAL)
    grad_ptr = first_of(grad_ptr, start, sequence, inner, head, o_strides, AXIAL)
    position = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    key_ptr = first_of(key_ptr, start_k, sequence, inner, head, k_strides, AXIAL)
    value_ptr = first_of(value_ptr, start_k, sequence, inner, head, v_strides, AXIAL)
    key = load_rows(key_ptr, numbered(position, WIDE), k_strides[1], len_k, d, D)
    value = load_rows(value_ptr, numbered(position, WIDE), v_strides[1], len_k, d, D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    begin = tl.maximum(tile * BLOCK_N - (len_k - len_q), 0) // BLOCK_M * BLOCK_M if CAUSAL else 0
    for first in tl.range(begin, len_q, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        query = load_rows(query_ptr, numbered(row, WIDE), q_strides[1], len_q, d, D)
        grad = load_rows(grad_ptr, numbered(row, WIDE), o_strides[1], len_q, d, D)
        lse = tl.load(lse_ptr + head * rows + start + row, mask=row < len_q, other=float("inf"))
        delta = tl.load(delta_ptr + head * rows + start + row, mask=row < len_q, other=0.0)
        used, logit_grad = backward_tile(
            query,
            key,
            value,
            grad,
            lse,
            delta,
            visible(row, position, len_q, len_k, CAUSAL),
            start + row,
            position,
            head,
            scale,
            softcap,
            dropout,
            SOFTCAP,
            DROPOUT,
            PRECISION,
        )
        dv = tl.dot(tl.trans(used), grad, dv, input_precision=PRECISION)
        dk = tl.dot(tl.trans(logit_grad), query, dk, input_precision=PRECISION)
    dk_ptr = first_of(dk_ptr, start_k, sequence, inner, head, dk_strides, AXIAL)
    dv_ptr = first_of(dv_ptr, start_k, sequence, inner, head, dk_strides, AXIAL)
    store_rows(dk_ptr, numbered(position, WIDE), dk_strides[1], len_k, d, D, dk * scale)
    store_rows(dv_ptr, numbered(position, WIDE), dk_strides[1], len_k, d, D, dv)


@triton.jit(do_not_specialize=["sequences", "tiles", "rows", "threshold", "factor"])
def stream_backward_queries(
    query_ptr, key_ptr, value_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr,
    offsets_ptr, offsets_k_ptr, order_ptr,
    q_strides, k_strides, v_strides, o_strides, dq_strides,
    sequences, heads, tiles, rows, D, length, inner,
    scale, softcap, seed_ptr, threshold, factor,
    AXIAL: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    slot, sequence, head, tile = _work(order_ptr, heads, tiles)
    dropout = philox_key(seed_ptr, DROPOUT), threshold, factor
    d = tl.arange(0, BLOCK_D)
    if not AXIAL:
        part, parts = slot * tiles + tile, sequences * tiles
        zero_tail(dq_ptr, offsets_ptr, head, part, parts, sequences, rows, dq_strides, d, D, BLOCK_M)
    start, len_q = extent(offsets_ptr, sequence, length, AXIAL)
    if tile * BLOCK_M >= len_q:
        return
    start_k, len_k = extent(offsets_k_ptr, sequence, length, AXIAL)
    key_ptr = first_of(key_ptr, start_k, sequence, inner, head, k_strides, AXIAL)
    value_ptr = first_of(value_ptr, start_k, sequence, inner, head, v_strides, AXIAL)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query_ptr = first_of(query_ptr, start, sequence, inner, head, q_strides, AXIAL)
    grad_ptr = first_of(grad_ptr, start, sequence, inner, head, o_strides, AXIAL)
    query = load_rows(query_ptr, numbered(row, WIDE), q_strides[1], len_q, d, D)
    grad = load_rows(grad_ptr, numbered(row, WIDE), o_strides[1], len_q, d, D)
    lse = tl.load(lse_ptr + head * rows + start + row, mask=row < len_q, other=float("inf"))
    delta = tl.load(delta_ptr + head * rows + start + row, mask=row < len_q, other=0.0)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    end = tl.minimum(len_k, (tile + 1) * BLOCK_M + len_k - len_q) if CAUSAL else len_k
    for first in tl.range(0, end, BLOCK_N):
        position = first + tl.arange(0, BLOCK_N)
        key = load_rows(key_ptr, numbered(position, WIDE), k_strides[1], len_k, d, D)
        value = load_rows(value_ptr, numbered(position, WIDE), v_strides[1], len_k, d, D)
        logit_grad = backward_tile(
            query,
            key,
            value,
            grad,
            lse,
            delta,
            visible(row, position, len_q, len_k, CAUSAL),
            start + row,
            position,
            head,
            scale,
            softcap,
            dropout,
            SOFTCAP,
            DROPOUT,
            PRECISION,
        )[1]
        dq = tl.dot(logit_grad, key, dq, input_precision=PRECISION)
    dq_ptr = first_of(dq_ptr, start, sequence, inner, head, dq_strides, AXIAL)
    store_rows(dq_ptr, numbered(row, WIDE), dq_strides[1], len_q, d, D, dq * scale)
