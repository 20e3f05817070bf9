"""The contrastive ops' entries in torch's dispatcher.

They stand there twice: with kernels, and as `..._reference` with PyTorch's tiles on any device. The losses' gradients
are among their results, so that backward only multiplies.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..precision import compute_dtype
from ..registration import define_gradient, define_op, launcher
from . import blockwise, chunked
from .blockwise import LossAndGradients, WantedGradients

_WANTED = "bool split, bool want_a, bool want_b, bool want_scalars, str group"
_FOUND = "(Tensor, Tensor, Tensor, Tensor)"


def _fake(scalars: int) -> Callable[..., tuple[Tensor, ...]]:
    def fake(a: Tensor, b: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *_, want_a, want_b, _, _ = rest
        dtype = compute_dtype(a.dtype)
        features = (x.new_empty(x.shape if want else (0,), dtype=dtype) for x, want in ((a, want_a), (b, want_b)))
        return scale.new_empty(()), *features, scale.new_empty(scalars)

    return fake


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # The gradients are nobody's to differentiate.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.dtype, ctx.wanted = inputs[0].dtype, WantedGradients(*inputs[-4:-1])


def _gradients(ctx: Any, grad: Tensor | None, *_: None) -> list[Tensor | None]:
    *features, scalars = ctx.saved_tensors
    if grad is None:
        return [None] * (2 + len(scalars))
    found: list[Tensor | None] = [
        (gradient * grad).to(ctx.dtype) if want else None
        for gradient, want in zip(features, ctx.wanted[:2], strict=True)
    ]
    return [*found, *(scalars * grad if ctx.wanted.scalars else [None] * len(scalars))]


def _contrastive_gradients(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, grad), *[None] * 7


def _sigmoid_gradients(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, grad), *[None] * 5


def _define(
    name: str, arguments: str, loss: Callable[..., LossAndGradients], scalars: int, backward: Callable[..., Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Define a loss twice, with kernels and as `..._reference` without, and return both.

    Args:
        name: of the op, and of its launcher in `kernels`.
        arguments: the schema of what comes after a, b and scale.
        loss: computes it, given the tiles and the op's arguments.
        scalars: how many of the arguments are scalars with a gradient.
        backward: the gradients of all arguments from those of the results.
    """

    def reference(*inputs: Any) -> LossAndGradients:
        return loss(chunked, *inputs)

    ops = []
    for suffix, launch in (("", launcher(__name__, name)), ("_reference", reference)):
        schema = f"{name}{suffix}(Tensor a, Tensor b, Tensor scale, {arguments}, {_WANTED}) -> {_FOUND}"
        op = define_op(schema, launch=launch, reference=reference, fake=_fake(scalars))
        ops.append(define_gradient(op, _save, backward, name))
    return ops[0], ops[1]


contrastive_loss, contrastive_loss_reference = _define(
    "contrastive_loss",
    "Tensor? positives, float label_smoothing",
    blockwise.contrastive_loss_of_flat,
    1,
    _contrastive_gradients,
)
sigmoid_loss, sigmoid_loss_reference = _define(
    "sigmoid_loss", "Tensor bias", blockwise.sigmoid_loss_of_flat, 2, _sigmoid_gradients
)
hard_negatives, hard_negatives_reference = (
    define_op(
        f"hard_negatives{suffix}(Tensor a, Tensor b, Tensor scale, SymInt[] draw, Tensor? on_device,"
        " Tensor? groups, bool split, str group) -> (Tensor, Tensor)",
        launch=launch,
        reference=chunked.hard_negatives,
        fake=lambda a, b, *rest: tuple(x.new_empty(len(x), dtype=torch.int64) for x in (a, b)),
    )
    for suffix, launch in (("", launcher(__name__, "hard_negatives")), ("_reference", chunked.hard_negatives))
)
