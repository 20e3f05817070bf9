"""Attention over packed sequences in plain PyTorch, as fast as a CPU allows: what backend="reference" runs.

Sequences are padded to [S, H, L, Dh] in buckets of similar length, one call of torch's SDPA each; nothing is ever
N x N. S sequences, H heads, Lq and Lk padded lengths, Dh head width.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ..packing import locate_rows
from ..validation import values_readable
from .call import Call, Options
from .padded import Attend, attend, kept_weights, visible_keys


class Bucket(NamedTuple):
    """`count` sequences padded to common lengths; `exact`: none is shorter; `has_keys`: each has a key."""

    count: int
    length: int
    length_k: int
    exact: bool
    has_keys: bool


CALL_COST = 400_000
"""Multiplications of q with k that take as long as one more call of SDPA, forward and backward, on a CPU."""


def fill_buckets(lengths: list[int], lengths_k: list[int], width: int) -> tuple[list[int], list[Bucket]]:
    """Sort sequences into buckets: lengths share one unless padding would cost more than a call.

    Returns the sequences in the order of the buckets, and these.

    Sequences without queries or without keys are left out. `width` is that of all heads together.
    """
    sizes = list(zip(lengths_k, lengths, strict=True))
    order = sorted((s for s, size in enumerate(sizes) if 0 not in size), key=lambda s: sizes[s], reverse=True)
    buckets: list[Bucket] = []
    for (length_k, length), members in groupby(order, key=lambda s: sizes[s]):
        new = Bucket(len(list(members)), length, length_k, True, True)
        if buckets:
            last = buckets[-1]
            joined = Bucket(last.count + new.count, max(last.length, length), last.length_k, False, True)
            padding = _area(joined) - _area(last) - _area(new)
            if padding * width < CALL_COST:
                buckets[-1] = joined
                continue
        buckets.append(new)
    return order, buckets


def _area(bucket: Bucket) -> int:
    return bucket.count * bucket.length * bucket.length_k


def _slots(cu_seqlens: Tensor, lengths: Tensor, rows: int, order: Tensor, sizes: Tensor) -> Tensor:
    """Return the slot of each row, int64 [rows], when sequences order[i] lie one after another, sizes[i] slots each.

    Rows of no such sequence, and those beyond the first lengths[s] of a sequence s, get the slot after the last.
    """
    table = cu_seqlens.new_zeros(2, cu_seqlens.shape[0], dtype=torch.int64)
    table[:, order] = torch.stack([sizes.cumsum(0) - sizes, torch.minimum(sizes, lengths[order])])
    sequence, position = locate_rows(cu_seqlens, rows)
    first, taken = table[:, sequence]
    return torch.where(position < taken, first + position, sizes.sum())


def _attend_bucket(bucket: Bucket, tensors: Sequence[Tensor], options: Options, attend: Attend) -> Tensor:
    """Compute the attention of one bucket of n sequences, as rows [n * Lq, H, Dh].

    `tensors` are the padded rows of query, key and value, and each sequence's first row, number of keys and
    `Call.ahead` [n].
    """
    *rows, first_row, lengths_k, ahead = tensors
    q, k, v = (x.unflatten(0, (bucket.count, -1)).transpose(1, 2) for x in rows)
    keep = mask = has_key = None
    if options.dropout_p:
        keep = kept_weights(first_row, q.shape[1], bucket.length, bucket.length_k, options)
    if options.causal or not bucket.exact:
        # Sequences of equal lengths share one mask.
        shared = slice(1) if bucket.exact else slice(None)
        mask = visible_keys(lengths_k[shared], ahead[shared], bucket.length, bucket.length_k, options.causal)
        if options.causal or not bucket.has_keys:
            has_key = mask.any(dim=-1, keepdim=True)
            # A softmax over nothing is undefined: let such queries look at the padding and drop their rows afterwards.
            mask = mask | ~has_key
    out = attend(q, k, v, options, mask, keep)
    if has_key is not None:
        out = out.masked_fill(~has_key, 0)
    return out.transpose(1, 2).flatten(0, 1)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, call: Call, attend: Attend = attend, bucketed: bool = True
) -> Tensor:
    """[N, H, Dh] from query [N, H, Dh], key and value [Nk, H, Dh], as `reference.varlen_attention`.

    Sequences of similar length are padded together; all of them where `bucketed` is False or their lengths cannot be
    read without waiting. `attend` computes the attention of what has been padded.
    """
    sequences = call.cu_seqlens.shape[0] - 1
    lengths, lengths_k = call.cu_seqlens.diff(), call.answering()
    numbers = call.cu_seqlens[:-1], lengths_k, call.ahead()
    if call.dense:
        whole = Bucket(sequences, call.max_seqlen, call.max_seqlen_k, True, True)
        return _attend_bucket(whole, (query, key, value, *numbers), call.options, attend)

    order, ones = (torch.arange(sequences, device=query.device), numbers[0].new_ones(sequences, dtype=torch.int64))
    # Not torch.full, whose sums Inductor cannot rewrite where the value is a length that it does not know.
    sizes, sizes_k = ones * call.max_seqlen, ones * call.max_seqlen_k
    buckets = [Bucket(sequences, call.max_seqlen, call.max_seqlen_k, False, False)]
    if bucketed and values_readable(lengths) and values_readable(lengths_k):
        found, filled = fill_buckets(lengths.tolist(), lengths_k.tolist(), query.shape[1:].numel())
        if filled:
            each = [bucket for bucket in filled for _ in range(bucket.count)]
            columns = found, [bucket.length for bucket in each], [bucket.length_k for bucket in each]
            order, sizes, sizes_k = (torch.tensor(column, device=query.device) for column in columns)
            buckets = filled
    counts = [bucket.count for bucket in buckets]
    slot = _slots(call.cu_seqlens, lengths, query.shape[0], order, sizes)
    same = call.cu_seqlens_k is call.cu_seqlens and call.max_seqlen_k == call.max_seqlen and call.key_lengths is None
    slot_k = slot if same else _slots(call.cu_seqlens_k, lengths_k, key.shape[0], order, sizes_k)
    q = _pad(query, slot, [bucket.count * bucket.length for bucket in buckets])
    k, v = (_pad(x, slot_k, [bucket.count * bucket.length_k for bucket in buckets]) for x in (key, value))
    per_bucket = zip(q, k, v, *(x[order].split(counts) for x in numbers), strict=True)
    out = [_attend_bucket(bucket, x, call.options, attend) for bucket, x in zip(buckets, per_bucket, strict=True)]
    return torch.cat([*out, query.new_zeros(1, *query.shape[1:])]).index_select(0, slot)


def _pad(rows: Tensor, slot: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Put rows [N, H, Dh] at their slots and cut these into buckets; zero where there is no row."""
    padded = rows.new_zeros(sum(sizes) + 1, *rows.shape[1:]).index_copy_(0, slot, rows)
    return padded.split([*sizes, 1])[:-1]


def varlen_attention_packed(qkv: Tensor, call: Call) -> Tensor:
    """[N, H, Dh]: `varlen_attention` of the three views of qkv [N, 3, H, Dh]."""
    query, key, value = qkv.unbind(1)
    return varlen_attention(query, key, value, call)
