"""Attention's entries in torch's dispatcher: `fastvtp::attention`, `attention_packed` and `axial_attention`."""

from typing import Any

import torch
from torch import Tensor

from ..precision import compute_dtype
from ..registration import define_gradient, define_op, launcher
from . import gradients
from .reference import Options

_OFFSETS = "Tensor cu_seqlens, SymInt max_seqlen"
_OFFSETS_K = "Tensor cu_seqlens_k, SymInt max_seqlen_k"
_OPTIONS = "float scale, float softcap, bool causal, float dropout_p, int seed"


def _lse(query: Tensor, rows: int) -> Tensor:
    return query.new_empty(query.shape[-2], rows, dtype=compute_dtype(query.dtype))


def _reference(*inputs: Any) -> tuple[Tensor, Tensor]:
    return gradients.forward(*inputs[:7], options=Options(*inputs[7:]))


def _reference_backward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return gradients.backward(*inputs[:10], options=Options(*inputs[10:]))


attention = define_op(
    f"attention(Tensor query, Tensor key, Tensor value, {_OFFSETS}, {_OFFSETS_K}, {_OPTIONS}) -> (Tensor, Tensor)",
    launch=launcher(__name__, "attention"),
    reference=_reference,
    fake=lambda query, *rest: (query.new_empty(query.shape), _lse(query, query.shape[0])),
)
_attention_backward = define_op(
    "attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor output, Tensor lse, "
    f"{_OFFSETS}, {_OFFSETS_K}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
    launch=launcher(__name__, "attention_backward"),
    reference=_reference_backward,
    fake=lambda grad, query, key, value, *rest: tuple(x.new_empty(x.shape) for x in (query, key, value)),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    query, key, value, cu_seqlens, ctx.max_seqlen, cu_seqlens_k, ctx.max_seqlen_k, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, *output, cu_seqlens, cu_seqlens_k)


def _gradients(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    *tensors, cu_seqlens, cu_seqlens_k = ctx.saved_tensors
    found = _attention_backward(
        grad.contiguous(), *tensors, cu_seqlens, ctx.max_seqlen, cu_seqlens_k, ctx.max_seqlen_k, *ctx.options
    )
    return *found, *[None] * 9


define_gradient(attention, _save, _gradients)


def _packed_reference(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, *options: Any) -> tuple[Tensor, Tensor]:
    return _reference(*qkv.unbind(1), cu_seqlens, max_seqlen, cu_seqlens, max_seqlen, *options)


def _packed_reference_backward(
    grad: Tensor, qkv: Tensor, output: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int, *options: Any
) -> Tensor:
    query, key, value = qkv.unbind(1)
    offsets = cu_seqlens, max_seqlen
    return torch.stack(_reference_backward(grad, query, key, value, output, lse, *offsets, *offsets, *options), dim=1)


attention_packed = define_op(
    f"attention_packed(Tensor qkv, {_OFFSETS}, {_OPTIONS}) -> (Tensor, Tensor)",
    launch=launcher(__name__, "attention_packed"),
    reference=_packed_reference,
    fake=lambda qkv, *rest: (qkv.new_empty(qkv.shape[0], *qkv.shape[2:]), _lse(qkv, qkv.shape[0])),
)
_packed_backward = define_op(
    f"attention_packed_backward(Tensor grad, Tensor qkv, Tensor output, Tensor lse, {_OFFSETS}, {_OPTIONS}) -> Tensor",
    launch=launcher(__name__, "attention_packed_backward"),
    reference=_packed_reference_backward,
    fake=lambda grad, qkv, *rest: qkv.new_empty(qkv.shape),
)


def _save_packed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    qkv, cu_seqlens, ctx.max_seqlen, *ctx.options = inputs
    ctx.save_for_backward(qkv, *output, cu_seqlens)


def _packed_gradients(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    found = _packed_backward(grad.contiguous(), *ctx.saved_tensors, ctx.max_seqlen, *ctx.options)
    return found, *[None] * 7


define_gradient(attention_packed, _save_packed, _packed_gradients)


def _as_packed(tensor: Tensor) -> Tensor:
    """[A, L, C, H, Dh] to rows [A * C * L, H, Dh]."""
    return tensor.transpose(1, 2).flatten(0, 2)


def _axial_offsets(query: Tensor) -> tuple[Tensor, int]:
    outer, length, inner = query.shape[:3]
    return torch.arange(outer * inner + 1, device=query.device, dtype=torch.int32) * length, length


def _axial_reference(query: Tensor, key: Tensor, value: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    offsets = _axial_offsets(query)
    packed = _reference(*map(_as_packed, (query, key, value)), *offsets, *offsets, *options, 0.0, 0)
    return _as_grid(packed[0], query), packed[1]


def _as_grid(rows: Tensor, like: Tensor) -> Tensor:
    outer, length, inner = like.shape[:3]
    return rows.unflatten(0, (outer, inner, length)).transpose(1, 2).contiguous()


def _axial_reference_backward(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *tensors, lse, scale, softcap, causal = rest
    offsets = _axial_offsets(grad)
    packed = [_as_packed(tensor) for tensor in (grad, *tensors)]
    found = _reference_backward(*packed, lse, *offsets, *offsets, scale, softcap, causal, 0.0, 0)
    return tuple(_as_grid(gradient, grad) for gradient in found)


axial_attention = define_op(
    "axial_attention(Tensor query, Tensor key, Tensor value, float scale, float softcap, bool causal) "
    "-> (Tensor, Tensor)",
    launch=launcher(__name__, "axial_attention"),
    reference=_axial_reference,
    fake=lambda query, *rest: (query.new_empty(query.shape), _lse(query, query.shape[:3].numel())),
)
_axial_backward = define_op(
    "axial_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor output, Tensor lse, "
    "float scale, float softcap, bool causal) -> (Tensor, Tensor, Tensor)",
    launch=launcher(__name__, "axial_attention_backward"),
    reference=_axial_reference_backward,
    fake=lambda grad, query, key, value, *rest: tuple(x.new_empty(x.shape) for x in (query, key, value)),
)


def _save_axial(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    query, key, value, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, *output)


def _axial_gradients(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    return *_axial_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options), None, None, None


define_gradient(axial_attention, _save_axial, _axial_gradients)
