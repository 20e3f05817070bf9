"""The tiny regime: several sequences of one head share a tile under a block-diagonal mask."""

# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
import triton
import triton.language as tl

from .common import backward_tile, empty_state, finish, forward_tile, zero_tail, zero_tail_sums


@triton.jit
def _rows(
    offsets_ptr, first, group, sequences, length, AXIAL: tl.constexpr, GROUP_BLOCK: tl.constexpr, BLOCK: tl.constexpr
):
    """Of each row of the tile that holds sequences first .. first + group: its number among all rows, its sequence, its
    position there, how many rows are left there (itself included), and whether it exists."""
    lane = tl.arange(0, BLOCK)
    if AXIAL:
        sequence = first + lane // length
        exists = (lane // length < group) & (sequence < sequences)
        return first * length + lane, sequence, lane % length, length - lane % length, exists
    else:
        row = tl.load(offsets_ptr + first) + lane
        after = tl.minimum(first + group, sequences)
        # Where the sequences after the first begin; a row lies in as many of them as begin at or before it.
        bound = first + 1 + tl.arange(0, GROUP_BLOCK)
        begins = tl.load(offsets_ptr + bound, mask=bound < after, other=2147483647)[None, :]
        passed = begins <= row[:, None]
        begin = tl.maximum(tl.load(offsets_ptr + first), tl.max(tl.where(passed, begins, 0), axis=1))
        end = tl.load(offsets_ptr + after)
        next_begin = tl.minimum(end, tl.min(tl.where(passed, 2147483647, begins), axis=1))
        return row, first + tl.sum(passed.to(tl.int32), axis=1), row - begin, next_begin - row, row < end


@triton.jit
def _addresses(row, sequence, position, inner, head, strides, AXIAL: tl.constexpr):
    if AXIAL:
        in_grid = (sequence // inner).to(tl.int64) * strides[0] + (sequence % inner).to(tl.int64) * strides[2]
        return in_grid + position.to(tl.int64) * strides[1] + head * strides[3]
    else:
        return row.to(tl.int64) * strides[1] + head * strides[3]


@triton.jit
def _block_diagonal(sequence, left, exists, sequence_k, left_k, exists_k, CAUSAL: tl.constexpr):
    """bool [M, N]; with CAUSAL the last query of a sequence is aligned with its last key."""
    mask = (sequence[:, None] == sequence_k[None, :]) & exists[:, None] & exists_k[None, :]
    if CAUSAL:
        mask = mask & (left_k[None, :] >= left[:, None])
    return mask


@triton.jit
def _load(pointer, address, d, mask):
    return tl.load(pointer + address[:, None] + d[None, :], mask=mask, other=0.0)


@triton.jit
def _store(pointer, address, d, mask, values):
    tl.store(pointer + address[:, None] + d[None, :], values.to(pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["dropout"])
def tiny_forward(
    query_ptr, key_ptr, value_ptr, output_ptr, lse_ptr, offsets_ptr, offsets_k_ptr,
    q_strides, k_strides, v_strides, o_strides, sequences, heads, group, rows, D, length, inner,
    scale, softcap, dropout,
    AXIAL: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    GROUP_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) // heads
    first = part * group
    head = (tl.program_id(0) % heads).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    if not AXIAL:
        parts = tl.cdiv(sequences, group)
        tail_ptr = output_ptr + head * o_strides[3]
        zero_tail(tail_ptr, offsets_ptr, part, parts, sequences, rows, o_strides[1], d, D, BLOCK_M)
        zero_tail_sums(lse_ptr + head * rows, offsets_ptr, part, parts, sequences, rows, BLOCK_M)
    row, sequence, position, left, exists = _rows(
        offsets_ptr, first, group, sequences, length, AXIAL, GROUP_BLOCK, BLOCK_M
    )
    row_k, sequence_k, position_k, left_k, exists_k = _rows(
        offsets_k_ptr, first, group, sequences, length, AXIAL, GROUP_BLOCK, BLOCK_N
    )
    at_q = _addresses(row, sequence, position, inner, head, q_strides, AXIAL)
    at_k = _addresses(row_k, sequence_k, position_k, inner, head, k_strides, AXIAL)
    at_v = _addresses(row_k, sequence_k, position_k, inner, head, v_strides, AXIAL)
    at_o = _addresses(row, sequence, position, inner, head, o_strides, AXIAL)
    used, used_k = exists[:, None] & (d < D)[None, :], exists_k[:, None] & (d < D)[None, :]
    query = _load(query_ptr, at_q, d, used)
    key = _load(key_ptr, at_k, d, used_k)
    value = _load(value_ptr, at_v, d, used_k)
    mask = _block_diagonal(sequence, left, exists, sequence_k, left_k, exists_k, CAUSAL)
    # Rows stand for positions of several sequences: each pair's key position is that of its column.
    state = forward_tile(
        empty_state(BLOCK_M, BLOCK_D), query, key, value, mask, row, position_k, head, scale, softcap, dropout,
        SOFTCAP, DROPOUT, PRECISION,
    )  # fmt: skip
    output, lse = finish(state, dropout, DROPOUT)
    _store(output_ptr, at_o, d, used, output)
    tl.store(lse_ptr + head * rows + row, lse, mask=exists)


@triton.jit(do_not_specialize=["dropout"])
def tiny_backward(
    query_ptr, key_ptr, value_ptr, output_ptr, grad_ptr, lse_ptr, dq_ptr, dk_ptr, dv_ptr, offsets_ptr, offsets_k_ptr,
    q_strides, k_strides, v_strides, o_strides, dq_strides, dk_strides,
    sequences, heads, group, rows, rows_k, D, length, inner,
    scale, softcap, dropout,
    AXIAL: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    GROUP_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) // heads
    first = part * group
    head = (tl.program_id(0) % heads).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    if not AXIAL:
        parts = tl.cdiv(sequences, group)
        dq_tail, dk_tail, dv_tail = (
            dq_ptr + head * dq_strides[3], dk_ptr + head * dk_strides[3], dv_ptr + head * dk_strides[3]
        )  # fmt: skip
        zero_tail(dq_tail, offsets_ptr, part, parts, sequences, rows, dq_strides[1], d, D, BLOCK_M)
        zero_tail(dk_tail, offsets_k_ptr, part, parts, sequences, rows_k, dk_strides[1], d, D, BLOCK_N)
        zero_tail(dv_tail, offsets_k_ptr, part, parts, sequences, rows_k, dk_strides[1], d, D, BLOCK_N)
    row, sequence, position, left, exists = _rows(
        offsets_ptr, first, group, sequences, length, AXIAL, GROUP_BLOCK, BLOCK_M
    )
    row_k, sequence_k, position_k, left_k, exists_k = _rows(
        offsets_k_ptr, first, group, sequences, length, AXIAL, GROUP_BLOCK, BLOCK_N
    )
    at_q = _addresses(row, sequence, position, inner, head, q_strides, AXIAL)
    at_k = _addresses(row_k, sequence_k, position_k, inner, head, k_strides, AXIAL)
    at_v = _addresses(row_k, sequence_k, position_k, inner, head, v_strides, AXIAL)
    at_o = _addresses(row, sequence, position, inner, head, o_strides, AXIAL)
    at_dq = _addresses(row, sequence, position, inner, head, dq_strides, AXIAL)
    at_dk = _addresses(row_k, sequence_k, position_k, inner, head, dk_strides, AXIAL)
    used, used_k = exists[:, None] & (d < D)[None, :], exists_k[:, None] & (d < D)[None, :]
    query = _load(query_ptr, at_q, d, used)
    key = _load(key_ptr, at_k, d, used_k)
    value = _load(value_ptr, at_v, d, used_k)
    grad = _load(grad_ptr, at_o, d, used)
    output = _load(output_ptr, at_o, d, used)
    delta = tl.sum(output.to(tl.float32) * grad.to(tl.float32), axis=1)
    lse = tl.load(lse_ptr + head * rows + row, mask=exists, other=float("inf"))
    mask = _block_diagonal(sequence, left, exists, sequence_k, left_k, exists_k, CAUSAL)
    weights, logit_grad = backward_tile(
        query, key, value, grad, lse, delta, mask, row, position_k, head, scale, softcap, dropout,
        SOFTCAP, DROPOUT, PRECISION,
    )  # fmt: skip
    _store(dv_ptr, at_dk, d, used_k, tl.dot(tl.trans(weights), grad, input_precision=PRECISION))
    _store(dk_ptr, at_dk, d, used_k, tl.dot(tl.trans(logit_grad), query, input_precision=PRECISION) * scale)
    _store(dq_ptr, at_dq, d, used, tl.dot(logit_grad, key, input_precision=PRECISION) * scale)
