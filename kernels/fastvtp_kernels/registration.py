"""Entering ops into torch's dispatcher, so that compilers, tracers and profilers see one node with a known shape."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .interpreter import interpreting

_LIBRARY = torch.library.Library("fastvtp", "DEF")


def launcher(module: str, name: str) -> Callable[..., Any]:
    """Function `name` of the `kernels` beside a module, imported when first called: ops must import without Triton."""

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
    return getattr(torch.ops.fastvtp, name).default


def define_gradient(
    op: Callable[..., Any], setup_context: Callable[..., Any], backward: Callable[..., tuple[Any, ...]]
) -> None:
    """Give an op of `define_op` its gradient; the arguments are those of torch.library.register_autograd.

    Asking for the gradient of that gradient raises: the kernels have no second derivatives.
    """
    name = str(op).removesuffix(".default").replace(".", "::")
    torch.library.register_autograd(name, once_differentiable(backward), setup_context=setup_context, lib=_LIBRARY)
