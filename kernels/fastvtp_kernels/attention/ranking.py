"""Sorting sequences by their lengths in one launch."""

# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
import triton
import triton.language as tl


@triton.jit
def _length(offsets_ptr, sequence, exists):
    start = tl.load(offsets_ptr + sequence, mask=exists, other=0)
    return tl.load(offsets_ptr + sequence + 1, mask=exists, other=0) - start


@triton.jit(do_not_specialize=["sequences"])
def rank_by_length(offsets_ptr, order_ptr, sequences, BLOCK: tl.constexpr):
    """order[rank] = sequence, where its rank is the number of longer ones and of equal ones before it."""
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    length = _length(offsets_ptr, own, own < sequences)[:, None]
    rank = tl.zeros([BLOCK], tl.int32)
    for first in tl.range(0, sequences, BLOCK):
        other = first + tl.arange(0, BLOCK)
        exists = other < sequences
        other_length = _length(offsets_ptr, other, exists)[None, :]
        ahead = (other_length > length) | ((other_length == length) & (other[None, :] < own[:, None]))
        rank += tl.sum((ahead & exists[None, :]).to(tl.int32), axis=1)
    tl.store(order_ptr + rank, own, mask=own < sequences)
