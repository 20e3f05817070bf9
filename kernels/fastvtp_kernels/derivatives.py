"""Which derivatives kernels have: the first ones, in reverse mode. Whatever else is asked for is refused by name.

torch.autograd and torch.func see an op with kernels as one `Function` of this module, wherever it is defined.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad

_functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
_transforming: Callable[[], bool] = torch._C._are_functorch_transforms_active  # pyright: ignore

_INSTEAD = "backend='specification' has every derivative, in plain PyTorch and with all intermediates in memory"
_SECOND = "a second derivative"


class DerivativeError(NotImplementedError):
    """Raised where a derivative is asked for that an op does not have."""


def _refusal(op: str, what: str, instead: str) -> DerivativeError:
    return DerivativeError(f"{op} has first derivatives in reverse mode alone, and {what} is asked for; {instead}")


def transforming() -> bool:
    """Tell whether a transform of torch.func (grad, vmap, jvp, ...) is looking at what runs."""
    return _transforming()


def is_wrapped(x: Tensor) -> bool:
    """Tell whether a transform of torch.func has wrapped the tensor."""
    return _functorch.is_functorch_wrapped_tensor(x)


def wants_gradient(x: Tensor) -> bool:
    """Tell whether a gradient of x may be asked for; a transform may hide that it is."""
    return torch.is_grad_enabled() and (x.requires_grad or (not torch.compiler.is_compiling() and transforming()))


def beyond_reverse(inputs: Sequence[Any]) -> bool:
    """Tell whether more may be asked for of a function of these inputs than a first derivative in reverse mode.

    Whether the backward pass of a graph will be differentiated itself is only known when that runs, and not told here.
    """
    if torch.compiler.is_compiling() or (forward_ad._current_level < 0 and not transforming()):
        return False
    found = _orders([x for x in inputs if isinstance(x, Tensor)])
    return found.forward or found.reverse > 1


class _Orders(NamedTuple):
    """Whether tangents are carried along, and how many keep a graph, one inside the other."""

    forward: bool
    reverse: int


def _orders(tensors: list[Tensor]) -> _Orders:
    layer = _functorch.peek_interpreter_stack()
    if layer is None:
        carried = forward_ad._current_level >= 0 and any(_has_tangent(x) for x in tensors)
        return _Orders(carried, int(any(x.requires_grad for x in tensors)))
    mine = [is_wrapped(x) and _functorch.maybe_get_level(x) == layer.level() for x in tensors]
    own = [x for x, wrapped in zip(tensors, mine, strict=True) if wrapped]
    kinds = _functorch.TransformType
    forward = layer.key() == kinds.Jvp and any(_has_tangent(x) for x in own)
    reverse = layer.key() == kinds.Grad and any(x.requires_grad for x in own)
    with temporarily_pop_interpreter_stack():
        below = [_functorch.get_unwrapped(x) if wrapped else x for x, wrapped in zip(tensors, mine, strict=True)]
        others = _orders(below)
    return _Orders(forward or others.forward, reverse + others.reverse)


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None


def refuse_forward_mode(op: str, inputs: Sequence[Any], instead: str = _INSTEAD) -> None:
    """Raise DerivativeError if any of the inputs of `op` carries a tangent."""
    if torch.compiler.is_compiling() or (forward_ad._current_level < 0 and not transforming()):
        return
    if _orders([x for x in inputs if isinstance(x, Tensor)]).forward:
        raise _refusal(op, "a forward-mode derivative", instead)


def first_alone(op: str, backward: Callable[..., Any], instead: str = _INSTEAD) -> Callable[..., Any]:
    """Return a backward pass that raises DerivativeError where its results are to be differentiated in their turn.

    It raises at once. An error left in the graph would be passed by: torch.autograd.grad runs only what lies on the way
    to the inputs it is given, and nothing leads there from a result that was computed without a graph.
    """

    def once(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            raise _refusal(op, f"{_SECOND} (create_graph=True)", instead)
        return backward(ctx, *grads)

    return once


class _Alarm(torch.autograd.Function):
    """Returns its second argument. Whoever differentiates it by that, or by the tensors after, gets the first."""

    generate_vmap_rule = True

    @staticmethod
    def forward(error: DerivativeError, result: Tensor, *anchors: Tensor) -> Tensor:
        return result.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.error = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise ctx.error

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        raise ctx.error


class _Gate(torch.autograd.Function):
    """Returns the tensors after its first argument, the error of those who differentiate their gradients.

    Transforms of torch.func keep a graph of every backward pass, whether or not anybody will use it: they are answered
    when somebody does. For that the inputs are kept.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(error: DerivativeError, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.clone() for x in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.error = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        return None, *(_Alarm.apply(ctx.error, x, *inputs) for x in grads)


def _through_gate(error: DerivativeError, inputs: Sequence[Any]) -> list[Any]:
    places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.is_floating_point()]
    passed = list(inputs)
    found: Any = _Gate.apply(error, *(inputs[i] for i in places))
    for place, x in zip(places, found, strict=True):
        passed[place] = x
    return passed


def eager_function(
    op: str,
    forward: Callable[..., Any],
    setup_context: Callable[..., Any],
    backward: Callable[..., Any],
    instead: str = _INSTEAD,
) -> Callable[..., Any]:
    """Return `forward` with its gradient for eager code without transforms of torch.func; arguments as of `function`.

    It has no `setup_context` of its own: torch would bind the arguments of every call to a signature.
    """
    once = first_alone(op, backward, instead)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = forward(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return once(ctx, *grads)

    return Eager.apply


def function(
    op: str,
    forward: Callable[..., Any],
    setup_context: Callable[..., Any],
    backward: Callable[..., Any],
    instead: str = _INSTEAD,
) -> Callable[..., Any]:
    """Return `forward` with its gradient, as autograd and the transforms of torch.func take it.

    Args:
        op: the public name, for messages.
        forward: returns a tensor or a tuple of tensors; not run for its graph.
        setup_context: what torch.autograd.Function.setup_context takes.
        backward: the gradients of all arguments from those of the results, as torch.autograd.Function.backward.
        instead: what to do where more is asked for, for messages.
    """

    once = first_alone(op, backward, instead)
    eager = eager_function(op, forward, setup_context, backward, instead)

    class Ordinary(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> Any:
            return forward(*inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            setup_context(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return once(ctx, *grads)

    class Transformed(Ordinary):
        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            with torch.no_grad():
                return backward(ctx, *grads)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
            def sample(number: int) -> list[Any]:
                return [
                    x.select(dim, number) if isinstance(x, Tensor) and dim is not None else x
                    for x, dim in zip(inputs, in_dims, strict=True)
                ]

            found = [call(*sample(number)) for number in range(info.batch_size)]
            if isinstance(found[0], Tensor):
                return torch.stack(found), 0
            return tuple(torch.stack(x) for x in zip(*found, strict=True)), (0,) * len(found[0])

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return Ordinary.apply(*inputs)
        refuse_forward_mode(op, inputs, instead)
        if not transforming():
            return eager(*inputs)
        return Transformed.apply(*_through_gate(_refusal(op, _SECOND, instead), inputs))

    return call


def for_every_caller(
    op: str,
    registered: Callable[..., Any],
    setup_context: Callable[..., Any],
    backward: Callable[..., Any],
    instead: str = _INSTEAD,
) -> Callable[..., Any]:
    """Return `registered`, an op of torch's dispatcher with this gradient; transforms of torch.func, which find no
    gradient there, get a `function` in its place. Derivatives beyond the first are refused in the name of `op`."""
    differentiable = function(op, registered, setup_context, backward, instead)

    def call(*inputs: Any) -> Any:
        if not transforming():
            refuse_forward_mode(op, inputs, instead)
            return registered(*inputs)
        if torch.compiler.is_compiling():
            raise DerivativeError(
                f"{op}: transforms of torch.func are not compiled; compile what they transform instead"
            )
        return differentiable(*inputs)

    return call


def refusing(
    op: str, run: Callable[..., Any], complete: Callable[..., bool] = lambda *inputs: False
) -> Callable[..., Any]:
    """Return `run`, which leaves derivatives to kernels of others, as an implementation of `op` that refuses the ones
    which those lack.

    `complete` tells of the arguments, tensors first, whether they have all derivatives.
    """

    def keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        return None

    pass_on = function(op, lambda *xs: tuple(x.view_as(x) for x in xs), keep_nothing, lambda ctx, *grads: grads)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() or complete(*inputs):
            return run(*inputs)
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        refuse_forward_mode(op, tensors)
        if transforming():
            return run(*_through_gate(_refusal(op, _SECOND, _INSTEAD), inputs))
        if not any(wants_gradient(x) for x in tensors):
            return run(*inputs)
        return run(*pass_on(*tensors), *inputs[len(tensors) :])

    return call
