"""Entering ops into torch's dispatcher, so that compilers, tracers and profilers see one node with a known shape."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from .derivatives import eager_function, first_alone, for_every_caller, transforming
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
    op: Callable[..., Any],
    setup_context: Callable[..., Any],
    backward: Callable[..., tuple[Any, ...]],
    public: str | None = None,
) -> Callable[..., Any]:
    """Give an op of `define_op` its gradient, and return what is called in its place.

    Args:
        op: what `define_op` returned.
        setup_context: as for torch.library.register_autograd.
        backward: as for torch.library.register_autograd. The kernels have no other derivatives: forward mode, and
            gradients of gradients, raise `derivatives.DerivativeError`.
        public: the name by which users know the op, if it is another.
    """
    name = _name(op)
    public = public or name
    torch.library.register_autograd(
        f"fastvtp::{name}", first_alone(public, backward), setup_context=setup_context, lib=_LIBRARY
    )
    return for_every_caller(public, op, setup_context, backward)


def _name(op: Callable[..., Any]) -> str:
    return str(op).removeprefix("fastvtp.").removesuffix(".default")


def _is_plain(values: tuple[Any, ...]) -> bool:
    """Tell whether nothing but autograd looks at a call: all tensors are CUDA tensors, no compiler, mode or
    transform."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or transforming():
        return False
    if forward_ad._current_level >= 0:
        return False
    # A loop: this is asked of every call, and a generator takes as long as ten values.
    for value in values:
        if type(value) in _PLAIN:
            if not value.is_cuda:
                return False
        elif isinstance(value, torch.Tensor):
            return False
    return True


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def shortcut(
    op: Callable[..., Any],
    setup_context: Callable[..., Any] | None = None,
    backward: Callable[..., tuple[Any, ...]] | None = None,
    public: str | None = None,
) -> Callable[..., Any]:
    """Return `op`, without the way through the dispatcher where nobody but autograd would notice.

    In eager mode on CUDA tensors that way takes several times as long as a short kernel. The other arguments are those
    of `define_gradient`, which it calls; an op without a gradient has none.
    """
    launch = _launches[op]
    if setup_context is None or backward is None:
        return lambda *inputs: launch(*inputs) if _is_plain(inputs) else op(*inputs)
    otherwise = define_gradient(op, setup_context, backward, public)
    eager = eager_function(public or _name(op), launch, setup_context, backward)

    def call(*inputs: Any) -> Any:
        if not _is_plain(inputs):
            return otherwise(*inputs)
        if torch.is_grad_enabled():
            for value in inputs:
                if isinstance(value, torch.Tensor) and value.requires_grad:
                    return eager(*inputs)
        return launch(*inputs)

    return call
