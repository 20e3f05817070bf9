"""Linear layers, which on a CPU ask oneDNN for large float32 products.

torch asks MKL for them, and first copies the bias to every row. On an AMD EPYC (Zen 4) 2048 rows through 768 x 768
weights, forward and backward, take 96 ms of a core that way and 76 ms this way. Other devices and dtypes, and what
torch.compile traces and torch.func transforms, are left to torch.

Shape legend: I = inputs, O = outputs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEAST_WORK = 40_000_000
"""Multiplications of a product below which the longer way to oneDNN costs more than it saves."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: [..., I], [O, I], [O] -> [..., O]. Where oneDNN computes it, it can be differentiated once."""
    if _suits_onednn(x, weight, bias):
        return _OneDnnLinear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
    return nn.functional.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def _suits_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.is_cpu
        and x.ndim > 1
        and x.numel() * weight.shape[0] >= LEAST_WORK
        and all(tensor is None or tensor.dtype == torch.float32 for tensor in (x, weight, bias))
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch.backends.mkldnn.is_available()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x.contiguous(), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        gradient = gradients[0].contiguous()
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t()) if of_x else None,
            rows.t() @ x.flatten(0, -2) if of_weight else None,  # a sum over rows, at which oneDNN is no faster
            rows.sum(dim=0) if of_bias else None,
        )
