"""What every kernel test uses: the tolerance law, the specifications, poisoned memory, bfloat16 in the interpreter."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from . import dispatch
from .interpreter import fix_interpreter_bf16
from .unit_errors import Ran

__all__ = ["assert_within_tolerance", "fix_interpreter_bf16", "poisoned_empty", "tiny", "truths"]


def tiny(dtype: torch.dtype, magnitude: float) -> float:
    """Return two rounding steps of `dtype` at the given magnitude: what chance decides when few values are compared."""
    info = torch.finfo(dtype)
    return 2 * info.eps * max(magnitude, info.tiny)


def assert_within_tolerance(
    name: str,
    actual: Tensor,
    reference_same_dtype: Tensor,
    reference_float64: Tensor,
    units: Tensor | float = 0.0,
) -> None:
    """Check the tolerance law: |actual - ref64| <= 2 * max|ref_same_dtype - ref64| + tiny(dtype, max|ref64|) + units.

    A kernel may be at most twice as wrong as plain PyTorch in the kernel's own dtype, whatever the inputs, and besides
    by what the device's exponential, logarithm, division and square root may add to each element: there is no tolerance
    to choose. What is right is the specification in float64.

    Args:
        name: of the tensor, for the message ("output", "grad of weight").
        actual: the result under test.
        reference_same_dtype: plain PyTorch's result in the dtype of `actual`, on the same inputs.
        reference_float64: the specification's result in float64 on the same inputs, converted exactly.
        units: a bound on the errors of approximate units, from `unit_errors`; of each element, or of all.

    Raises:
        AssertionError: shape or dtype differ, a value is not finite, or the law is broken (naming the worst element).
        ValueError: reference_float64 is not float64, or a reference is not finite.
    """
    if reference_float64.dtype != torch.float64:
        raise ValueError(f"{name}: reference_float64 is {reference_float64.dtype}, expected torch.float64")
    for kind, tensor in (("actual", actual), ("reference_same_dtype", reference_same_dtype)):
        if tensor.shape != reference_float64.shape:
            raise AssertionError(f"{name}: {kind} has shape {list(tensor.shape)}, not {list(reference_float64.shape)}")
        if tensor.dtype != actual.dtype:
            raise AssertionError(f"{name}: {kind} is {tensor.dtype}, not {actual.dtype}")
    exact = reference_float64.detach().cpu()
    if exact.numel() == 0:
        return
    error, reference_error = (
        (tensor.detach().cpu().double() - exact).abs() for tensor in (actual, reference_same_dtype)
    )
    if not reference_error.isfinite().all():
        raise ValueError(f"{name}: a reference holds values that are not finite; the law cannot be applied")
    # A value that is not finite is worse than any error.
    error = error.nan_to_num(nan=float("inf"))
    of_units = torch.as_tensor(units, dtype=torch.float64, device="cpu").detach().expand(exact.shape)
    allowances = 2 * reference_error.max().item() + tiny(actual.dtype, exact.abs().max().item()) + of_units
    worst = int((error - allowances).argmax())
    allowed = allowances.flatten()[worst].item()
    if error.flatten()[worst] > allowed:
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), exact.shape))
        raise AssertionError(
            f"{name}: {actual.flatten()[worst].item():.9g} at {index}, expected {exact.flatten()[worst].item():.9g}: "
            f"error {error.flatten()[worst].item():.3g}, allowed {allowed:.3g} in {actual.dtype} "
            f"(the reference's own error is {reference_error.max().item():.3g}, "
            f"that of approximate units {of_units.flatten()[worst].item():.3g})"
        )


@contextmanager
def truths() -> Iterator[list[Ran]]:
    """Within the context backend="reference" runs each op's specification (reference.py) itself, however slow.

    Yields a list that each run is appended to, for `unit_errors.carried`.
    """
    runs: list[Ran] = []

    def recorded(op: str) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            result = dispatch._truths[op](*inputs)
            runs.append(Ran(op, inputs, result if isinstance(result, Tensor) else result[0]))
            return result

        return run

    with ExitStack() as stack:
        for op in dispatch.ops():
            stack.enter_context(patch.dict(dispatch._implementations[op], reference=recorded(op)))
        yield runs


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Within the context torch.empty, empty_like, empty_strided and Tensor.new_empty return filled memory.

    Floating-point memory is NaN, integers are their largest value, booleans True: an output element that a kernel
    forgot to write cannot pass for a right one.
    """

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point() or tensor.is_complex():
                fill: float | int = float("nan")
            else:
                fill = 1 if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max
            with torch.no_grad():
                return tensor.fill_(fill)

        return wrapper

    with (
        patch.object(torch, "empty", poisoned(torch.empty)),
        patch.object(torch, "empty_like", poisoned(torch.empty_like)),
        patch.object(torch, "empty_strided", poisoned(torch.empty_strided)),
        patch.object(Tensor, "new_empty", poisoned(Tensor.new_empty)),
    ):
        yield
