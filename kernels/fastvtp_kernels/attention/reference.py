"""Attention over packed sequences and along one axis, in plain PyTorch: the specification.

S sequences, H heads, Lq and Lk padded lengths, Dh head width. Sequences are padded to [S, H, L, Dh], on the CPU in
buckets of similar length; nothing is ever N x N.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import philox
from ..packing import locate_rows
from ..precision import compute_dtype
from ..validation import values_readable


class Options(NamedTuple):
    """What is computed, apart from the tensors."""

    scale: float
    softcap: float = 0.0
    causal: bool = False
    dropout_p: float = 0.0
    seed: int | Tensor = 0


def seed_tensor(seed: int | Tensor, device: torch.device) -> Tensor:
    """The 64 bits of a seed as int64 [1] on the device: there it is data, on which neither a graph nor code depends."""
    if isinstance(seed, Tensor):
        return seed.reshape(1)
    return torch.full((1,), philox.signed(seed), dtype=torch.int64, device=device)


Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Options, Tensor | None, Tensor | None], Tensor]


def attend(
    query: Tensor, key: Tensor, value: Tensor, options: Options, mask: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """softmax(c * tanh(scale * q.k / c)) @ v over [S, H, L, Dh]; mask and keep are True where a weight is used."""
    if options.softcap == 0 and keep is None:
        # of the kernels that CUDA could choose for a masked call, only the plain one has a deterministic backward
        with sdpa_kernel(SDPBackend.MATH) if query.is_cuda else nullcontext():
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=options.scale)
    dtype = compute_dtype(query.dtype)
    # scaled before the product, where there is less to scale
    scale = options.scale / options.softcap if options.softcap else options.scale
    logits = (query.to(dtype) * scale) @ key.to(dtype).transpose(-1, -2)
    if options.softcap:
        logits = options.softcap * torch.tanh(logits)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    weights = logits.softmax(dim=-1)
    if keep is not None:
        weights = weights * keep / (1 - options.dropout_p)
    return (weights @ value.to(dtype)).to(query.dtype)


def _mask(lengths: Tensor, lengths_k: Tensor, longest: int, longest_k: int, causal: bool) -> Tensor:
    query = torch.arange(longest, device=lengths.device)[:, None]
    key = torch.arange(longest_k, device=lengths.device)
    length, length_k = lengths[:, None, None, None], lengths_k[:, None, None, None]
    mask = key < length_k
    return mask & (key <= query + length_k - length) if causal else mask


def attention_mask(
    cu_seqlens: Tensor, cu_seqlens_k: Tensor, max_seqlen: int, max_seqlen_k: int, causal: bool
) -> Tensor:
    """[S, 1, Lq or 1, Lk], True where a query may look; causal aligns the last query with the last key."""
    return _mask(cu_seqlens.diff(), cu_seqlens_k.diff(), max_seqlen, max_seqlen_k, causal)


def _keep(first_row: Tensor, heads: int, longest: int, longest_k: int, options: Options) -> Tensor:
    device = first_row.device
    row = first_row[:, None, None, None].long() + torch.arange(longest, device=device)[:, None]
    key = torch.arange(longest_k, device=device)
    head_group = torch.arange((heads + 3) // 4, device=device)[:, None, None]
    words = philox.random_words(philox.ATTENTION_DROPOUT, options.seed, (row, key, head_group, 0))
    return philox.bernoulli(torch.stack(words, dim=2).flatten(1, 2)[:, :heads], 1 - options.dropout_p)


def dropout_keep(cu_seqlens: Tensor, heads: int, max_seqlen: int, max_seqlen_k: int, options: Options) -> Tensor:
    """[S, H, Lq, Lk], decided by (packed query row, position of the key, head); heads share a Philox call by fours."""
    return _keep(cu_seqlens[:-1], heads, max_seqlen, max_seqlen_k, options)


class Bucket(NamedTuple):
    """So many sequences, padded to common lengths; `exact`: none is shorter; `has_keys`: each has a key."""

    count: int
    length: int
    length_k: int
    exact: bool
    has_keys: bool


CALL_COST = 400_000
"""Multiplications of q with k that take as long as one more call of SDPA, forward and backward, on a CPU."""


def fill_buckets(lengths: list[int], lengths_k: list[int], width: int) -> tuple[list[int], list[Bucket]]:
    """Sequences in the order of the buckets, and these: lengths share one unless padding costs more than a call.

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


def _slots(cu_seqlens: Tensor, rows: int, order: Tensor, sizes: Tensor) -> Tensor:
    """Slot of each row when sequences order[i] lie one after another, sizes[i] slots each; other rows get the next."""
    table = cu_seqlens.new_zeros(2, cu_seqlens.shape[0], dtype=torch.int64)
    table[:, order] = torch.stack([sizes.cumsum(0) - sizes, sizes])
    sequence, position = locate_rows(cu_seqlens, rows)
    first, size = table[:, sequence]
    return torch.where(position < size, first + position, sizes.sum())


def _attend_bucket(bucket: Bucket, tensors: Sequence[Tensor], options: Options, attend: Attend) -> Tensor:
    """Rows [n * Lq, H, Dh] from padded rows of query, key and value, and first row, length, key length of each [n]."""
    *rows, first_row, lengths, lengths_k = tensors
    q, k, v = (x.unflatten(0, (bucket.count, -1)).transpose(1, 2) for x in rows)
    keep = mask = has_key = None
    if options.dropout_p:
        keep = _keep(first_row, q.shape[1], bucket.length, bucket.length_k, options)
    if options.causal or not bucket.exact:
        # sequences of equal lengths share one mask
        shared = slice(1) if bucket.exact else slice(None)
        mask = _mask(lengths[shared], lengths_k[shared], bucket.length, bucket.length_k, options.causal)
        if options.causal or not bucket.has_keys:
            has_key = mask.any(dim=-1, keepdim=True)
            # A softmax over nothing is undefined: let such queries look at the padding and drop their rows afterwards.
            mask = mask | ~has_key
    out = attend(q, k, v, options, mask, keep)
    if has_key is not None:
        out = out.masked_fill(~has_key, 0)
    return out.transpose(1, 2).flatten(0, 1)


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_k: Tensor,
    max_seqlen_k: int,
    options: Options,
    dense: bool,
    attend: Attend = attend,
    bucketed: bool = True,
) -> Tensor:
    """`dense` promises that every sequence has exactly max_seqlen queries and max_seqlen_k keys.

    Otherwise sequences of similar length are padded together; all of them where lengths cannot be read without waiting.
    """
    sequences = cu_seqlens.shape[0] - 1
    numbers = cu_seqlens[:-1], cu_seqlens.diff(), cu_seqlens_k.diff()
    if dense:
        whole = Bucket(sequences, max_seqlen, max_seqlen_k, True, True)
        return _attend_bucket(whole, (query, key, value, *numbers), options, attend)

    order, sizes, sizes_k = (
        torch.arange(sequences, device=query.device),
        *(torch.full((sequences,), longest, device=query.device) for longest in (max_seqlen, max_seqlen_k)),
    )
    buckets = [Bucket(sequences, max_seqlen, max_seqlen_k, False, False)]
    if bucketed and values_readable(cu_seqlens) and values_readable(cu_seqlens_k):
        found, filled = fill_buckets(numbers[1].tolist(), numbers[2].tolist(), query.shape[1:].numel())
        if filled:
            each = [bucket for bucket in filled for _ in range(bucket.count)]
            columns = found, [bucket.length for bucket in each], [bucket.length_k for bucket in each]
            order, sizes, sizes_k = (torch.tensor(column, device=query.device) for column in columns)
            buckets = filled
    counts = [bucket.count for bucket in buckets]
    slot = _slots(cu_seqlens, query.shape[0], order, sizes)
    same = cu_seqlens_k is cu_seqlens and max_seqlen_k == max_seqlen
    slot_k = slot if same else _slots(cu_seqlens_k, key.shape[0], order, sizes_k)
    q = _pad(query, slot, [bucket.count * bucket.length for bucket in buckets])
    k, v = (_pad(x, slot_k, [bucket.count * bucket.length_k for bucket in buckets]) for x in (key, value))
    per_bucket = zip(q, k, v, *(x[order].split(counts) for x in numbers), strict=True)
    out = [_attend_bucket(bucket, x, options, attend) for bucket, x in zip(buckets, per_bucket, strict=True)]
    return torch.cat([*out, query.new_zeros(1, *query.shape[1:])]).index_select(0, slot)


def _pad(rows: Tensor, slot: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Rows [N, H, Dh] at their slots, cut into the buckets; zero where there is no row."""
    padded = rows.new_zeros(sum(sizes) + 1, *rows.shape[1:]).index_copy_(0, slot, rows)
    return padded.split([*sizes, 1])[:-1]


def varlen_attention_packed(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, options: Options, dense: bool) -> Tensor:
    query, key, value = qkv.unbind(1)
    return varlen_attention(query, key, value, cu_seqlens, max_seqlen, cu_seqlens, max_seqlen, options, dense)


def axial_attention(query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
    """[A, L, C, H, Dh]: attention along L for every (a, c)."""
    outer, length, inner = query.shape[:3]
    mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril() if options.causal else None
    q, k, v = (x.permute(0, 2, 3, 1, 4).flatten(0, 1) for x in (query, key, value))
    out = attend(q, k, v, options, mask)
    return out.unflatten(0, (outer, inner)).permute(0, 3, 1, 2, 4).contiguous()
