"""Attention over packed sequences of different lengths, and along one axis of a grid of tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..derivatives import beyond_reverse, refusing
from ..dispatch import implementation, register
from ..precision import follow_autocast, outside_autocast
from ..symbolic import bound, longer
from ..validation import (
    check_cu_seqlens,
    check_devices,
    check_floating,
    check_lengths,
    check_seed,
    check_shape,
    values_readable,
)
from . import bucketed, choice, padded, reference, registered
from .call import Call, Options, seed_tensor
from .libraries import along_axis, libraries, packed
from .ordering import longest_first


def _triton(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    return registered.attention(query, key, value, *_for_kernels(query, call).flat())[0]


def _triton_packed(qkv: Tensor, call: Call) -> Tensor:
    return registered.attention_packed(qkv, *_for_kernels(qkv, call).flat_self_attention())[0]


def _for_kernels(query: Tensor, call: Call) -> Call:
    """Return the call with dropout's seed in a tensor on the device and, where it matters, the order of the
    sequences."""
    if call.options.dropout_p:
        options = call.options
        call = call._replace(options=options._replace(seed=seed_tensor(options.seed, query.device)))
    if call.dense:
        return call
    order = longest_first(call.cu_seqlens, query.shape[-2], longer(call.max_seqlen, call.max_seqlen_k))
    return call if order is None else Call(*call[:6], order, *call[7:])


def _triton_axial(query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
    return registered.axial_attention(query, key, value, *options[:3])[0]


def _triton_axial_packed(qkv: Tensor, options: Options) -> Tensor:
    return registered.axial_attention_packed(qkv, *options[:3])[0]


def _axial_views(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `run`, an implementation of axial_attention, as one of axial_attention_packed."""

    def attend(qkv: Tensor, options: Options) -> Tensor:
        query, key, value = qkv.unbind(3)
        return run(query, key, value, options)

    return attend


def _complete(*inputs: Any) -> bool:
    """Tell whether the road in plain PyTorch has all derivatives of these arguments: not where it runs torch's own
    attention on the CPU, and only a backward pass will tell."""
    *tensors, call = inputs
    options = call.options if isinstance(call, Call) else call
    plain = options.softcap or options.dropout_p or tensors[0].is_cuda
    return bool(plain) or beyond_reverse(tensors)


register(
    "varlen_attention",
    truth=reference.varlen_attention,
    reference=refusing("varlen_attention", bucketed.varlen_attention, _complete),
    triton=_triton,
    libraries=libraries(),
)
register(
    "varlen_attention_packed",
    truth=packed(reference.varlen_attention),
    reference=refusing("varlen_attention_packed", bucketed.varlen_attention_packed, _complete),
    triton=_triton_packed,
    libraries=libraries(packed),
)
register(
    "axial_attention",
    truth=reference.axial_attention,
    reference=refusing("axial_attention", padded.axial_attention, _complete),
    triton=_triton_axial,
    libraries=libraries(along_axis),
)
register(
    "axial_attention_packed",
    truth=_axial_views(reference.axial_attention),
    reference=refusing("axial_attention_packed", _axial_views(padded.axial_attention), _complete),
    triton=_triton_axial_packed,
    libraries=libraries(lambda run: _axial_views(along_axis(run))),
)


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    causal: bool = False,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
    deterministic: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compute softmax attention within each of S packed sequences (the layout of flash_attn_varlen_func).

    Args:
        query: [N, H, Dh], rows of sequence s at cu_seqlens[s]:cu_seqlens[s + 1]. Any strides: query, key and value may
            be views of one packed tensor.
        key: [Nk, H, Dh].
        value: [Nk, H, Dh].
        cu_seqlens: int32 [S + 1] offsets from 0, not falling; equal neighbours are an empty sequence.
        max_seqlen: at least the longest query sequence. A host integer, so that nothing waits for the device; on a GPU
            it is not compared with cu_seqlens, but under FASTVTP_DEBUG=1: if a sequence is longer, results are wrong
            without a word (keys left out, rows of output and gradients unwritten). Under torch.compile it may come from
            `.item()`.
        cu_seqlens_k: int32 [S + 1] offsets of the keys; default cu_seqlens (self-attention, Nk = N).
        max_seqlen_k: at least the longest key sequence; required with cu_seqlens_k.
        softmax_scale: default Dh ** -0.5.
        softcap: c > 0 replaces logits by c * tanh(logits / c), before masking (Gemma 2, VideoPrism); 0 is off.
        causal: query i of n looks at keys j <= i + (nk - n): the last query is aligned with the last key.
        dropout_p: probability of dropping a softmax weight; the others are divided by 1 - dropout_p.
        seed: of the dropout, 0 <= seed < 2^64. Weights are dropped by (seed, head, query row, position of the key), so
            equal seeds drop equal weights: pass a new seed for each layer and step. Or an int64 tensor of one element
            with these 64 bits, on the device of query, left as it is until the backward pass: a captured CUDA graph
            keeps an integer for ever, but reads a tensor anew at each replay.
        deterministic: False waives a backward pass that repeats bit for bit: an automatic choice may then train with
            any library that was measured to be faster, and flash-attn may add in any order. None: True, unless
            FASTVTP_DETERMINISTIC=0 is set and torch.use_deterministic_algorithms is off. The Triton kernels and the
            reference always repeat.
        backend: see `fastvtp_kernels.dispatch`.

    Returns:
        [N, H, Dh] in the dtype of query (under torch.autocast in its dtype). Zero for queries without a key and for
        rows from cu_seqlens[-1] on.

    Raises:
        ValueError: a shape or a number is out of range, or (on the CPU) offsets do not fit the rows or max_seqlen.
        TypeError: offsets are not int32, a tensor as seed is not int64, or query, key and value are not of one
            floating-point dtype.
    """
    op = "varlen_attention"
    check_shape(op, "query", query, "N", "H", "Dh")
    check_shape(op, "key", key, "Nk", *query.shape[1:])
    check_shape(op, "value", value, *key.shape)
    _check_dtypes(op, query, key, value)
    cu_seqlens = _offsets(op, "cu_seqlens", cu_seqlens, query.shape[0], max_seqlen)
    if cu_seqlens_k is None:
        check_shape(op, "key", key, *query.shape)
        cu_seqlens_k, max_seqlen_k = cu_seqlens, max_seqlen
    elif max_seqlen_k is None:
        raise ValueError(f"{op}: cu_seqlens_k is given without max_seqlen_k, the longest key sequence")
    else:
        cu_seqlens_k = _offsets(op, "cu_seqlens_k", cu_seqlens_k, key.shape[0], max_seqlen_k)
        check_shape(op, "cu_seqlens_k", cu_seqlens_k, cu_seqlens.shape[0])
    check_devices(op, query=query, key=key, value=value, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k)
    options = _options(op, query, softmax_scale, softcap, causal, dropout_p, seed)
    query, key, value = follow_autocast(query, key, value)
    longest = longer(max_seqlen, max_seqlen_k)
    ranked = choice.ranked(query, key, value, longest, options, cu_seqlens_k is cu_seqlens, deterministic)
    run = implementation(op, backend, query.device, query.dtype, ranked)
    dense = _is_dense(cu_seqlens, query.shape[0], max_seqlen) and _is_dense(cu_seqlens_k, key.shape[0], max_seqlen_k)
    layout = cu_seqlens, bound(max_seqlen), cu_seqlens_k, bound(max_seqlen_k)
    call = Call(*layout, options, dense, deterministic=deterministic)
    return outside_autocast(run, query, key, value, call)


def varlen_attention_packed(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    key_lengths: Tensor | None = None,
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    causal: bool = False,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
    deterministic: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compute `varlen_attention` of query, key and value that stand side by side, as one linear layer makes them.

    The gradient comes back in the same form: nothing is stacked or copied on the way to that layer.

    Args:
        qkv: [N, 3, H, Dh], last axis contiguous.
        cu_seqlens: int32 [S + 1], as for `varlen_attention`; so are all others.
        max_seqlen: at least the longest sequence.
        key_lengths: int32 [S], for padding that asks but does not answer: only the first key_lengths[s] rows of a
            sequence s are looked at; keys and values of its other rows count for nothing and have a gradient of zero.
            Its queries are all its rows, a query that sees no key gets zero. None: all rows are looked at. Libraries
            work on a copy of keys and values in which those that answer come first, and but for sdpa refuse `causal`
            with it; xformers waits for the device when it first sees a tensor of lengths.
        softmax_scale: default Dh ** -0.5.
        softcap: c > 0 replaces logits by c * tanh(logits / c), before masking.
        causal: position i looks at positions j <= i.
        dropout_p: probability of dropping a softmax weight.
        seed: of the dropout, an integer or an int64 tensor of one element.
        deterministic: as for `varlen_attention`.
        backend: see `fastvtp_kernels.dispatch`. Libraries get views of qkv and return gradients that are then stacked.

    Returns:
        [N, H, Dh], zero for rows from cu_seqlens[-1] on.

    Raises:
        ValueError, TypeError: as `varlen_attention`; or key_lengths has another shape or dtype, or a length that is
            negative or longer than its sequence.
    """
    op = "varlen_attention_packed"
    check_shape(op, "qkv", qkv, "N", 3, "H", "Dh")
    check_floating(op, qkv=qkv)
    given, cu_seqlens = cu_seqlens, _offsets(op, "cu_seqlens", cu_seqlens, qkv.shape[0], max_seqlen)
    if key_lengths is not None:
        check_lengths(op, "key_lengths", key_lengths, given)
        key_lengths = key_lengths.contiguous() if key_lengths.shape[0] else key_lengths.new_zeros(1)
    check_devices(op, qkv=qkv, cu_seqlens=cu_seqlens, key_lengths=key_lengths)
    options = _options(op, qkv, softmax_scale, softcap, causal, dropout_p, seed)
    (qkv,) = follow_autocast(qkv)
    # Nothing was measured with key lengths, for which libraries copy keys and values.
    ranked = choice.ranked(qkv, qkv, qkv, max_seqlen, options, True, deterministic) if key_lengths is None else ()
    run = implementation(op, backend, qkv.device, qkv.dtype, ranked)
    length = bound(max_seqlen)
    dense = key_lengths is None and _is_dense(cu_seqlens, qkv.shape[0], max_seqlen)
    call = Call(cu_seqlens, length, cu_seqlens, length, options, dense, None, key_lengths, deterministic)
    return outside_autocast(run, qkv, call)


def axial_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    causal: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Compute softmax attention along the second axis, for every (a, c) of the first and third.

    With A clips, L frames and C places this is the temporal attention of TimeSformer and of factorised encoders,
    without a transposed copy of the tokens in the caller.

    Args:
        query: [A, L, C, H, Dh], any strides.
        key: [A, L, C, H, Dh].
        value: [A, L, C, H, Dh].
        softmax_scale: default Dh ** -0.5.
        softcap: c > 0 replaces logits by c * tanh(logits / c), before masking; 0 is off.
        causal: position i looks at positions j <= i.
        backend: see `fastvtp_kernels.dispatch`. flash_attn, xformers and sdpa work on transposed copies.

    Returns:
        [A, L, C, H, Dh] in the dtype of query; under torch.autocast in its dtype.

    Raises:
        ValueError: a shape does not fit or softcap is negative.
        TypeError: query, key and value are not of one floating-point dtype.
    """
    op = "axial_attention"
    check_shape(op, "query", query, "A", "L", "C", "H", "Dh")
    check_shape(op, "key", key, *query.shape)
    check_shape(op, "value", value, *query.shape)
    _check_dtypes(op, query, key, value)
    check_devices(op, query=query, key=key, value=value)
    options = _options(op, query, softmax_scale, softcap, causal)
    query, key, value = follow_autocast(query, key, value)
    run = implementation(op, backend, query.device, query.dtype)
    return outside_autocast(run, query, key, value, options)


def axial_attention_packed(
    qkv: Tensor,
    *,
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    causal: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Compute `axial_attention` of query, key and value that stand side by side, as one linear layer makes them.

    The gradient comes back in the same form: nothing is stacked or copied on the way to that layer.

    Args:
        qkv: [A, L, C, 3, H, Dh], any strides.
        softmax_scale: default Dh ** -0.5.
        softcap: c > 0 replaces logits by c * tanh(logits / c), before masking; 0 is off.
        causal: position i looks at positions j <= i.
        backend: see `fastvtp_kernels.dispatch`. Libraries get views of qkv and return gradients that are then stacked.

    Returns:
        [A, L, C, H, Dh].

    Raises:
        ValueError, TypeError: as `axial_attention`.
    """
    op = "axial_attention_packed"
    check_shape(op, "qkv", qkv, "A", "L", "C", 3, "H", "Dh")
    check_floating(op, qkv=qkv)
    options = _options(op, qkv, softmax_scale, softcap, causal)
    (qkv,) = follow_autocast(qkv)
    run = implementation(op, backend, qkv.device, qkv.dtype)
    return outside_autocast(run, qkv, options)


def _offsets(op: str, name: str, cu_seqlens: Tensor, rows: int, max_seqlen: int) -> Tensor:
    """Return the offsets as the implementations want them: contiguous, and one empty sequence where there is none."""
    check_cu_seqlens(op, name, cu_seqlens, rows, max_seqlen)
    return cu_seqlens.repeat(2) if cu_seqlens.shape[0] == 1 else cu_seqlens.contiguous()


def _check_dtypes(op: str, query: Tensor, key: Tensor, value: Tensor) -> None:
    check_floating(op, query=query)
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(f"{op}: query, key, value are {query.dtype}, {key.dtype}, {value.dtype}, expected one dtype")


def _options(
    op: str,
    query: Tensor,
    softmax_scale: float | None,
    softcap: float,
    causal: bool,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Options:
    if softcap < 0:
        raise ValueError(f"{op}: softcap is {softcap}, expected 0 (off) or a positive cap")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"{op}: dropout_p is {dropout_p}, expected 0 <= dropout_p < 1")
    check_seed(op, seed, device=query.device)
    scale = query.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    return Options(float(scale), float(softcap), causal, float(dropout_p), seed if dropout_p else None)


def _is_dense(cu_seqlens: Tensor, rows: int, max_seqlen: int) -> bool:
    """Tell whether all sequences are known to have max_seqlen rows; only asked where values may be read."""
    # In eager code the host's own numbers come first: most often they say no.
    if not torch.compiler.is_compiling() and rows != (cu_seqlens.shape[0] - 1) * max_seqlen:
        return False
    if not values_readable(cu_seqlens) or rows == 0:
        return False
    return rows == (cu_seqlens.shape[0] - 1) * max_seqlen == int(cu_seqlens[-1])
