"""The short regime: keys and values, or in backward queries, of one sequence and head stay on chip. No dropout: its
random numbers would take the registers.

Forward keeps tiles of BLOCK_N keys as a tuple, so that 168 rows cost three tiles of 64 and not 256 rows. Addresses
within a sequence are 32-bit.
"""

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
    seen,
    store_rows,
    visible,
    zero_backward_tails,
    zero_forward_tail,
)


@triton.jit(do_not_specialize=["sequences", "rows"])
def resident_forward(
    query_ptr, key_ptr, value_ptr, output_ptr, lse_ptr, offsets_ptr, offsets_k_ptr, order_ptr,
    q_strides, k_strides, v_strides, o_strides, sequences, heads, rows, D, length, inner,
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
    key_ptr = first_of(key_ptr, start_k, sequence, inner, head, k_strides, AXIAL)
    value_ptr = first_of(value_ptr, start_k, sequence, inner, head, v_strides, AXIAL)
    query_ptr = first_of(query_ptr, start, sequence, inner, head, q_strides, AXIAL)
    output_ptr = first_of(output_ptr, start, sequence, inner, head, o_strides, AXIAL)
    lane = tl.arange(0, BLOCK_N)
    keys, values = (), ()
    for tile in tl.static_range(TILES):
        keys = keys + (load_rows(key_ptr, tile * BLOCK_N + lane, k_strides[1], len_k, d, D),)
        values = values + (load_rows(value_ptr, tile * BLOCK_N + lane, v_strides[1], len_k, d, D),)
    for first in tl.range(0, len_q, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        query = load_rows(query_ptr, row, q_strides[1], len_q, d, D)
        state = empty_state(BLOCK_M, BLOCK_D)
        for tile in tl.static_range(TILES):
            position = tile * BLOCK_N + lane
            mask = visible(row, position, len_q, len_k, CAUSAL)
            state = forward_tile(
                state,
                query,
                keys[tile],
                values[tile],
                mask,
                start + row,
                position,
                head,
                scale,
                softcap,
                0,
                SOFTCAP,
                False,
                PRECISION,
            )
        output, lse = finish(state, keyless(row, len_q, len_k, CAUSAL), 0, False)
        store_rows(output_ptr, row, o_strides[1], len_q, d, D, output)
        tl.store(lse_ptr + head * rows + start + row, lse, mask=row < len_q)


@triton.jit(do_not_specialize=["sequences", "rows", "rows_k"])
def resident_backward(
    query_ptr, key_ptr, value_ptr, output_ptr, grad_ptr, lse_ptr, dq_ptr, dk_ptr, dv_ptr,
    offsets_ptr, offsets_k_ptr, order_ptr,
    q_strides, k_strides, v_strides, o_strides, dq_strides, dk_strides,
    sequences, heads, rows, rows_k, D, length, inner,
    scale, softcap,
    AXIAL: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Return all three gradients in one pass: the BLOCK_M >= length queries stay, keys pass by; no sum crosses
    programs."""
    slot = tl.program_id(0) // heads
    head = (tl.program_id(0) % heads).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    sequence = slot if order_ptr is None else tl.load(order_ptr + slot)
    if not AXIAL:
        zero_backward_tails(
            dq_ptr,
            dk_ptr,
            dv_ptr,
            offsets_ptr,
            offsets_k_ptr,
            head,
            slot,
            sequences,
            sequences,
            rows,
            rows_k,
            dq_strides,
            dk_strides,
            d,
            D,
            BLOCK_N,
        )
    start, len_q = extent(offsets_ptr, sequence, length, AXIAL)
    start_k, len_k = extent(offsets_k_ptr, sequence, length, AXIAL)
    key_ptr = first_of(key_ptr, start_k, sequence, inner, head, k_strides, AXIAL)
    value_ptr = first_of(value_ptr, start_k, sequence, inner, head, v_strides, AXIAL)
    dk_ptr = first_of(dk_ptr, start_k, sequence, inner, head, dk_strides, AXIAL)
    dv_ptr = first_of(dv_ptr, start_k, sequence, inner, head, dk_strides, AXIAL)
    row = tl.arange(0, BLOCK_M)
    grad_ptr = first_of(grad_ptr, start, sequence, inner, head, o_strides, AXIAL)
    grad = load_rows(grad_ptr, row, o_strides[1], len_q, d, D)
    output_ptr = first_of(output_ptr, start, sequence, inner, head, o_strides, AXIAL)
    output = load_rows(output_ptr, row, o_strides[1], len_q, d, D)
    delta = tl.sum(output.to(tl.float32) * grad.to(tl.float32), axis=1)
    query_ptr = first_of(query_ptr, start, sequence, inner, head, q_strides, AXIAL)
    query = load_rows(query_ptr, row, q_strides[1], len_q, d, D)
    lse = tl.load(lse_ptr + head * rows + start + row, mask=row < len_q, other=float("inf"))
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in tl.range(0, len_k, BLOCK_N):
        position = first + tl.arange(0, BLOCK_N)
        key = load_rows(key_ptr, position, k_strides[1], len_k, d, D)
        value = load_rows(value_ptr, position, v_strides[1], len_k, d, D)
        used, logit_grad = backward_tile(
            query,
            key,
            value,
            grad,
            lse,
            delta,
            seen(row, position, len_q, len_k, CAUSAL),
            start + row,
            position,
            head,
            scale,
            softcap,
            0,
            SOFTCAP,
            False,
            PRECISION,
        )
        dv = tl.dot(tl.trans(used), grad, input_precision=PRECISION)
        store_rows(dv_ptr, position, dk_strides[1], len_k, d, D, dv)
        dk = tl.dot(tl.trans(logit_grad), query, input_precision=PRECISION)
        store_rows(dk_ptr, position, dk_strides[1], len_k, d, D, dk * scale)
        dq = tl.dot(logit_grad, key, dq, input_precision=PRECISION)
    dq_ptr = first_of(dq_ptr, start, sequence, inner, head, dq_strides, AXIAL)
    store_rows(dq_ptr, row, dq_strides[1], len_q, d, D, dq * scale)
