"""What the forward pass leaves for backward: the gradient itself, up to the factor that arrives with backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _autograd

from ..derivatives import transforming

Scale = Callable[[Tensor, Tensor], None]
"""Multiplies the first tensor by the second, in place."""


def residual_scale(prediction: Tensor) -> float:
    """Return the factor by which prediction - target is stored.

    2 / count makes it the gradient of the mean, so that backward has nothing to do when the loss has weight 1. In
    float16 that factor underflows; there the gradient scaler's factor has to be multiplied in first.
    """
    return 1.0 if prediction.dtype == torch.float16 else 2 / prediction.numel()


def gradient_from_residual(residual: Tensor, grad_loss: Tensor, scale_in_place: Scale) -> Tensor:
    """Return the gradient of the prediction [B, Km, P], in its dtype, from what the forward pass stored.

    `scale_in_place` multiplies it in the residual's own memory, unless another backward pass will need that again.
    """
    factor = grad_loss * (2 / residual.numel() / residual_scale(residual))
    if torch.compiler.is_compiling() or type(residual) is not Tensor or transforming() or _kept_for_another_backward():
        return (residual.to(factor.dtype) * factor).to(residual.dtype)
    residual = residual.detach()
    scale_in_place(residual, factor)
    return residual


def save_residual(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep the residual, the op's second output, for backward."""
    ctx.save_for_backward(output[1])
    # It is nobody's to differentiate; a gradient of zeros for it would be as large as the prediction.
    ctx.set_materialize_grads(False)


def gradients(ctx: Any, grad_loss: Tensor | None, scale_in_place: Scale) -> tuple[Tensor | None, ...]:
    """Return the gradients of the op's seven inputs, of which the prediction alone has one."""
    residual = None if grad_loss is None else gradient_from_residual(ctx.saved_tensors[0], grad_loss, scale_in_place)
    return (residual, *(None,) * 6)


def _kept_for_another_backward() -> bool:
    """Tell whether the running backward was called with retain_graph=True."""
    return _autograd._get_current_graph_task_keep_graph()
