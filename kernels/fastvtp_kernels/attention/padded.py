"""Attention over sequences that are padded to one length, [S, H, L, Dh]: what the roads in plain PyTorch are made of.

S sequences, H heads, Lq and Lk padded lengths, Dh head width.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import philox
from ..derivatives import beyond_reverse
from ..precision import compute_dtype
from .call import Call, Options

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Options, Tensor | None, Tensor | None], Tensor]
"""A function with the arguments and the result of `attend`."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, options: Options, mask: Tensor | None = None, keep: Tensor | None = None
) -> Tensor:
    """softmax(c * tanh(scale * q.k / c)) @ v over [S, H, L, Dh]; mask and keep are True where a weight is used."""
    # torch's own attention has first derivatives in reverse mode alone.
    if options.softcap == 0 and keep is None and not beyond_reverse((query, key, value)):
        # Of the kernels that CUDA could choose for a masked call, only the plain one has a deterministic backward.
        with sdpa_kernel(SDPBackend.MATH) if query.is_cuda else nullcontext():
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=options.scale)
    dtype = compute_dtype(query.dtype)
    # Scaled before the product, where there is less to scale.
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


def visible_keys(lengths_k: Tensor, ahead: Tensor, longest: int, longest_k: int, causal: bool) -> Tensor:
    """bool [S, 1, Lq or 1, Lk], True where a query may look, for int [S] keys in each sequence.

    With `causal` query i looks at keys j <= i + ahead, int [S].
    """
    query = torch.arange(longest, device=lengths_k.device)[:, None]
    key = torch.arange(longest_k, device=lengths_k.device)
    mask = key < lengths_k[:, None, None, None]
    return mask & (key <= query + ahead[:, None, None, None]) if causal else mask


def attention_mask(call: Call) -> Tensor:
    """Return `visible_keys` of all sequences of a call, padded to its longest."""
    return visible_keys(call.answering(), call.ahead(), call.max_seqlen, call.max_seqlen_k, call.options.causal)


def kept_weights(first_row: Tensor, heads: int, longest: int, longest_k: int, options: Options) -> Tensor:
    """bool [S, H, Lq, Lk], True where dropout keeps a weight, for sequences that begin at these packed rows, int [S].

    Decided by (packed row of the query, position of the key, head); heads share a call of Philox by fours.
    """
    assert options.seed is not None
    device = first_row.device
    row = first_row[:, None, None, None].long() + torch.arange(longest, device=device)[:, None]
    key = torch.arange(longest_k, device=device)
    head_group = torch.arange((heads + 3) // 4, device=device)[:, None, None]
    words = philox.random_words(philox.ATTENTION_DROPOUT, options.seed, (row, key, head_group, 0))
    return philox.bernoulli(torch.stack(words, dim=2).flatten(1, 2)[:, :heads], 1 - options.dropout_p)


def dropout_keep(call: Call, heads: int) -> Tensor:
    """Return `kept_weights` of all sequences of a call, padded to its longest."""
    return kept_weights(call.cu_seqlens[:-1], heads, call.max_seqlen, call.max_seqlen_k, call.options)


def axial_attention(query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
    """Compute attention along L of [A, L, C, H, Dh] for every (a, c), whose sequences need no padding; contiguous."""
    outer, length, inner = query.shape[:3]
    mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril() if options.causal else None
    q, k, v = (x.permute(0, 2, 3, 1, 4).flatten(0, 1) for x in (query, key, value))
    out = attend(q, k, v, options, mask)
    return out.unflatten(0, (outer, inner)).permute(0, 3, 1, 2, 4).contiguous()
