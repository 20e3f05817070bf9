"""Attention in plain PyTorch: the specification, one query after another.

Everything else that computes attention here is held to these loops, and nothing is in them for speed.
"""

from itertools import pairwise

import torch
from torch import Tensor

from .. import philox
from ..precision import compute_dtype
from .call import Call, Options, axial_call


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """Return each query's mean of the values that it sees, weighted by the softmax of its logits; heads do not mix.

    Args:
        query: [N, H, Dh].
        key: [Nk, H, Dh].
        value: [Nk, H, Dh].
        call: offsets of the sequences, and options; `max_seqlen`, `dense` and `order` change nothing.

    Returns:
        [N, H, Dh] in the dtype of query, computed in float32 (float64 for float64). Rows that see no key, and rows of
        no sequence, are zero.
    """
    dtype = compute_dtype(query.dtype)
    queries, keys, values = (tensor.to(dtype) for tensor in (query, key, value))
    rows = list(torch.zeros_like(queries).split(1))
    bounds = pairwise(zip(call.cu_seqlens.tolist(), call.cu_seqlens_k.tolist(), strict=True))
    for ((start, start_k), (end, end_k)), answering in zip(bounds, call.answering().tolist(), strict=True):
        for row in range(start, end):
            # The last query sees the last key, with `causal` each query before it one key less.
            last = end_k - (end - 1 - row) if call.options.causal else end_k
            last = min(last, start_k + answering)
            if last > start_k:
                seen = slice(start_k, last)
                rows[row] = _attend(queries[row], keys[seen], values[seen], call.options, row)[None]
    return torch.cat(rows).to(query.dtype)


def _attend(query: Tensor, keys: Tensor, values: Tensor, options: Options, row: int) -> Tensor:
    """[H, Dh]: one query [H, Dh], number `row` among all rows, on its keys and values [K, H, Dh]."""
    logits = (query * keys).sum(dim=-1) * options.scale
    if options.softcap:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    weights = logits.softmax(dim=0)
    if options.dropout_p:
        weights = weights * _kept(options, row, *weights.shape).to(weights) / (1 - options.dropout_p)
    return (weights[..., None] * values).sum(dim=0)


def _kept(options: Options, row: int, keys: int, heads: int) -> Tensor:
    """bool [K, H]: which weights dropout keeps, decided by (seed, query row, position of the key, head) alone.

    Four heads share a call of Philox, of whose four words each takes one.
    """
    assert options.seed is not None
    kept = torch.empty(keys, heads, dtype=torch.bool)
    for head in range(heads):
        counter = torch.tensor(row), torch.arange(keys), head // 4, 0
        words = philox.random_words(philox.ATTENTION_DROPOUT, options.seed, counter)
        kept[:, head] = philox.bernoulli(words[head % 4], 1 - options.dropout_p)
    return kept


def axial_attention(query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
    """Attend as `varlen_attention` does, along the second axis of [A, L, C, H, Dh]: each (a, c) is a sequence of L
    rows."""
    queries, keys, values = (tensor.transpose(1, 2).flatten(0, 2) for tensor in (query, key, value))
    output = varlen_attention(queries, keys, values, axial_call(query, options))
    return output.view(query.transpose(1, 2).shape).transpose(1, 2)
