"""Attention's entries in torch's dispatcher: `fastvtp::attention`, `axial_attention` and their packed forms."""

from typing import Any

import torch
from torch import Tensor

from ..precision import compute_dtype
from ..registration import define_gradient, define_op, launcher, shortcut
from . import gradients
from .reference import Options

_OFFSETS = "Tensor cu_seqlens, SymInt max_seqlen"
_OFFSETS_K = "Tensor cu_seqlens_k, SymInt max_seqlen_k"
_AXIAL_OPTIONS = "float scale, float softcap, bool causal"
# seed: int64 [1], None without dropout; order: int32 [S], in which the sequences run, None: as they stand.
_OPTIONS = f"{_AXIAL_OPTIONS}, float dropout_p, Tensor? seed, Tensor? order"


def _lse(query: Tensor, rows: int) -> Tensor:
    return query.new_empty(query.shape[-2], rows, dtype=compute_dtype(query.dtype))


def _reference(*inputs: Any) -> tuple[Tensor, Tensor]:
    return gradients.forward(*inputs[:7], options=Options(*inputs[7:12]))


def _reference_backward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return gradients.backward(*inputs[:10], options=Options(*inputs[10:15]))


attention_order = define_op(
    "attention_order(Tensor cu_seqlens) -> Tensor",
    launch=launcher(__name__, "attention_order"),
    reference=lambda cu_seqlens: cu_seqlens.diff().argsort(descending=True, stable=True).int(),
    fake=lambda cu_seqlens: cu_seqlens.new_empty(cu_seqlens.shape[0] - 1, dtype=torch.int32),
)


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
    query, key, value, cu_seqlens, ctx.max_seqlen, cu_seqlens_k, ctx.max_seqlen_k, *ctx.options, seed, order = inputs
    ctx.save_for_backward(query, key, value, *output, cu_seqlens, cu_seqlens_k, seed, order)


def _gradients(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    *tensors, cu_seqlens, cu_seqlens_k, seed, order = ctx.saved_tensors
    offsets = cu_seqlens, ctx.max_seqlen, cu_seqlens_k, ctx.max_seqlen_k
    found = _attention_backward(grad.contiguous(), *tensors, *offsets, *ctx.options, seed, order)
    return *found, *[None] * 10


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
    qkv, cu_seqlens, ctx.max_seqlen, *ctx.options, seed, order = inputs
    ctx.save_for_backward(qkv, *output, cu_seqlens, seed, order)


def _packed_gradients(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    *tensors, seed, order = ctx.saved_tensors
    return _packed_backward(grad.contiguous(), *tensors, ctx.max_seqlen, *ctx.options, seed, order), *[None] * 8


define_gradient(attention_packed, _save_packed, _packed_gradients)


def _as_packed(tensor: Tensor) -> Tensor:
    """[A, L, C, H, Dh] to rows [A * C * L, H, Dh]."""
    return tensor.transpose(1, 2).flatten(0, 2)


def _axial_offsets(query: Tensor) -> tuple[Tensor, int]:
    outer, length, inner = query.shape[:3]
    return torch.arange(outer * inner + 1, device=query.device, dtype=torch.int32) * length, length


def _axial_reference(query: Tensor, key: Tensor, value: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    offsets = _axial_offsets(query)
    packed = _reference(*map(_as_packed, (query, key, value)), *offsets, *offsets, *options)
    return _as_grid(packed[0], query), packed[1]


def _as_grid(rows: Tensor, like: Tensor) -> Tensor:
    outer, length, inner = like.shape[:3]
    return rows.unflatten(0, (outer, inner, length)).transpose(1, 2).contiguous()


def _axial_reference_backward(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *tensors, lse, scale, softcap, causal = rest
    offsets = _axial_offsets(grad)
    packed = [_as_packed(tensor) for tensor in (grad, *tensors)]
    found = _reference_backward(*packed, lse, *offsets, *offsets, scale, softcap, causal)
    return tuple(_as_grid(gradient, grad) for gradient in found)


axial_attention = define_op(
    f"axial_attention(Tensor query, Tensor key, Tensor value, {_AXIAL_OPTIONS}) -> (Tensor, Tensor)",
    launch=launcher(__name__, "axial_attention"),
    reference=_axial_reference,
    fake=lambda query, *rest: (query.new_empty(query.shape), _lse(query, query.shape[:3].numel())),
)
_axial_backward = define_op(
    "axial_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor output, Tensor lse, "
    f"{_AXIAL_OPTIONS}) -> (Tensor, Tensor, Tensor)",
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


def _axial_packed_reference(qkv: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return _axial_reference(*qkv.unbind(3), *options)


def _axial_packed_reference_backward(grad: Tensor, qkv: Tensor, *rest: Any) -> Tensor:
    return torch.stack(_axial_reference_backward(grad, *qkv.unbind(3), *rest), dim=3)


axial_attention_packed = define_op(
    f"axial_attention_packed(Tensor qkv, {_AXIAL_OPTIONS}) -> (Tensor, Tensor)",
    launch=launcher(__name__, "axial_attention_packed"),
    reference=_axial_packed_reference,
    fake=lambda qkv, *rest: (qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:]), _lse(qkv, qkv.shape[:3].numel())),
)
_axial_packed_backward = define_op(
    f"axial_attention_packed_backward(Tensor grad, Tensor qkv, Tensor output, Tensor lse, {_AXIAL_OPTIONS}) -> Tensor",
    launch=launcher(__name__, "axial_attention_packed_backward"),
    reference=_axial_packed_reference_backward,
    fake=lambda grad, qkv, *rest: qkv.new_empty(qkv.shape),
)


def _save_axial_packed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    qkv, *ctx.options = inputs
    ctx.save_for_backward(qkv, *output)


def _axial_packed_gradients(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    return _axial_packed_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options), None, None, None


define_gradient(axial_attention_packed, _save_axial_packed, _axial_packed_gradients)


# Eager code takes these; compilers and transforms find the ops behind them.
attention_order = shortcut(attention_order)
attention = shortcut(attention, _save, _gradients)
attention_packed = shortcut(attention_packed, _save_packed, _packed_gradients)
axial_attention = shortcut(axial_attention, _save_axial, _axial_gradients)
axial_attention_packed = shortcut(axial_attention_packed, _save_axial_packed, _axial_packed_gradients)
_attention_backward = shortcut(_attention_backward)
_packed_backward = shortcut(_packed_backward)
_axial_backward = shortcut(_axial_backward)
_axial_packed_backward = shortcut(_axial_packed_backward)
