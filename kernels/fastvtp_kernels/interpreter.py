"""Triton's CPU interpreter: whether it is on, and the repair without which its bfloat16 results are silently wrong.

Triton 3.6 to 3.8 keep bfloat16 values in the interpreter as uint16 bit patterns and compute on the patterns: a dot is
off by 1e10 and casts truncate (triton-lang/triton#11584). A GPU multiplies exactly, accumulates in float32 and rounds
to nearest even; so does the repaired interpreter.
"""

import functools
import os
from collections.abc import Callable
from typing import Any


def interpreting() -> bool:
    """Tell whether kernels run on CPU tensors: TRITON_INTERPRET=1, set before the first kernel is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


@functools.cache
def fix_interpreter_bf16() -> None:
    """Make the interpreter compute bfloat16 in float32 and round each result to nearest even. Idempotent.

    Covers arithmetic, comparisons, casts and tl.dot. Reductions and atomics on bfloat16 stay wrong: kernels cast to
    float32 first.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    comparisons = (np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal)
    builder = interpreter.InterpreterBuilder

    def is_bf16(value: Any) -> bool:
        return isinstance(value, interpreter.TensorHandle) and value.dtype.scalar == tl.bfloat16

    def widen(value: Any) -> Any:
        if not is_bf16(value):
            return value
        bits = np.asarray(value.data, dtype=np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def narrow(handle: Any) -> Any:
        values = np.ascontiguousarray(handle.data, dtype=np.float32)
        bits = values.view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet_nan = np.uint64(0x7FC0)
        data = np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16).reshape(np.shape(handle.data))
        return interpreter.TensorHandle(data, tl.bfloat16)

    def repaired(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def compute(self: Any, *operands: Any) -> Any:
            result = method(self, *map(widen, operands))
            compares = any(operand is ufunc for operand in operands for ufunc in comparisons)
            rounds = any(map(is_bf16, operands)) and not compares and result.dtype.scalar == tl.float32
            return narrow(result) if rounds else result

        return compute

    dot, cast = builder.create_dot, builder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, accumulator: Any, *rest: Any) -> Any:
        # The accumulator keeps its own dtype: unlike arithmetic, nothing is rounded to the operands'.
        return dot(self, widen(a), widen(b), accumulator, *rest)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if is_bf16(source) and target.scalar == tl.bfloat16:
            return source
        if target.scalar != tl.bfloat16:
            wide = widen(source)
            return wide if is_bf16(source) and target.scalar == tl.float32 else cast(self, wide, target)
        return narrow(source)

    replaced = {
        name: repaired(getattr(builder, name)) for name in ("binary_op", "unary_op", "ternary_op", "create_fma")
    }
    for name, method in {**replaced, "create_dot": create_dot, "cast_impl": cast_impl}.items():
        setattr(builder, name, method)
