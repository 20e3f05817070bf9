"""Attention over packed sequences of different lengths, and along one axis of a grid of tokens."""

from torch import Tensor

from ..dispatch import ATTENTION_BACKENDS, implementation, register
from ..precision import follow_autocast, without_autocast
from ..validation import check_cu_seqlens, check_devices, check_floating, check_seed, check_shape, values_readable
from . import reference

_KNOWN = ("reference", "triton", *ATTENTION_BACKENDS)
register("varlen_attention", reference=reference.varlen_attention, known=_KNOWN)
register("axial_attention", reference=reference.axial_attention, known=_KNOWN)


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
    seed: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Softmax attention within each of S packed sequences (the layout of flash_attn_varlen_func).

    Args:
        query: [N, H, Dh], rows of sequence s at cu_seqlens[s]:cu_seqlens[s + 1]. Any strides: query, key and value may
            be views of one packed tensor.
        key: [Nk, H, Dh].
        value: [Nk, H, Dh].
        cu_seqlens: int32 [S + 1] offsets from 0, not falling; equal neighbours are an empty sequence.
        max_seqlen: at least the longest query sequence. A host integer, so that nothing waits for the device.
        cu_seqlens_k: int32 [S + 1] offsets of the keys; default cu_seqlens (self-attention, Nk = N).
        max_seqlen_k: at least the longest key sequence; required with cu_seqlens_k.
        softmax_scale: default Dh ** -0.5.
        softcap: c > 0 replaces logits by c * tanh(logits / c), before masking (Gemma 2, VideoPrism); 0 is off.
        causal: query i of n looks at keys j <= i + (nk - n): the last query is aligned with the last key.
        dropout_p: probability of dropping a softmax weight; the others are divided by 1 - dropout_p.
        seed: of the dropout, 0 <= seed < 2^64. Weights are dropped by (seed, head, query row, position of the key), so
            equal seeds drop equal weights: pass a new seed for each layer and step.
        backend: see `fastvtp_kernels.dispatch`.

    Returns:
        [N, H, Dh] in the dtype of query (under torch.autocast in its dtype). Zero for queries without a key and for
        rows from cu_seqlens[-1] on.

    Raises:
        ValueError: a shape or a number is out of range, or (on the CPU) offsets do not fit the rows or max_seqlen.
        TypeError: offsets are not int32, or query, key and value are not of one floating-point dtype.
    """
    op = "varlen_attention"
    check_shape(op, "query", query, "N", "H", "Dh")
    check_shape(op, "key", key, "Nk", *query.shape[1:])
    check_shape(op, "value", value, *key.shape)
    _check_dtypes(op, query, key, value)
    check_cu_seqlens(op, "cu_seqlens", cu_seqlens, query.shape[0], max_seqlen)
    if cu_seqlens_k is None:
        check_shape(op, "key", key, *query.shape)
        cu_seqlens_k, max_seqlen_k = cu_seqlens, max_seqlen
    elif max_seqlen_k is None:
        raise ValueError(f"{op}: cu_seqlens_k is given without max_seqlen_k, the longest key sequence")
    else:
        check_cu_seqlens(op, "cu_seqlens_k", cu_seqlens_k, key.shape[0], max_seqlen_k)
        check_shape(op, "cu_seqlens_k", cu_seqlens_k, cu_seqlens.shape[0])
    check_devices(op, query=query, key=key, value=value, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_seqlens_k)
    _check_softcap(op, softcap)
    if not 0 <= dropout_p < 1:
        raise ValueError(f"{op}: dropout_p is {dropout_p}, expected 0 <= dropout_p < 1")
    check_seed(op, seed)

    run = implementation(op, backend, query.device)
    if cu_seqlens.shape[0] == 1:
        # No sequence is one empty sequence: the implementations need not think of S = 0.
        cu_seqlens, cu_seqlens_k = cu_seqlens.repeat(2), cu_seqlens_k.repeat(2)
    query, key, value = follow_autocast(query, key, value)
    with without_autocast(query.device):
        return run(
            query,
            key,
            value,
            cu_seqlens,
            max(max_seqlen, 1),
            cu_seqlens_k,
            max(max_seqlen_k, 1),
            reference.Options(_scale(query, softmax_scale), softcap, causal, dropout_p, seed),
            _is_dense(cu_seqlens, query.shape[0], max_seqlen) and _is_dense(cu_seqlens_k, key.shape[0], max_seqlen_k),
        )


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
    """Softmax attention along the second axis, for every (a, c) of the first and third.

    With A clips, L frames and C places this is the temporal attention of TimeSformer and of factorised encoders,
    without a transposed copy of the tokens in the caller.

    Args:
        query: [A, L, C, H, Dh], any strides.
        key: [A, L, C, H, Dh].
        value: [A, L, C, H, Dh].
        softmax_scale: default Dh ** -0.5.
        softcap: c > 0 replaces logits by c * tanh(logits / c), before masking; 0 is off.
        causal: position i looks at positions j <= i.
        backend: see `fastvtp_kernels.dispatch`.

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
    _check_softcap(op, softcap)
    run = implementation(op, backend, query.device)
    query, key, value = follow_autocast(query, key, value)
    with without_autocast(query.device):
        return run(query, key, value, reference.Options(_scale(query, softmax_scale), softcap, causal))


def _check_dtypes(op: str, query: Tensor, key: Tensor, value: Tensor) -> None:
    check_floating(op, query=query)
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(f"{op}: query, key, value are {query.dtype}, {key.dtype}, {value.dtype}, expected one dtype")


def _check_softcap(op: str, softcap: float) -> None:
    if softcap < 0:
        raise ValueError(f"{op}: softcap is {softcap}, expected 0 (off) or a positive cap")


def _scale(query: Tensor, softmax_scale: float | None) -> float:
    return query.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale


def _is_dense(cu_seqlens: Tensor, rows: int, max_seqlen: int) -> bool:
    """Whether all sequences are known to have max_seqlen rows; only asked where values may be read."""
    if not values_readable(cu_seqlens) or rows == 0:
        return False
    return rows == (cu_seqlens.shape[0] - 1) * max_seqlen == int(cu_seqlens[-1])
