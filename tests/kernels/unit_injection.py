"""A GPU's approximate units in Triton's interpreter: their documented errors, put into what numpy computes."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from fastvtp_kernels import unit_errors


class Unit(NamedTuple):
    """One unit of the device, where the interpreter computes what it would."""

    method: str
    """Of `triton.runtime.interpreter.InterpreterBuilder`: from operands to the result, all of them handles."""
    bound: Callable[[Any], Any]
    """The largest error of float32 results, an array."""


def _ulps(relative: float) -> Callable[[Any], Any]:
    return lambda results: relative * 2**23 * np.spacing(np.abs(results)).astype(np.float64)


UNITS = {
    "exp2": Unit("create_exp2", _ulps(unit_errors.EXP2)),
    "log2": Unit("create_log2", _ulps(unit_errors.LOG2)),
    "division": Unit("create_fdiv", _ulps(unit_errors.DIVISION)),
    "square root": Unit("create_sqrt", lambda results: unit_errors.SQUARE_ROOT * np.abs(results.astype(np.float64))),
}


def _directions(mode: str, operands: list[Any]) -> Any:
    """Numbers in [-1, 1] by which the bounds are multiplied; equal operands have equal ones."""
    if mode in ("up", "down"):
        return 1.0 if mode == "up" else -1.0
    bits = np.uint32(0)
    for operand in operands:
        # Two rounds of a multiplicative hash: neighbouring numbers err apart.
        for factor, shift in ((0x9E3779B1, 15), (0x85EBCA77, 13)):
            bits = (bits ^ operand.view(np.uint32)) * np.uint32(factor)
            bits = bits ^ (bits >> np.uint32(shift))
    uniform = bits.astype(np.float64) / 2**31 - 1
    return np.where(uniform < 0, -1.0, 1.0) if mode == "worst" else uniform


def _moved(name: str, mode: str, results: Any, operands: list[Any]) -> Any:
    moved = results + UNITS[name].bound(results) * _directions(mode, operands)
    # What the manuals list is exact: zeros, infinities, NaN, and 2^0.
    exact = ~np.isfinite(results) | (results == 0)
    if name == "exp2":
        exact |= operands[0] == 0
        moved = np.where(moved < np.finfo(np.float32).tiny, 0.0, moved)
    return np.where(exact, results, moved).astype(np.float32)


@contextmanager
def injected(mode: str) -> Iterator[Counter[str]]:
    """Within the context the units are wrong by `mode` ("worst", "uniform", "up", "down": see `device_errors`).

    Yields how many calls of each unit were changed so far.
    """
    builder, calls = interpreter.InterpreterBuilder, Counter[str]()

    def wrong(name: str, compute: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, *operands: Any) -> Any:
            result = compute(self, *operands)
            if result.dtype.scalar != tl.float32:
                return result
            calls[name] += 1
            arrays = [np.asarray(operand.data, dtype=np.float32) for operand in operands]
            with np.errstate(all="ignore"):
                moved = _moved(name, mode, np.asarray(result.data, dtype=np.float32), arrays)
            return interpreter.TensorHandle(moved, result.dtype.scalar)

        return method

    originals = {name: getattr(builder, unit.method) for name, unit in UNITS.items()}
    for name, unit in UNITS.items():
        setattr(builder, unit.method, wrong(name, originals[name]))
    try:
        yield calls
    finally:
        for name, unit in UNITS.items():
            setattr(builder, unit.method, originals[name])
