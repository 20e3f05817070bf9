"""xformers' memory-efficient attention, which wants the lengths of the sequences on the host."""

import importlib
from itertools import pairwise

import torch
from torch import Tensor

from . import limits
from .bucketed import varlen_attention
from .call import Call

_VALUES = "_fastvtp_values"


def host_values(tensor: Tensor) -> list[int]:
    """Return a tensor's integers, kept with it: only the first call waits for the device, and one after a change."""
    version = None if tensor.is_inference() else tensor._version
    kept = getattr(tensor, _VALUES, None)
    if kept is not None and version is not None and kept[0] == version:
        return kept[1]
    values = tensor.tolist()
    setattr(tensor, _VALUES, (version, values))
    return values


def _lengths(offsets: Tensor) -> list[int]:
    values = host_values(offsets)
    return [end - start for start, end in pairwise(values)]


def _live_rows(lengths: list[int], live: list[bool], device: torch.device) -> Tensor | slice:
    """Select the rows of live sequences: a slice, if all sequences with rows are live, or else their numbers."""
    if all(alive or not length for alive, length in zip(live, lengths, strict=True)):
        return slice(sum(lengths))
    # Counted on the host, where nothing waits.
    rows = torch.tensor(live).repeat_interleave(torch.tensor(lengths))
    return rows.nonzero()[:, 0].to(device, non_blocking=True)


def xformers(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """Call memory_efficient_attention under a BlockDiagonalMask.

    Raises:
        BackendUnavailableError: causal, and a sequence has more queries than keys.
    """
    limits.check("xformers", query, call.options)
    lengths = _lengths(call.cu_seqlens)
    lengths_k = _lengths(call.cu_seqlens_k) if call.key_lengths is None else host_values(call.key_lengths)
    key, value, call = limits.answering_rows("xformers", key, value, call)
    if call.options.causal and any(queries > keys > 0 for queries, keys in zip(lengths, lengths_k, strict=True)):
        raise limits.refuse("xformers", "causal with more queries than keys in a sequence")
    live = [queries > 0 < keys for queries, keys in zip(lengths, lengths_k, strict=True)]
    if not any(live):
        # Zeros, by what knows how gradients of nothing look.
        return varlen_attention(query, key, value, call._replace(dense=False), bucketed=False)
    ops = importlib.import_module("xformers.ops")
    counts, counts_k = ([n for n, alive in zip(all_, live, strict=True) if alive] for all_ in (lengths, lengths_k))
    bias = ops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(counts, counts_k, device=query.device)
    if call.options.causal:
        bias = bias.make_causal() if counts == counts_k else bias.make_causal_from_bottomright()
    rows, rows_k = (_live_rows(all_, live, query.device) for all_ in (lengths, lengths_k))
    output = ops.memory_efficient_attention(
        query[rows][None], key[rows_k][None], value[rows_k][None], attn_bias=bias, p=0.0, scale=call.options.scale
    )[0]
    if output.shape[0] == query.shape[0]:
        return output
    if isinstance(rows, slice):
        rows = torch.arange(output.shape[0], device=query.device)
    return query.new_zeros(query.shape).index_copy(0, rows, output)


def xformers_missing(device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Say why xformers cannot run, or None."""
    missing = limits.imported("xformers.ops", "pip install 'fastvtp[xformers]'")[1]
    return missing or limits.needs_cuda("xformers", device, dtype, (*limits.HALF, torch.float32))
