"""The tiny regime: several sequences of one head share a tile under a block-diagonal mask.

Products run over the whole tile, and zero times NaN is NaN. So that what is not finite stays in its own sequence, rows
with it enter them as zeros; queries who see one have a log-sum-exp of NaN, which makes their output and gradients NaN.
"""

# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
import triton
import triton.language as tl

from .common import (
    empty_state,
    finish,
    forward_tile,
    logit_gradient,
    philox_key,
    zero_backward_tails,
    zero_forward_tail,
)


@triton.jit
def _rows(
    offsets_ptr, first, group, sequences, length, AXIAL: tl.constexpr, GROUP_BLOCK: tl.constexpr, BLOCK: tl.constexpr
):
    """Describe each row of the tile that holds the sequences first .. first + group.

    Returns its number among all rows, its sequence, its position there, how many rows are left there (itself included),
    and whether it exists.
    """
    lane = tl.arange(0, BLOCK)
    if AXIAL:
        sequence = first + lane // length
        exists = (lane // length < group) & (sequence < sequences)
        return first.to(tl.int64) * length + lane, sequence, lane % length, length - lane % length, exists
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
def _places(pointer, rows, strides, inner, head, d, D, AXIAL: tl.constexpr):
    """Return pointers and mask [rows, BLOCK_D] of the rows that `_rows` describes."""
    row, sequence, position, _, exists = rows
    if AXIAL:
        address = (sequence // inner).to(tl.int64) * strides[0] + (sequence % inner).to(tl.int64) * strides[2]
        address += position.to(tl.int64) * strides[1]
    else:
        address = row.to(tl.int64) * strides[1]
    return pointer + (address + head * strides[3])[:, None] + d[None, :], exists[:, None] & (d < D)[None, :]


@triton.jit
def _load(pointer, rows, strides, inner, head, d, D, AXIAL: tl.constexpr):
    pointers, mask = _places(pointer, rows, strides, inner, head, d, D, AXIAL)
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _store(pointer, rows, strides, inner, head, d, D, values, AXIAL: tl.constexpr):
    pointers, mask = _places(pointer, rows, strides, inner, head, d, D, AXIAL)
    tl.store(pointers, values.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _block_diagonal(rows, rows_k, CAUSAL: tl.constexpr):
    """bool [M, N], True where a query and a key are of one sequence; CAUSAL aligns its last query with its last key."""
    _, sequence, _, left, exists = rows
    _, sequence_k, _, left_k, exists_k = rows_k
    mask = (sequence[:, None] == sequence_k[None, :]) & exists[:, None] & exists_k[None, :]
    if CAUSAL:
        mask = mask & (left_k[None, :] >= left[:, None])
    return mask


@triton.jit
def _is_finite(values):
    return tl.abs(values.to(tl.float32)) < float("inf")


@triton.jit
def _whole(values):
    """bool [rows], True where every value of a row is finite."""
    return tl.min(_is_finite(values).to(tl.int32), axis=1) > 0


@triton.jit
def _only(rows, mask):
    """Return rows as `_rows` describes them, of which only those of the mask still exist.

    Loading them again, the others as zeros, is cheaper than clearing the others in registers.
    """
    row, sequence, position, left, exists = rows
    return row, sequence, position, left, exists & mask


@triton.jit
def _answering(keys, key_lengths_ptr):
    """Return rows as `_rows` describes them, of which only keys that answer still exist."""
    if key_lengths_ptr is None:
        return keys
    else:
        return _only(keys, keys[2] < tl.load(key_lengths_ptr + keys[1], mask=keys[4], other=0))


@triton.jit(do_not_specialize=["sequences", "group", "rows", "threshold", "factor"])
def tiny_forward(
    query_ptr, key_ptr, value_ptr, output_ptr, lse_ptr, offsets_ptr, offsets_k_ptr, key_lengths_ptr,
    q_strides, k_strides, v_strides, o_strides, sequences, heads, group, rows, D, length, inner,
    scale, softcap, seed_ptr, threshold, factor,
    AXIAL: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    GROUP_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) // heads
    first = part * group
    head = (tl.program_id(0) % heads).to(tl.int64)
    dropout = philox_key(seed_ptr, DROPOUT), threshold, factor
    d = tl.arange(0, BLOCK_D)
    if not AXIAL:
        parts = tl.cdiv(sequences, group)
        zero_forward_tail(
            output_ptr, lse_ptr, offsets_ptr, head, part, parts, sequences, rows, o_strides, d, D, BLOCK_M
        )
    queries = _rows(offsets_ptr, first, group, sequences, length, AXIAL, GROUP_BLOCK, BLOCK_M)
    keys = _rows(offsets_k_ptr, first, group, sequences, length, AXIAL, GROUP_BLOCK, BLOCK_N)
    keys = _answering(keys, key_lengths_ptr)
    whole_query = _whole(_load(query_ptr, queries, q_strides, inner, head, d, D, AXIAL))
    whole = _whole(_load(key_ptr, keys, k_strides, inner, head, d, D, AXIAL))
    whole = whole & _whole(_load(value_ptr, keys, v_strides, inner, head, d, D, AXIAL))
    # Without it the compiler holds what it has loaded in registers.
    tl.debug_barrier()
    query = _load(query_ptr, _only(queries, whole_query), q_strides, inner, head, d, D, AXIAL)
    key = _load(key_ptr, _only(keys, whole), k_strides, inner, head, d, D, AXIAL)
    value = _load(value_ptr, _only(keys, whole), v_strides, inner, head, d, D, AXIAL)
    # What a key has in its place reaches whoever sees it. The interpreter has no constants of bfloat16.
    key += tl.where(whole, 0.0, float("nan")).to(key.dtype)[:, None]
    # Rows stand for positions of several sequences: each pair's key position is that of its column.
    largest, total, weighted = forward_tile(
        empty_state(BLOCK_M, BLOCK_D),
        query,
        key,
        value,
        _block_diagonal(queries, keys, CAUSAL),
        queries[0],
        keys[2],
        head,
        scale,
        softcap,
        dropout,
        SOFTCAP,
        DROPOUT,
        PRECISION,
    )
    keyless = total == 0.0
    total = tl.where(whole_query, total, float("nan"))
    output, lse = finish((largest, total, weighted), keyless, dropout, DROPOUT)
    _store(output_ptr, queries, o_strides, inner, head, d, D, output, AXIAL)
    tl.store(lse_ptr + head * rows + queries[0], lse, mask=queries[4])


@triton.jit(do_not_specialize=["sequences", "group", "rows", "rows_k", "threshold", "factor"])
def tiny_backward(
    query_ptr, key_ptr, value_ptr, output_ptr, grad_ptr, lse_ptr, dq_ptr, dk_ptr, dv_ptr,
    offsets_ptr, offsets_k_ptr, key_lengths_ptr,
    q_strides, k_strides, v_strides, o_strides, dq_strides, dk_strides,
    sequences, heads, group, rows, rows_k, D, length, inner,
    scale, softcap, seed_ptr, threshold, factor,
    AXIAL: tl.constexpr, CAUSAL: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    GROUP_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) // heads
    first = part * group
    head = (tl.program_id(0) % heads).to(tl.int64)
    dropout = philox_key(seed_ptr, DROPOUT), threshold, factor
    d = tl.arange(0, BLOCK_D)
    if not AXIAL:
        parts = tl.cdiv(sequences, group)
        zero_backward_tails(
            dq_ptr,
            dk_ptr,
            dv_ptr,
            offsets_ptr,
            offsets_k_ptr,
            head,
            part,
            parts,
            sequences,
            rows,
            rows_k,
            dq_strides,
            dk_strides,
            d,
            D,
            BLOCK_N,
        )
    queries = _rows(offsets_ptr, first, group, sequences, length, AXIAL, GROUP_BLOCK, BLOCK_M)
    every_key = _rows(offsets_k_ptr, first, group, sequences, length, AXIAL, GROUP_BLOCK, BLOCK_N)
    keys = _answering(every_key, key_lengths_ptr)
    lse = tl.load(lse_ptr + head * rows + queries[0], mask=queries[4], other=float("inf"))
    output = _load(output_ptr, queries, o_strides, inner, head, d, D, AXIAL)
    grad = _load(grad_ptr, queries, o_strides, inner, head, d, D, AXIAL)
    delta = tl.sum(output.to(tl.float32) * grad.to(tl.float32), axis=1)
    # Which queries met what is not finite, lse says of the forward pass and delta of the gradient.
    grad = _load(grad_ptr, _only(queries, _is_finite(delta)), o_strides, inner, head, d, D, AXIAL)
    query = _load(query_ptr, _only(queries, _is_finite(lse)), q_strides, inner, head, d, D, AXIAL)
    lse = tl.where(_is_finite(delta), lse, float("nan"))
    whole = _whole(_load(key_ptr, keys, k_strides, inner, head, d, D, AXIAL))
    key = _load(key_ptr, _only(keys, whole), k_strides, inner, head, d, D, AXIAL)
    value = _load(value_ptr, keys, v_strides, inner, head, d, D, AXIAL)
    weights, logit_grad = logit_gradient(
        query,
        key,
        grad,
        value,
        lse[:, None],
        delta[:, None],
        _block_diagonal(queries, keys, CAUSAL),
        queries[0][:, None],
        keys[2][None, :],
        head,
        scale,
        softcap,
        dropout,
        SOFTCAP,
        DROPOUT,
        PRECISION,
    )
    dv = tl.dot(tl.trans(weights), grad, input_precision=PRECISION)
    _store(dv_ptr, every_key, dk_strides, inner, head, d, D, dv, AXIAL)
    dk = tl.dot(tl.trans(logit_grad), query, input_precision=PRECISION) * scale
    _store(dk_ptr, every_key, dk_strides, inner, head, d, D, dk, AXIAL)
    dq = tl.dot(logit_grad, key, input_precision=PRECISION) * scale
    _store(dq_ptr, queries, dq_strides, inner, head, d, D, dq, AXIAL)
