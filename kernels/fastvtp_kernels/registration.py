"""Entering ops into torch's dispatcher, so that compilers, tracers and profilers see one node with a known shape."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .interpreter import interpreting

_LIBRARY = torch.library.Library("fastvtp", "DEF")
_launches: dict[Callable[..., Any], Callable[..., Any]] = {}
_references: dict[str, Callable[..., Any]] = {}


def launcher(module: str, name: str) -> Callable[..., Any]:
    """Return the function `name` of the `kernels` beside a module, imported when first called: ops must import without
    Triton."""

    @functools.cache
    def load() -> Callable[..., Any]:
        return getattr(importlib.import_module(module.rpartition(".")[0] + ".kernels"), name)

    return lambda *args: load()(*args)


def define_op(
    schema: str,
    *,
    launch: Callable[..., Any],
    reference: Callable[..., Any],
    fake: Callable[..., Any],
) -> Callable[..., Any]:
    """Define `fastvtp::<schema>` and return its callable.

    Args:
        schema: "name(Tensor x, ...) -> Tensor"; the op mutates nothing and its results alias nothing.
        launch: runs the kernels. Called for CUDA tensors, and for CPU tensors under Triton's interpreter.
        reference: the same in plain PyTorch, for CPU tensors otherwise.
        fake: the result's shape, dtype and device from those of the arguments.
    """
    name = schema.split("(", 1)[0]

    def on_cpu(*args: Any) -> Any:
        return launch(*args) if interpreting() else reference(*args)

    _LIBRARY.define(schema)
    _LIBRARY.impl(name, launch, "CUDA")
    _LIBRARY.impl(name, on_cpu, "CPU")
    torch.library.register_fake(f"fastvtp::{name}", fake, lib=_LIBRARY)
    op = getattr(torch.ops.fastvtp, name).default
    _launches[op], _references[name] = launch, reference
    return op


def defined() -> dict[str, Callable[..., Any]]:
    """Return every op of `define_op` by its name in torch.ops.fastvtp, with its plain PyTorch."""
    return dict(_references)


def define_gradient(
    op: Callable[..., Any], setup_context: Callable[..., Any], backward: Callable[..., tuple[Any, ...]]
) -> None:
    """Give an op of `define_op` its gradient; the arguments are those of torch.library.register_autograd.

    Asking for the gradient of that gradient raises: the kernels have no second derivatives.
    """
    name = str(op).removesuffix(".default").replace(".", "::")
    torch.library.register_autograd(name, once_differentiable(backward), setup_context=setup_context, lib=_LIBRARY)


def _is_plain(values: tuple[Any, ...]) -> bool:
    """Tell whether nothing but autograd looks at a call: all tensors are CUDA tensors, no compiler, mode or
    transform."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or _transforms() is not None:
        return False
    return all(value.is_cuda and type(value) in _PLAIN for value in values if isinstance(value, torch.Tensor))


_PLAIN = (torch.Tensor, torch.nn.Parameter)
_transforms = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]


def shortcut(
    op: Callable[..., Any],
    setup_context: Callable[..., Any] | None = None,
    backward: Callable[..., tuple[Any, ...]] | None = None,
) -> Callable[..., Any]:
    """Return `op`, without the way through the dispatcher where nobody but autograd would notice.

    In eager mode on CUDA tensors that way takes several times as long as a short kernel. The other arguments are those
    of `define_gradient`; an op without a gradient has none.
    """
    launch = _launches[op]

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            assert setup_context is not None
            output = launch(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            assert backward is not None
            return backward(ctx, *grads)

    def call(*inputs: Any) -> Any:
        if not _is_plain(inputs):
            return op(*inputs)
        if (
            backward is not None
            and torch.is_grad_enabled()
            and any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs)
        ):
            return Eager.apply(*inputs)
        return launch(*inputs)

    return call
