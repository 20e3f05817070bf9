"""The long regime: keys pass by a tile of queries, queries by a tile of keys. Backward is two ordered passes.

Tiles of logits that all exist are computed without a mask; those that the end of a sequence or the diagonal cuts come
after them in a loop of their own: `for CUT in tl.static_range(...)` writes both loops at once. Products of float32,
which no tensor core can do, take so many instructions and registers that a mask is cheap and a second loop is not:
ALL_CUT.
"""

# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
import triton
import triton.language as tl

from .common import (
    answering,
    empty_state,
    extent,
    finish,
    first_of,
    forward_tile,
    keyless,
    load_rows,
    load_whole,
    logit_gradient,
    numbered,
    philox_key,
    seen,
    store_rows,
    zero_forward_tail,
    zero_tail,
)


@triton.jit
def _work(order_ptr, heads, tiles):
    """Return this program's slot, sequence, head and tile: tiles of one sequence and head run side by side."""
    slot = tl.program_id(0) // (heads * tiles)
    sequence = slot if order_ptr is None else tl.load(order_ptr + slot)
    return slot, sequence, (tl.program_id(0) // tiles % heads).to(tl.int64), tl.program_id(0) % tiles


@triton.jit
def _keys_of(
    tile, aligned, len_k, CAUSAL: tl.constexpr, ALL_CUT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Return how many keys in whole tiles all queries of a tile see, and how many any of them sees."""
    by_first, by_last = len_k, len_k
    if CAUSAL:
        ahead = len_k - aligned
        by_first = tl.minimum(len_k, tl.maximum(tile * BLOCK_M + 1 + ahead, 0))
        by_last = tl.minimum(len_k, (tile + 1) * BLOCK_M + ahead)
    return 0 if ALL_CUT else by_first // BLOCK_N * BLOCK_N, by_last


@triton.jit
def _load(first_ptr, row, stride_row, length, d, D: tl.constexpr, CUT: tl.constexpr, WIDE: tl.constexpr):
    if CUT:
        return load_rows(first_ptr, numbered(row, WIDE), stride_row, length, d, D)
    else:
        return load_whole(first_ptr, numbered(row, WIDE), stride_row, d, D)


@triton.jit
def _load_numbers(first_ptr, row, length, CUT: tl.constexpr):
    if CUT:
        return tl.load(first_ptr + row, mask=row < length, other=0.0)
    else:
        return tl.load(first_ptr + row)


@triton.jit(do_not_specialize=["sequences", "tiles", "rows", "threshold", "factor"])
def stream_forward(
    query_ptr, key_ptr, value_ptr, output_ptr, lse_ptr, offsets_ptr, offsets_k_ptr, key_lengths_ptr, order_ptr,
    q_strides, k_strides, v_strides, o_strides, sequences, heads, tiles, rows, D: tl.constexpr, length, inner,
    scale, softcap, seed_ptr, threshold, factor,
    AXIAL: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    slot, sequence, head, tile = _work(order_ptr, heads, tiles)
    ALL_CUT: tl.constexpr = query_ptr.dtype.element_ty == tl.float32
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
    len_k, aligned = answering(key_lengths_ptr, sequence, len_q, len_k)
    key_ptr = first_of(key_ptr, start_k, sequence, inner, head, k_strides, AXIAL, D)
    value_ptr = first_of(value_ptr, start_k, sequence, inner, head, v_strides, AXIAL, D)
    query_ptr = first_of(query_ptr, start, sequence, inner, head, q_strides, AXIAL, D)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query = load_rows(query_ptr, numbered(row, WIDE), q_strides[1], len_q, d, D)
    state = empty_state(BLOCK_M, BLOCK_D)
    whole, end = _keys_of(tile, aligned, len_k, CAUSAL, ALL_CUT, BLOCK_M, BLOCK_N)
    for CUT in tl.static_range(1 if ALL_CUT else 0, 2):
        for first in tl.range(whole if CUT else 0, end if CUT else whole, BLOCK_N):
            position = first + tl.arange(0, BLOCK_N)
            key = _load(key_ptr, position, k_strides[1], len_k, d, D, CUT, WIDE)
            value = _load(value_ptr, position, v_strides[1], len_k, d, D, CUT, WIDE)
            state = forward_tile(
                state,
                query,
                key,
                value,
                seen(row, position, aligned, len_k, CAUSAL) if CUT else None,
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
    output, lse = finish(state, keyless(row, aligned, len_k, CAUSAL), dropout, DROPOUT)
    output_ptr = first_of(output_ptr, start, sequence, inner, head, o_strides, AXIAL, D)
    store_rows(output_ptr, numbered(row, WIDE), o_strides[1], len_q, d, D, output)
    tl.store(lse_ptr + head * rows + start + row, lse, mask=row < len_q)


@triton.jit(do_not_specialize=["sequences", "tiles", "rows", "threshold", "factor"])
def stream_backward_queries(
    query_ptr, key_ptr, value_ptr, output_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr,
    offsets_ptr, offsets_k_ptr, key_lengths_ptr, order_ptr,
    q_strides, k_strides, v_strides, o_strides, dq_strides,
    sequences, heads, tiles, rows, D: tl.constexpr, length, inner,
    scale, softcap, seed_ptr, threshold, factor,
    AXIAL: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write delta[head, row] = output . grad too, which `stream_backward_keys` subtracts after it."""
    slot, sequence, head, tile = _work(order_ptr, heads, tiles)
    ALL_CUT: tl.constexpr = query_ptr.dtype.element_ty == tl.float32
    dropout = philox_key(seed_ptr, DROPOUT), threshold, factor
    d = tl.arange(0, BLOCK_D)
    if not AXIAL:
        part, parts = slot * tiles + tile, sequences * tiles
        zero_tail(dq_ptr, offsets_ptr, head, part, parts, sequences, rows, dq_strides, d, D, BLOCK_M)
    start, len_q = extent(offsets_ptr, sequence, length, AXIAL)
    if tile * BLOCK_M >= len_q:
        return
    start_k, len_k = extent(offsets_k_ptr, sequence, length, AXIAL)
    len_k, aligned = answering(key_lengths_ptr, sequence, len_q, len_k)
    key_ptr = first_of(key_ptr, start_k, sequence, inner, head, k_strides, AXIAL, D)
    value_ptr = first_of(value_ptr, start_k, sequence, inner, head, v_strides, AXIAL, D)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    query_ptr = first_of(query_ptr, start, sequence, inner, head, q_strides, AXIAL, D)
    grad_ptr = first_of(grad_ptr, start, sequence, inner, head, o_strides, AXIAL, D)
    grad = load_rows(grad_ptr, numbered(row, WIDE), o_strides[1], len_q, d, D)
    output_ptr = first_of(output_ptr, start, sequence, inner, head, o_strides, AXIAL, D)
    output = load_rows(output_ptr, numbered(row, WIDE), o_strides[1], len_q, d, D)
    delta = tl.sum(output.to(tl.float32) * grad.to(tl.float32), axis=1)
    tl.store(delta_ptr + head * rows + start + row, delta, mask=row < len_q)
    if ALL_CUT:
        # Loaded anew behind a barrier: the compiler would sum, and keep the rows, in the registers of the products.
        tl.debug_barrier()
        delta = tl.load(delta_ptr + head * rows + start + row, mask=row < len_q, other=0.0)
        grad = load_rows(grad_ptr, numbered(row, WIDE), o_strides[1], len_q, d, D)
    query = load_rows(query_ptr, numbered(row, WIDE), q_strides[1], len_q, d, D)
    lse = tl.load(lse_ptr + head * rows + start + row, mask=row < len_q, other=float("inf"))
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    whole, end = _keys_of(tile, aligned, len_k, CAUSAL, ALL_CUT, BLOCK_M, BLOCK_N)
    for CUT in tl.static_range(1 if ALL_CUT else 0, 2):
        for first in tl.range(whole if CUT else 0, end if CUT else whole, BLOCK_N):
            position = first + tl.arange(0, BLOCK_N)
            key = _load(key_ptr, position, k_strides[1], len_k, d, D, CUT, WIDE)
            value = _load(value_ptr, position, v_strides[1], len_k, d, D, CUT, WIDE)
            logit_grad = logit_gradient(
                query,
                key,
                grad,
                value,
                lse[:, None],
                delta[:, None],
                seen(row, position, aligned, len_k, CAUSAL) if CUT else None,
                start + row[:, None],
                position[None, :],
                head,
                scale,
                softcap,
                dropout,
                SOFTCAP,
                DROPOUT,
                PRECISION,
            )[1]
            dq = tl.dot(logit_grad, key, dq, input_precision=PRECISION)
    dq_ptr = first_of(dq_ptr, start, sequence, inner, head, dq_strides, AXIAL, D)
    store_rows(dq_ptr, numbered(row, WIDE), dq_strides[1], len_q, d, D, dq * scale)


@triton.jit(do_not_specialize=["sequences", "tiles", "rows", "rows_k", "threshold", "factor"])
def stream_backward_keys(
    query_ptr, key_ptr, value_ptr, grad_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    offsets_ptr, offsets_k_ptr, key_lengths_ptr, order_ptr,
    q_strides, k_strides, v_strides, o_strides, dk_strides,
    sequences, heads, tiles, rows, rows_k, D: tl.constexpr, length, inner,
    scale, softcap, seed_ptr, threshold, factor,
    AXIAL: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute logits transposed, [keys, queries]: weights and gradients of logits are left operands as they stand.

    Keys that do not exist need no mask: what they gather is not stored, and of those that do not answer it is cleared.
    """
    slot, sequence, head, tile = _work(order_ptr, heads, tiles)
    ALL_CUT: tl.constexpr = query_ptr.dtype.element_ty == tl.float32
    dropout = philox_key(seed_ptr, DROPOUT), threshold, factor
    d = tl.arange(0, BLOCK_D)
    if not AXIAL:
        part, parts = slot * tiles + tile, sequences * tiles
        zero_tail(dk_ptr, offsets_k_ptr, head, part, parts, sequences, rows_k, dk_strides, d, D, BLOCK_N)
        zero_tail(dv_ptr, offsets_k_ptr, head, part, parts, sequences, rows_k, dk_strides, d, D, BLOCK_N)
    start_k, rows_of_keys = extent(offsets_k_ptr, sequence, length, AXIAL)
    if tile * BLOCK_N >= rows_of_keys:
        return
    start, len_q = extent(offsets_ptr, sequence, length, AXIAL)
    len_k, aligned = answering(key_lengths_ptr, sequence, len_q, rows_of_keys)
    query_ptr = first_of(query_ptr, start, sequence, inner, head, q_strides, AXIAL, D)
    grad_ptr = first_of(grad_ptr, start, sequence, inner, head, o_strides, AXIAL, D)
    position = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    key_ptr = first_of(key_ptr, start_k, sequence, inner, head, k_strides, AXIAL, D)
    value_ptr = first_of(value_ptr, start_k, sequence, inner, head, v_strides, AXIAL, D)
    key = load_rows(key_ptr, numbered(position, WIDE), k_strides[1], len_k, d, D)
    value = load_rows(value_ptr, numbered(position, WIDE), v_strides[1], len_k, d, D)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    # Queries see the keys up to their own row plus `ahead`. From `begin` on come `cut` tiles of them through which the
    # diagonal runs, then those that see the whole tile of keys, of which the `last` may be cut by the end.
    ahead = len_k - aligned
    begin, cut = 0, 0
    if CAUSAL:
        begin = tl.maximum(tile * BLOCK_N - ahead, 0) // BLOCK_M * BLOCK_M
        cut = tl.cdiv(tl.minimum(tl.maximum((tile + 1) * BLOCK_N - 1 - ahead, 0), len_q) - begin, BLOCK_M)
    if ALL_CUT:
        cut = tl.cdiv(len_q - begin, BLOCK_M)
    whole = begin + cut * BLOCK_M
    last = tl.maximum(whole, len_q // BLOCK_M * BLOCK_M)
    tiles_cut = cut + tl.where(last < len_q, 1, 0)
    for CUT in tl.static_range(1 if ALL_CUT else 0, 2):
        for number in tl.range(0, tiles_cut if CUT else (last - whole) // BLOCK_M):
            if CUT:
                first = tl.where(number < cut, begin + number * BLOCK_M, last)
            else:
                first = whole + number * BLOCK_M
            row = first + tl.arange(0, BLOCK_M)
            query = _load(query_ptr, row, q_strides[1], len_q, d, D, CUT, WIDE)
            grad = _load(grad_ptr, row, o_strides[1], len_q, d, D, CUT, WIDE)
            # Rows that do not exist add zero: their query and gradient are zero, their weights 1.
            lse = _load_numbers(lse_ptr + head * rows + start, row, len_q, CUT)
            delta = _load_numbers(delta_ptr + head * rows + start, row, len_q, CUT)
            used, logit_grad = logit_gradient(
                key,
                query,
                value,
                grad,
                lse[None, :],
                delta[None, :],
                position[:, None] <= row[None, :] + ahead if CUT and CAUSAL else None,
                start + row[None, :],
                position[:, None],
                head,
                scale,
                softcap,
                dropout,
                SOFTCAP,
                DROPOUT,
                PRECISION,
            )
            dv = tl.dot(used, grad, dv, input_precision=PRECISION)
            dk = tl.dot(logit_grad, query, dk, input_precision=PRECISION)
    if key_lengths_ptr is not None:
        dk = tl.where((position < len_k)[:, None], dk, 0.0)
        dv = tl.where((position < len_k)[:, None], dv, 0.0)
    dk_ptr = first_of(dk_ptr, start_k, sequence, inner, head, dk_strides, AXIAL, D)
    dv_ptr = first_of(dv_ptr, start_k, sequence, inner, head, dk_strides, AXIAL, D)
    store_rows(dk_ptr, numbered(position, WIDE), dk_strides[1], rows_of_keys, d, D, dk * scale)
    store_rows(dv_ptr, numbered(position, WIDE), dk_strides[1], rows_of_keys, d, D, dv)
