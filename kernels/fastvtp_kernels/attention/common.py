"""What the attention kernels of every regime share: where a sequence lies, which logits count, and how they change.

Shape legend: M query rows and N key rows of a tile, D head width. `strides` of a tensor are those of (outer, row,
inner, head); packed sequences use row and head, the sequences of a grid [outer, length, inner] all four. Logits are
kept in units of log 2.
"""

# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportArgumentType=false
import triton
import triton.language as tl

from .. import philox

LOG2E = tl.constexpr(1.4426950408889634)
STREAM = tl.constexpr(philox.ATTENTION_DROPOUT)
# The largest logit before the first: finite, so that no difference of two is inf - inf.
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def extent(offsets_ptr, sequence, length, AXIAL: tl.constexpr):
    """Return the number of a sequence's first row among all rows, and how many rows it has."""
    if AXIAL:
        return sequence.to(tl.int64) * length, length
    else:
        start = tl.load(offsets_ptr + sequence)
        return start, tl.load(offsets_ptr + sequence + 1) - start


@triton.jit
def answering(key_lengths_ptr, sequence, length, length_k):
    """Return how many of a sequence's `length_k` keys answer, and which query a causal mask puts beside the last of
    them, as its number + 1: the last, or where lengths are given the one of the same row."""
    if key_lengths_ptr is None:
        return length_k, length
    else:
        answers = tl.minimum(tl.load(key_lengths_ptr + sequence), length_k)
        return answers, answers


@triton.jit
def first_of(pointer, start, sequence, inner, head, strides, AXIAL: tl.constexpr, D: tl.constexpr):
    """Return a pointer to the first value of a sequence and head of width D."""
    if AXIAL:
        offset = (sequence // inner).to(tl.int64) * strides[0] + (sequence % inner).to(tl.int64) * strides[2]
    else:
        offset = start.to(tl.int64) * strides[1]
    offset += head * strides[3]
    if D % 8 == 0:
        # The launcher sees to it that all strides are whole vectors of 8 then. The compiler asks whether they are of
        # 16, which heads 88 wide are not.
        offset = tl.multiple_of(offset, 8)
    return pointer + offset


@triton.jit
def numbered(row, WIDE: tl.constexpr):
    """Return row numbers as `load_rows` takes them: in 64 bits, which cost registers, only where they are needed."""
    return row.to(tl.int64) if WIDE else row


@triton.jit
def load_rows(first_ptr, row, stride_row, length, d, D):
    """Load [rows, BLOCK_D] of one sequence and head, zero beyond its `length` rows and the head's width D."""
    mask = (row < length)[:, None] & (d < D)[None, :]
    return tl.load(first_ptr + row[:, None] * stride_row + d[None, :], mask=mask, other=0.0)


@triton.jit
def load_whole(first_ptr, row, stride_row, d, D: tl.constexpr):
    """Run `load_rows` for rows that all exist: without a mask unless the head is narrower than BLOCK_D."""
    pointers = first_ptr + row[:, None] * stride_row + d[None, :]
    if d.shape[0] == D:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=(d < D)[None, :], other=0.0)


@triton.jit
def store_rows(first_ptr, row, stride_row, length, d, D, values):
    """Store [rows, BLOCK_D] in the tensor's dtype, but nothing beyond the sequence and the head's width."""
    mask = (row < length)[:, None] & (d < D)[None, :]
    tl.store(first_ptr + row[:, None] * stride_row + d[None, :], values.to(first_ptr.dtype.element_ty), mask=mask)


@triton.jit
def zero_tail(pointer, offsets_ptr, head, part, parts, sequences, rows, strides, d, D, BLOCK: tl.constexpr):
    """Write zeros to this program's share of the rows that belong to no sequence; most batches have none.

    The program is number `part` of `parts` that clear the same head.
    """
    end = tl.load(offsets_ptr + sequences)
    for start in tl.range(end + part.to(tl.int64) * BLOCK, rows, parts.to(tl.int64) * BLOCK):
        row = start + tl.arange(0, BLOCK)
        zeros = tl.zeros([BLOCK, d.shape[0]], pointer.dtype.element_ty)
        store_rows(pointer + head * strides[3], row, strides[1], rows, d, D, zeros)


@triton.jit
def zero_forward_tail(
    output_ptr, lse_ptr, offsets_ptr, head, part, parts, sequences, rows, strides, d, D, BLOCK: tl.constexpr
):
    """Run `zero_tail` for the output and for the log-sum-exp [heads, rows]."""
    zero_tail(output_ptr, offsets_ptr, head, part, parts, sequences, rows, strides, d, D, BLOCK)
    end = tl.load(offsets_ptr + sequences)
    for start in tl.range(end + part.to(tl.int64) * BLOCK, rows, parts.to(tl.int64) * BLOCK):
        row = start + tl.arange(0, BLOCK)
        tl.store(lse_ptr + head * rows + row, tl.zeros([BLOCK], tl.float32), mask=row < rows)


@triton.jit
def zero_backward_tails(
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
    BLOCK: tl.constexpr,
):
    """Run `zero_tail` for the gradients of query, key and value."""
    zero_tail(dq_ptr, offsets_ptr, head, part, parts, sequences, rows, dq_strides, d, D, BLOCK)
    zero_tail(dk_ptr, offsets_k_ptr, head, part, parts, sequences, rows_k, dk_strides, d, D, BLOCK)
    zero_tail(dv_ptr, offsets_k_ptr, head, part, parts, sequences, rows_k, dk_strides, d, D, BLOCK)


@triton.jit
def tanh(x):
    """Compute the hyperbolic tangent to float32's precision at every magnitude; the polynomial is the Cephes
    library's."""
    z = x * x
    series = -5.70498872745e-3 * z + 2.06390887954e-2
    series = series * z - 5.37397155531e-2
    series = series * z + 1.33314422036e-1
    series = series * z - 3.33332819422e-1
    return tl.where(z < 0.390625, x + x * z * series, 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2E)) + 1.0))


@triton.jit
def capped(products, scale, softcap, SOFTCAP: tl.constexpr):
    """Return the logits in units of log 2, and tanh(logit / cap) for their derivative (the logits without a cap)."""
    if SOFTCAP:
        ratio = tanh(products * (scale / softcap))
        return ratio * (softcap * LOG2E), ratio
    else:
        logits = products * (scale * LOG2E)
        return logits, logits


@triton.jit
def philox_key(seed_ptr, DROPOUT: tl.constexpr):
    """Return the key of dropout's Philox, from a seed on the device: captured graphs draw anew when it has changed."""
    if DROPOUT:
        return tl.load(seed_ptr) ^ STREAM
    else:
        return 0


@triton.jit
def kept(dropout, row, position, head):
    """Tell where dropout keeps the weight of a query row and a key position, as the reference draws it: a bool in the
    shape that row [M, 1] and position [1, N], or row [1, M] and position [N, 1], broadcast to.

    `dropout` is (Philox key, threshold of the kept words, factor of the kept weights).
    """
    zero = row * 0 + position * 0
    group = (head // 4).to(tl.int32)
    words = tl.philox(dropout[0], zero + row, zero + position, zero + group, zero)
    word = tl.where(head % 4 == 0, words[0], tl.where(head % 4 == 1, words[1], words[2]))
    return tl.where(head % 4 == 3, words[3], word).to(tl.int64) < dropout[1]


@triton.jit
def seen(row, position, aligned, length_k, CAUSAL: tl.constexpr):
    """bool [M, N], True where a query may look at a key; CAUSAL puts query `aligned` - 1 beside the last key.

    Whether the query exists is not asked: those that do not are zero, with a log-sum-exp of +inf.
    """
    mask = (position < length_k)[None, :]
    if CAUSAL:
        mask = mask & (position[None, :] <= row[:, None] + (length_k - aligned))
    return mask


@triton.jit
def keyless(row, aligned, length_k, CAUSAL: tl.constexpr):
    """bool [M], True where a query sees no key; CAUSAL as in `seen`."""
    keys = row * 0 + length_k
    if CAUSAL:
        keys = tl.minimum(keys, row + 1 + (length_k - aligned))
    return keys <= 0


@triton.jit
def forward_tile(
    state,
    query,
    key,
    value,
    mask,
    row,
    position,
    head,
    scale,
    softcap,
    dropout,
    SOFTCAP: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take one tile of keys into the running softmax and return its new state.

    The state is (largest logit [M], sum of weights [M], weighted values [M, D]). The mask is bool [M, N], or None where
    all queries see all keys, which needs a scale that is not negative: the largest product then has the largest logit.
    """
    largest, total, output = state
    logits = tl.dot(query, tl.trans(key), input_precision=PRECISION)
    unit = scale * LOG2E
    if SOFTCAP:
        logits = tanh(logits * (scale / softcap))
        unit = softcap * LOG2E
    if mask is not None:
        logits = tl.where(mask, logits * unit, float("-inf"))
        unit = 1.0
    new_largest = tl.maximum(largest, tl.max(logits, axis=1) * unit)
    # One fused multiply-add for each logit.
    weights = tl.exp2(logits * unit - new_largest[:, None])
    decay = tl.exp2(largest - new_largest)
    total = total * decay + tl.sum(weights, axis=1)
    if DROPOUT:
        weights = tl.where(kept(dropout, row[:, None], position[None, :], head), weights, 0.0)
    output = tl.dot(weights.to(query.dtype), value, output * decay[:, None], input_precision=PRECISION)
    return new_largest, total, output


@triton.jit
def empty_state(BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the state of `forward_tile` before the first key."""
    largest = tl.full([BLOCK_M], LOWEST, tl.float32)
    return largest, tl.zeros([BLOCK_M], tl.float32), tl.zeros([BLOCK_M, BLOCK_D], tl.float32)


@triton.jit
def finish(state, keyless, dropout, DROPOUT: tl.constexpr):
    """Turn the last state into the output and the log-sum-exp, in units of log 2.

    A row without a key gets zero, and +inf, which silences it in backward.
    """
    largest, total, output = state
    divisor = tl.where(keyless, 1.0, total)
    factor = 1.0 / divisor
    if DROPOUT:
        factor = factor * dropout[2]
    return output * factor[:, None], tl.where(keyless, float("inf"), largest + tl.log2(divisor))


@triton.jit
def logit_gradient(
    first,
    second,
    first_value,
    second_value,
    lse,
    delta,
    mask,
    row,
    position,
    head,
    scale,
    softcap,
    dropout,
    SOFTCAP: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the weights that met the values, and the gradient of the logits: operands of the next products.

    Of (query, key, grad, value) and of vectors [M, 1] of the queries and [1, N] of the keys they are [M, N]; of (key,
    query, value, grad), [1, M] and [N, 1] they are transposed, [N, M], and the gradients of keys and values take them
    from registers as their left operand. No mask (None) is a mask of ones; it comes last: whatever stands outside it,
    NaN included, becomes zero.
    """
    logits, ratio = capped(tl.dot(first, tl.trans(second), input_precision=PRECISION), scale, softcap, SOFTCAP)
    logits -= lse
    weights = tl.exp2(logits)
    weight_grad = tl.dot(first_value, tl.trans(second_value), input_precision=PRECISION)
    used = weights
    if DROPOUT:
        # Products, so that a dropped NaN stays one as in the reference.
        factor = tl.where(kept(dropout, row, position, head), dropout[2], 0.0)
        used = weights * factor
        weight_grad = weight_grad * factor
    logit_grad = weights * (weight_grad - delta)
    if SOFTCAP:
        logit_grad = logit_grad * (1.0 - ratio * ratio)
    if mask is not None:
        used = tl.where(mask, used, 0.0)
        logit_grad = tl.where(mask, logit_grad, 0.0)
    return used.to(first.dtype), logit_grad.to(first.dtype)
