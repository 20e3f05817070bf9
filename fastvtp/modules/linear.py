"""Linear layers of transformer blocks and decoders, which on a CPU ask oneDNN for large float32 products.

torch asks MKL for them, and first copies the bias to every row. On an AMD EPYC (Zen 4) 2048 rows through 768 x 768
weights, forward and backward, take 96 ms of a core that way and 76 ms this way. Left to torch: other devices, dtypes
and layouts, wrong shapes (it words the error), whatever looks at or replaces the operations of a model (torch.compile,
torch.jit, torch.func, forward-mode derivatives, dispatch modes such as the FLOP counter, tensor subclasses), and all
products while `torch.backends.mkldnn` is switched off. Two things do not go with it: dynamic quantisation picks layers
by exact type and does not know `Linear`, and a `TorchFunctionMode` sees oneDNN's product in place of `linear`.

Shape legend: I = inputs, O = outputs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

LEAST_WORK = 40_000_000
"""Multiplications of a product below which the longer way to oneDNN costs more than it saves."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: [..., I], [O, I], [O] -> [..., O]."""
    if _suits_onednn(x, weight, bias):
        return _OneDnnLinear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
    return nn.functional.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def _suits_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    # sizes come last: a compiler that traces them would guard on them
    return (
        not _is_watched()
        and all(tensor is None or _is_plain(tensor) for tensor in (x, weight, bias))
        and x.ndim > 1
        and weight.shape[1:] == x.shape[-1:]
        and x.numel() * weight.shape[0] >= LEAST_WORK
        and (bias is None or bias.shape == weight.shape[:1])
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.is_cpu
        and tensor.dtype == torch.float32
        and tensor.layout == torch.strided
        and type(tensor) in (Tensor, nn.Parameter)
    )


def _is_watched() -> bool:
    """Whether something looks at, replaces or forbids the operations that run now."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or not torch._C._get_mkldnn_enabled()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        # oneDNN takes a bias for contiguous, whatever its strides say
        return _product(x.contiguous(), weight, None if bias is None else bias.contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        gradient = gradients[0].contiguous()
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_input = None
        if of_x:
            # recorded for a second derivative, batched, or without oneDNN: torch's own operations
            plain = torch.is_grad_enabled() or _is_watched()
            of_input = gradient @ weight if plain else _product(gradient, weight.t())
        return (
            of_input,
            rows.t() @ x.reshape(-1, x.shape[-1]) if of_weight else None,  # oneDNN is no faster at a sum over rows
            rows.sum(dim=0) if of_bias else None,
        )
