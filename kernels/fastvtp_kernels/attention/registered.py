"""Attention's entries in torch's dispatcher: `fastvtp::attention`, `axial_attention` and their packed forms.

Each returns its output and the log-sum-exp [H, N] that its backward op takes. What remains of a call besides the
tensors to differentiate is flat (see `call`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..precision import compute_dtype
from ..registration import define_op, launcher, shortcut
from . import gradients
from .call import FLAT, FLAT_AXIAL, FLAT_SELF_ATTENTION, Options, axial_call, of_flat, of_flat_self_attention

Run = Callable[..., Any]


def _define(name: str, names: tuple[str, ...], flat: str, forward: tuple[Run, Run], backward: tuple[Run, Run]) -> Run:
    """Define `fastvtp::<name>` and `fastvtp::<name>_backward`, join them, and return what eager code calls.

    Args:
        name: of the op, and of its launcher in `kernels`.
        names: of the tensors to differentiate, which come first.
        flat: the schema of the arguments after them.
        forward: the op in plain PyTorch, and the results' shapes.
        backward: the same of the gradients, given (gradient of the output, tensors, output, log-sum-exp, flat).
    """
    tensors = ", ".join(f"Tensor {x}" for x in names)
    op = define_op(
        f"{name}({tensors}, {flat}) -> (Tensor, Tensor)",
        launch=launcher(__name__, name),
        reference=forward[0],
        fake=forward[1],
    )
    results = "Tensor" if len(names) == 1 else f"({', '.join(['Tensor'] * len(names))})"
    backward_op = define_op(
        f"{name}_backward(Tensor grad, {tensors}, Tensor output, Tensor lse, {flat}) -> {results}",
        launch=launcher(__name__, f"{name}_backward"),
        reference=backward[0],
        fake=backward[1],
    )
    differentiate = shortcut(backward_op)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        # Autograd keeps the tensors, ctx the numbers; each list has None where the other has the value.
        numbers: list[Any] = list(inputs[len(names) :])
        kept: list[Tensor | None] = [None] * len(numbers)
        for place, value in enumerate(numbers):
            if isinstance(value, Tensor):
                numbers[place], kept[place] = None, value
        ctx.numbers = numbers
        ctx.save_for_backward(*inputs[: len(names)], *output, *kept)

    def gradient(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        tensors, kept = saved[: len(names) + 2], saved[len(names) + 2 :]
        rest = [number if tensor is None else tensor for tensor, number in zip(kept, ctx.numbers, strict=True)]
        found = differentiate(grad.contiguous(), *tensors, *rest)
        return *(found if isinstance(found, tuple) else (found,)), *[None] * len(rest)

    return shortcut(op, save, gradient, name if name.startswith("axial") else f"varlen_{name}")


def _lse(query: Tensor, rows: int) -> Tensor:
    return query.new_empty(query.shape[-2], rows, dtype=compute_dtype(query.dtype))


def _like_inputs(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def _like_qkv(grad: Tensor, qkv: Tensor, *rest: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


attention_order = shortcut(
    define_op(
        "attention_order(Tensor cu_seqlens) -> Tensor",
        launch=launcher(__name__, "attention_order"),
        reference=lambda cu_seqlens: cu_seqlens.diff().argsort(descending=True, stable=True).int(),
        fake=lambda cu_seqlens: cu_seqlens.new_empty(cu_seqlens.shape[0] - 1, dtype=torch.int32),
    )
)


def _forward(query: Tensor, key: Tensor, value: Tensor, *flat: Any) -> tuple[Tensor, Tensor]:
    return gradients.forward(query, key, value, of_flat(*flat))


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, *flat: Any
) -> tuple[Tensor, ...]:
    return gradients.backward(grad, query, key, value, output, lse, of_flat(*flat))


attention = _define(
    "attention",
    ("query", "key", "value"),
    FLAT,
    (_forward, lambda query, *rest: (query.new_empty(query.shape), _lse(query, query.shape[0]))),
    (_backward, _like_inputs),
)


def _forward_packed(qkv: Tensor, *flat: Any) -> tuple[Tensor, Tensor]:
    query, key, value = qkv.unbind(1)
    return gradients.forward(query, key, value, of_flat_self_attention(*flat))


def _backward_packed(grad: Tensor, qkv: Tensor, output: Tensor, lse: Tensor, *flat: Any) -> Tensor:
    query, key, value = qkv.unbind(1)
    call = of_flat_self_attention(*flat)
    return torch.stack(gradients.backward(grad, query, key, value, output, lse, call), dim=1)


attention_packed = _define(
    "attention_packed",
    ("qkv",),
    FLAT_SELF_ATTENTION,
    (
        _forward_packed,
        lambda qkv, *rest: (qkv.new_empty(qkv.shape[0], *qkv.shape[2:]), _lse(qkv, qkv.shape[0])),
    ),
    (_backward_packed, _like_qkv),
)


def _as_rows(grid: Tensor) -> Tensor:
    """Lay a grid [A, L, C, H, Dh] out as rows [A * C * L, H, Dh]."""
    return grid.transpose(1, 2).flatten(0, 2)


def _as_grid(rows: Tensor, like: Tensor) -> Tensor:
    """Undo `_as_rows` for a grid of the shape of `like` [A, L, C, ...]."""
    outer, length, inner = like.shape[:3]
    return rows.unflatten(0, (outer, inner, length)).transpose(1, 2).contiguous()


def _forward_axial(query: Tensor, key: Tensor, value: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    q, k, v = (_as_rows(x) for x in (query, key, value))
    output, lse = gradients.forward(q, k, v, axial_call(query, Options(*options)))
    return _as_grid(output, query), lse


def _backward_axial(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, *options: Any
) -> tuple[Tensor, ...]:
    g, q, k, v, o = (_as_rows(x) for x in (grad, query, key, value, output))
    found = gradients.backward(g, q, k, v, o, lse, axial_call(grad, Options(*options)))
    return tuple(_as_grid(gradient, grad) for gradient in found)


axial_attention = _define(
    "axial_attention",
    ("query", "key", "value"),
    FLAT_AXIAL,
    (_forward_axial, lambda query, *rest: (query.new_empty(query.shape), _lse(query, query.shape[:3].numel()))),
    (_backward_axial, _like_inputs),
)


def _forward_axial_packed(qkv: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return _forward_axial(*qkv.unbind(3), *options)


def _backward_axial_packed(grad: Tensor, qkv: Tensor, output: Tensor, lse: Tensor, *options: Any) -> Tensor:
    return torch.stack(_backward_axial(grad, *qkv.unbind(3), output, lse, *options), dim=3)


axial_attention_packed = _define(
    "axial_attention_packed",
    ("qkv",),
    FLAT_AXIAL,
    (
        _forward_axial_packed,
        lambda qkv, *rest: (qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:]), _lse(qkv, qkv.shape[:3].numel())),
    ),
    (_backward_axial_packed, _like_qkv),
)
