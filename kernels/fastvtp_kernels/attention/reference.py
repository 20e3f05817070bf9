"""Attention over packed sequences and along one axis, in plain PyTorch: the specification.

S sequences, H heads, Lq and Lk padded lengths, Dh head width. Sequences are padded to [S, H, L, Dh]; nothing is ever
N x N.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import philox
from ..packing import pad_rows, padded_slots, unpad_rows
from ..precision import compute_dtype


class Options(NamedTuple):
    """What is computed, apart from the tensors."""

    scale: float
    softcap: float = 0.0
    causal: bool = False
    dropout_p: float = 0.0
    seed: int = 0


def attend(
    query: Tensor, key: Tensor, value: Tensor, options: Options, mask: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """softmax(c * tanh(scale * q.k / c)) @ v over [S, H, L, Dh]; mask and keep are True where a weight is used."""
    if options.softcap == 0 and keep is None:
        # of the kernels that CUDA could choose for a masked call, only the plain one has a deterministic backward
        with sdpa_kernel(SDPBackend.MATH) if query.is_cuda else nullcontext():
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=options.scale)
    dtype = compute_dtype(query.dtype)
    logits = query.to(dtype) @ key.to(dtype).transpose(-1, -2) * options.scale
    if options.softcap:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    weights = logits.softmax(dim=-1)
    if keep is not None:
        weights = weights * keep / (1 - options.dropout_p)
    return (weights @ value.to(dtype)).to(query.dtype)


def _mask(cu_seqlens: Tensor, cu_seqlens_k: Tensor, max_seqlen: int, max_seqlen_k: int, causal: bool) -> Tensor:
    """[S, 1, Lq or 1, Lk], True where a query may look; causal aligns the last query with the last key."""
    query = torch.arange(max_seqlen, device=cu_seqlens.device)[:, None]
    key = torch.arange(max_seqlen_k, device=cu_seqlens.device)
    length, length_k = (offsets.diff()[:, None, None, None] for offsets in (cu_seqlens, cu_seqlens_k))
    mask = key < length_k
    return mask & (key <= query + length_k - length) if causal else mask


def _dropout_keep(cu_seqlens: Tensor, heads: int, max_seqlen: int, max_seqlen_k: int, options: Options) -> Tensor:
    """[S, H, Lq, Lk], decided by (packed query row, position of the key, head); heads share a Philox call by fours."""
    device = cu_seqlens.device
    row = cu_seqlens[:-1, None, None, None].long() + torch.arange(max_seqlen, device=device)[:, None]
    key = torch.arange(max_seqlen_k, device=device)
    head_group = torch.arange((heads + 3) // 4, device=device)[:, None, None]
    words = philox.random_words(philox.ATTENTION_DROPOUT, options.seed, (row, key, head_group, 0))
    return philox.bernoulli(torch.stack(words, dim=2).flatten(1, 2)[:, :heads], 1 - options.dropout_p)


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
) -> Tensor:
    """`dense` promises that every sequence has exactly max_seqlen queries and max_seqlen_k keys."""
    sequences, heads = cu_seqlens.shape[0] - 1, query.shape[1]
    keep = _dropout_keep(cu_seqlens, heads, max_seqlen, max_seqlen_k, options) if options.dropout_p else None
    if dense and not options.causal:
        q, k, v = (x.unflatten(0, (sequences, -1)).transpose(1, 2) for x in (query, key, value))
        return attend(q, k, v, options, keep=keep).transpose(1, 2).flatten(0, 1)

    slot = padded_slots(cu_seqlens, query.shape[0], max_seqlen)
    slot_k = padded_slots(cu_seqlens_k, key.shape[0], max_seqlen_k)
    q = pad_rows(query, slot, sequences, max_seqlen).transpose(1, 2)
    k, v = (pad_rows(x, slot_k, sequences, max_seqlen_k).transpose(1, 2) for x in (key, value))
    mask = _mask(cu_seqlens, cu_seqlens_k, max_seqlen, max_seqlen_k, options.causal)
    has_key = mask.any(dim=-1, keepdim=True)
    # A softmax over nothing is undefined: let such queries look at the padding and drop their rows afterwards.
    out = attend(q, k, v, options, mask | ~has_key, keep)
    return unpad_rows(out.transpose(1, 2), slot, has_key[:, 0, :, 0].expand(-1, max_seqlen))


def axial_attention(query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
    """[A, L, C, H, Dh]: attention along L for every (a, c)."""
    outer, length, inner = query.shape[:3]
    mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril() if options.causal else None
    q, k, v = (x.permute(0, 2, 3, 1, 4).flatten(0, 1) for x in (query, key, value))
    out = attend(q, k, v, options, mask)
    return out.unflatten(0, (outer, inner)).permute(0, 3, 1, 2, 4).contiguous()
