"""The short regime: one side of a sequence and head, its keys and values or in backward also its queries, stays on
chip. No dropout: its random numbers would take the registers.

What stays is a tuple of tiles, so that 168 rows cost three tiles of 64 and not 256 rows. Addresses within a sequence
are 32-bit.
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
    logit_gradient,
    seen,
    store_rows,
    zero_forward_tail,
    zero_tail,
)


@triton.jit(do_not_specialize=["sequences", "rows"])
def resident_forward(
    query_ptr, key_ptr, value_ptr, output_ptr, lse_ptr, offsets_ptr, offsets_k_ptr, key_lengths_ptr, order_ptr,
    q_strides, k_strides, v_strides, o_strides, sequences, heads, rows, D: tl.constexpr, length, inner,
    scale, softcap,
    AXIAL: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    TILES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0) // heads
    head = (tl.program_id(0) % heads).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    sequence = slot if order_ptr is None else tl.load(order_ptr + slot)
    if not AXIAL:
        zero_forward_tail(
            output_ptr, lse_ptr, offsets_ptr, head, slot, sequences, sequences, rows, o_strides, d, D, BLOCK_M
        )
    start, len_q = extent(offsets_ptr, sequence, length, AXIAL)
    start_k, len_k = extent(offsets_k_ptr, sequence, length, AXIAL)
    len_k, aligned = answering(key_lengths_ptr, sequence, len_q, len_k)
    key_ptr = first_of(key_ptr, start_k, sequence, inner, head, k_strides, AXIAL, D)
    value_ptr = first_of(value_ptr, start_k, sequence, inner, head, v_strides, AXIAL, D)
    query_ptr = first_of(query_ptr, start, sequence, inner, head, q_strides, AXIAL, D)
    output_ptr = first_of(output_ptr, start, sequence, inner, head, o_strides, AXIAL, D)
    # The end of the sequence cuts the last tile alone; those before it are whole, or not there.
    last = tl.minimum(len_k // BLOCK_N, TILES - 1) * BLOCK_N
    lane = tl.arange(0, BLOCK_N)
    keys, values = (), ()
    for tile in tl.static_range(TILES):
        position = (last if tile == TILES - 1 else tile * BLOCK_N) + lane
        keys = keys + (load_rows(key_ptr, position, k_strides[1], len_k, d, D),)
        values = values + (load_rows(value_ptr, position, v_strides[1], len_k, d, D),)
    for first in tl.range(0, len_q, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        query = load_rows(query_ptr, row, q_strides[1], len_q, d, D)
        state = empty_state(BLOCK_M, BLOCK_D)
        for tile in tl.static_range(TILES):
            position = (last if tile == TILES - 1 else tile * BLOCK_N) + lane
            if tile * BLOCK_N < (last if tile < TILES - 1 else TILES * BLOCK_N):
                state = forward_tile(
                    state,
                    query,
                    keys[tile],
                    values[tile],
                    seen(row, position, aligned, len_k, CAUSAL) if CAUSAL or tile == TILES - 1 else None,
                    row,
                    position,
                    0,
                    scale,
                    softcap,
                    0,
                    SOFTCAP,
                    False,
                    PRECISION,
                )
        output, lse = finish(state, keyless(row, aligned, len_k, CAUSAL), 0, False)
        store_rows(output_ptr, row, o_strides[1], len_q, d, D, output)
        tl.store(lse_ptr + head * rows + start + row, lse, mask=row < len_q)


@triton.jit
def _backward_of_keys(
    query_ptr, key_ptr, value_ptr, output_ptr, grad_ptr, lse_ptr, scratch_ptr, dk_ptr, dv_ptr,
    q_row, k_row, v_row, o_row, dk_row, len_q, len_k, rows_of_keys, aligned, D: tl.constexpr, scale, softcap,
    KEY_LENGTHS: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    TILES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_STAYING: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a sequence's keys and values for one head, BLOCK rows at a time; its queries stay, as
    TILES tiles.

    All pointers are to the first value of the sequence and head, `*_row` are strides of rows. `scratch_ptr` is room for
    the log-sum-exp of each query, and for the product of its output and gradient: they are needed along a
    tile's rows when these are summed, along its columns later, and there without masks.
    """
    d = tl.arange(0, BLOCK_D)
    lane = tl.arange(0, BLOCK_STAYING)
    queries, grads = (), ()
    for tile in tl.static_range(TILES):
        row = tile * BLOCK_STAYING + lane
        grad = load_rows(grad_ptr, row, o_row, len_q, d, D)
        output = load_rows(output_ptr, row, o_row, len_q, d, D)
        # Queries that do not exist are silent: their weights are exp2(-inf).
        tl.store(scratch_ptr + row, tl.load(lse_ptr + row, mask=row < len_q, other=float("inf")))
        tl.store(scratch_ptr + TILES * BLOCK_STAYING + row, tl.sum(output.to(tl.float32) * grad.to(tl.float32), axis=1))
        queries = queries + (load_rows(query_ptr, row, q_row, len_q, d, D),)
        grads = grads + (grad,)
    tl.debug_barrier()
    # Without queries keys and values are taken for zeros: zero times what they hold need not be zero.
    asked = tl.where(len_q > 0, len_k, 0)
    for first in tl.range(0, rows_of_keys, BLOCK):
        position = first + tl.arange(0, BLOCK)
        key = load_rows(key_ptr, position, k_row, asked, d, D)
        value = load_rows(value_ptr, position, v_row, asked, d, D)
        dk = tl.zeros([BLOCK, BLOCK_D], tl.float32)
        dv = tl.zeros([BLOCK, BLOCK_D], tl.float32)
        for tile in tl.static_range(TILES):
            row = tile * BLOCK_STAYING + lane
            lse = tl.load(scratch_ptr + row)
            delta = tl.load(scratch_ptr + TILES * BLOCK_STAYING + row)
            weights, logit_grad = logit_gradient(
                key,
                queries[tile],
                value,
                grads[tile],
                lse[None, :],
                delta[None, :],
                position[:, None] <= row[None, :] + (len_k - aligned) if CAUSAL else None,
                row[None, :],
                position[:, None],
                0,
                scale,
                softcap,
                0,
                SOFTCAP,
                False,
                PRECISION,
            )
            dv = tl.dot(weights, grads[tile], dv, input_precision=PRECISION)
            dk = tl.dot(logit_grad, queries[tile], dk, input_precision=PRECISION)
        if KEY_LENGTHS:
            dk = tl.where((position < len_k)[:, None], dk, 0.0)
            dv = tl.where((position < len_k)[:, None], dv, 0.0)
        store_rows(dk_ptr, position, dk_row, rows_of_keys, d, D, dk * scale)
        store_rows(dv_ptr, position, dk_row, rows_of_keys, d, D, dv)


@triton.jit
def _backward_of_queries(
    query_ptr, key_ptr, value_ptr, output_ptr, grad_ptr, lse_ptr, dq_ptr,
    q_row, k_row, v_row, o_row, dq_row, len_q, len_k, aligned, D: tl.constexpr, scale, softcap,
    CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    TILES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_STAYING: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a sequence's queries for one head, BLOCK rows at a time; its keys and values stay, as
    TILES tiles."""
    d = tl.arange(0, BLOCK_D)
    lane = tl.arange(0, BLOCK_STAYING)
    # As in forward; a causal mask, which all tiles have, clears those that are not there.
    last = (TILES - 1) * BLOCK_STAYING
    if not CAUSAL:
        last = tl.minimum(len_k // BLOCK_STAYING, TILES - 1) * BLOCK_STAYING
    keys, values = (), ()
    for tile in tl.static_range(TILES):
        position = (last if tile == TILES - 1 else tile * BLOCK_STAYING) + lane
        keys = keys + (load_rows(key_ptr, position, k_row, len_k, d, D),)
        values = values + (load_rows(value_ptr, position, v_row, len_k, d, D),)
    for first in tl.range(0, len_q, BLOCK):
        row = first + tl.arange(0, BLOCK)
        query = load_rows(query_ptr, row, q_row, len_q, d, D)
        grad = load_rows(grad_ptr, row, o_row, len_q, d, D)
        output = load_rows(output_ptr, row, o_row, len_q, d, D)
        delta = tl.sum(output.to(tl.float32) * grad.to(tl.float32), axis=1)
        lse = tl.load(lse_ptr + row, mask=row < len_q, other=float("inf"))
        dq = tl.zeros([BLOCK, BLOCK_D], tl.float32)
        for tile in tl.static_range(TILES):
            position = (last if tile == TILES - 1 else tile * BLOCK_STAYING) + lane
            if tile * BLOCK_STAYING < (last if tile < TILES - 1 else TILES * BLOCK_STAYING):
                logit_grad = logit_gradient(
                    query,
                    keys[tile],
                    grad,
                    values[tile],
                    lse[:, None],
                    delta[:, None],
                    seen(row, position, aligned, len_k, CAUSAL) if CAUSAL or tile == TILES - 1 else None,
                    row[:, None],
                    position[None, :],
                    0,
                    scale,
                    softcap,
                    0,
                    SOFTCAP,
                    False,
                    PRECISION,
                )[1]
                dq = tl.dot(logit_grad, keys[tile], dq, input_precision=PRECISION)
        store_rows(dq_ptr, row, dq_row, len_q, d, D, dq * scale)


@triton.jit(do_not_specialize=["sequences", "rows", "rows_k"])
def resident_backward(
    query_ptr, key_ptr, value_ptr, output_ptr, grad_ptr, lse_ptr, scratch_ptr, dq_ptr, dk_ptr, dv_ptr,
    offsets_ptr, offsets_k_ptr, key_lengths_ptr, order_ptr,
    q_strides, k_strides, v_strides, o_strides, dq_strides, dk_strides,
    sequences, heads, rows, rows_k, D: tl.constexpr, length, inner,
    scale, softcap,
    AXIAL: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    TILES: tl.constexpr, TILES_K: tl.constexpr, BLOCK: tl.constexpr, BLOCK_STAYING: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Two programs share a sequence and head, side by side: one has its keys and values, the other its queries.

    The logits are computed by both. No sum crosses programs, and none has the registers of all three gradients.
    """
    work = tl.program_id(0) // 2
    slot = work // heads
    head = (work % heads).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    sequence = slot if order_ptr is None else tl.load(order_ptr + slot)
    start, len_q = extent(offsets_ptr, sequence, length, AXIAL)
    start_k, rows_of_keys = extent(offsets_k_ptr, sequence, length, AXIAL)
    len_k, aligned = answering(key_lengths_ptr, sequence, len_q, rows_of_keys)
    key_ptr = first_of(key_ptr, start_k, sequence, inner, head, k_strides, AXIAL, D)
    value_ptr = first_of(value_ptr, start_k, sequence, inner, head, v_strides, AXIAL, D)
    query_ptr = first_of(query_ptr, start, sequence, inner, head, q_strides, AXIAL, D)
    output_ptr = first_of(output_ptr, start, sequence, inner, head, o_strides, AXIAL, D)
    grad_ptr = first_of(grad_ptr, start, sequence, inner, head, o_strides, AXIAL, D)
    lse_ptr += head * rows + start
    if tl.program_id(0) % 2 == 0:
        if not AXIAL:
            zero_tail(dk_ptr, offsets_k_ptr, head, slot, sequences, sequences, rows_k, dk_strides, d, D, BLOCK)
            zero_tail(dv_ptr, offsets_k_ptr, head, slot, sequences, sequences, rows_k, dk_strides, d, D, BLOCK)
        scratch_ptr += work.to(tl.int64) * (2 * TILES * BLOCK_STAYING)
        dk_ptr = first_of(dk_ptr, start_k, sequence, inner, head, dk_strides, AXIAL, D)
        dv_ptr = first_of(dv_ptr, start_k, sequence, inner, head, dk_strides, AXIAL, D)
        _backward_of_keys(
            query_ptr, key_ptr, value_ptr, output_ptr, grad_ptr, lse_ptr, scratch_ptr, dk_ptr, dv_ptr,
            q_strides[1], k_strides[1], v_strides[1], o_strides[1], dk_strides[1], len_q, len_k, rows_of_keys, aligned,
            D, scale, softcap, key_lengths_ptr is not None, CAUSAL, SOFTCAP, PRECISION,
            TILES, BLOCK, BLOCK_STAYING, BLOCK_D,
        )  # fmt: skip
    else:
        if not AXIAL:
            zero_tail(dq_ptr, offsets_ptr, head, slot, sequences, sequences, rows, dq_strides, d, D, BLOCK)
        dq_ptr = first_of(dq_ptr, start, sequence, inner, head, dq_strides, AXIAL, D)
        _backward_of_queries(
            query_ptr, key_ptr, value_ptr, output_ptr, grad_ptr, lse_ptr, dq_ptr,
            q_strides[1], k_strides[1], v_strides[1], o_strides[1], dq_strides[1], len_q, len_k, aligned, D, scale,
            softcap, CAUSAL, SOFTCAP, PRECISION, TILES_K, BLOCK, BLOCK_STAYING, BLOCK_D,
        )  # fmt: skip
