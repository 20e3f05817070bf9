"""Makes variants of an op's functions (its backends, compiled forms), and holds them against the truth in float64."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastvtp_kernels.dispatch import backends

from .case import Missing, Options
from .record import Direction
from .timing import Function

# Largest difference from the float64 truth, as a fraction of its largest value.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def compiled(function: Callable[..., Any], options: Options) -> Callable[..., Any]:
    """Return the function under torch.compile; in a smoke run it is only traced, for lowering it would take minutes."""
    return torch.compile(function, dynamic=False, backend="aot_eager" if options.smoke else "inductor")


def op_variants(op: str, call: Callable[..., Any], options: Options) -> dict[str, Callable[..., Any] | Missing]:
    """Return the op through each of its backends, which `call` takes as the keyword `backend`."""
    reference = partial(call, backend="reference")
    (found,) = (found for found in backends(op, options.device) if found.backend == "triton")
    triton = partial(call, backend="triton") if found.available else Missing(found.reason)
    if found.available and options.device.type == "cpu" and not options.smoke:
        triton = Missing("Triton's interpreter would take hours at this size; --smoke runs it")
    return {"reference": reference, "compiled reference": compiled(reference, options), "triton": triton}


def bind(
    functions: dict[str, Callable[..., Tensor] | Missing],
    truth: Callable[..., Tensor],
    leaves: Sequence[Tensor],
    direction: Direction,
) -> tuple[dict[str, Function | Missing], Callable[[Any], float]]:
    """Turn functions of the leaves into calls without arguments; return them and the error of what they return.

    Forward, a call returns the output, without autograd. Forward and backward, it returns the output and the gradient
    of each leaf, for one random incoming gradient. The truth is what `truth` makes of the leaves in float64.
    """
    leaves = [leaf.detach().requires_grad_(direction == "forward+backward") for leaf in leaves]
    exact_leaves = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves]
    with torch.no_grad():
        output = truth(*leaves)
    incoming = torch.randn_like(output) if output.ndim else torch.ones_like(output)

    def run(function: Callable[..., Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if direction == "forward":
            with torch.no_grad():
                return (function(*leaves),)
        output = function(*leaves)
        return (output.detach(), *torch.autograd.grad(output, leaves, incoming.to(output.dtype)))

    variants: dict[str, Function | Missing] = {
        name: function if isinstance(function, Missing) else partial(run, function, leaves)
        for name, function in functions.items()
    }
    return variants, partial(relative_error, expected=run(truth, exact_leaves))


def relative_error(output: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest max|output - expected| / max|expected| of the tensors; a wrong shape or a NaN is infinite."""
    worst = 0.0
    for actual, exact in zip(output, expected, strict=True):
        if actual.shape != exact.shape or not actual.isfinite().all():
            return float("inf")
        difference, scale = (actual.double() - exact).abs().max().item(), exact.abs().max().item()
        worst = max(worst, difference / max(scale, torch.finfo(torch.float32).tiny))
    return worst
