"""bfloat16 in Triton's interpreter, repaired, against torch bit for bit."""
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false
# (The body of a @triton.jit function is Triton's language, which looks like Python.)

import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton")
import numpy as np
import torch
import triton
import triton.language as tl
from triton import knobs
from triton.runtime import interpreter as triton_interpreter

from fastvtp_kernels.interpreter import fix_interpreter_bf16, interpreting

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities and NaNs
needs_interpreter = pytest.mark.skipif(not interpreting(), reason="kernels run on the GPU")
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def repaired():
    fix_interpreter_bf16()


def every_bf16():
    """All 65536 bit patterns."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(BF16)


def operands(count=4096, seed=0):
    """Random bit patterns in pairs: numbers of every size, both zeros, infinities and NaNs; then numbers near 1."""
    generator = torch.Generator().manual_seed(seed)
    patterns = every_bf16()[torch.randint(0, 2**16, (count // 2,), generator=generator)]
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1.0], dtype=BF16)
    pairs = torch.cartesian_prod(special, special)[:, seed % 2]
    numbers = torch.randn(count - len(patterns) - len(pairs), generator=generator).to(BF16)
    return torch.cat([patterns, pairs, numbers])


def assert_same_bits(actual, expected):
    """NaN equals NaN, whatever its payload; +0 and -0 differ."""
    assert actual.dtype == expected.dtype
    nan = expected.isnan()
    assert torch.equal(actual.isnan(), nan)
    assert torch.equal(actual[~nan], expected[~nan])
    assert torch.equal(actual[~nan].signbit(), expected[~nan].signbit())


def launch(kernel: Any, *args: Any, **constants: Any) -> None:
    """One program. Nothing is known of a kernel's type: its arguments are not what its annotations say."""
    kernel[(1,)](*args, **constants)


@triton.jit
def _combine(x_ptr, y_ptr, out_ptr, OPERATION: tl.constexpr, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    x, y = tl.load(x_ptr + place), tl.load(y_ptr + place)
    if OPERATION == "+":
        result = x + y
    elif OPERATION == "-":
        result = x - y
    elif OPERATION == "*":
        result = x * y
    elif OPERATION == "/":
        result = x / y
    elif OPERATION == "max":
        result = tl.maximum(x, y)
    elif OPERATION == "min":
        result = tl.minimum(x, y)
    elif OPERATION == "fma":
        result = tl.fma(x, y, x)
    elif OPERATION == "where":
        result = tl.where(x > y, x, -y)
    elif OPERATION == "abs":
        result = tl.abs(x)
    elif OPERATION == "<":
        result = x < y
    elif OPERATION == "<=":
        result = x <= y
    elif OPERATION == ">":
        result = x > y
    elif OPERATION == ">=":
        result = x >= y
    elif OPERATION == "==":
        result = x == y
    else:
        result = x != y
    tl.store(out_ptr + place, result)


# From 3.8 on the interpreter takes the other operand of a NaN, as a GPU does, and its negation turns 0 into -0.
LIKE_A_GPU = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 8)


def of_numpy(function):
    """numpy's function in float32: torch's own disagree on NaN, or on which of two zeros is the larger."""
    return lambda x, y: torch.from_numpy(function(x.float().numpy(), y.float().numpy())).to(BF16)


ARITHMETIC = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
    "max": of_numpy(np.fmax) if LIKE_A_GPU else torch.maximum,
    "min": of_numpy(np.fmin) if LIKE_A_GPU else torch.minimum,
    "fma": lambda x, y: (x.float() * y.float() + x.float()).to(BF16),
    "where": lambda x, y: torch.where(x > y, x, -y if LIKE_A_GPU else 0 - y),
    "abs": lambda x, _: x.abs(),
}
COMPARISONS = {"<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge, "==": torch.eq, "!=": torch.ne}


@needs_interpreter
@pytest.mark.parametrize("operation", ARITHMETIC)
def test_arithmetic_is_that_of_float32_rounded_to_nearest_even(operation):
    x, y = operands(), operands(seed=1)
    result = torch.empty_like(x)
    launch(_combine, x, y, result, operation, COUNT=len(x))
    assert_same_bits(result, ARITHMETIC[operation](x, y))


@needs_interpreter
@pytest.mark.parametrize("operation", COMPARISONS)
def test_comparisons(operation):
    x, y = operands(), operands(seed=1)
    y[::3] = x[::3]
    result = torch.empty(len(x), dtype=torch.int32)
    launch(_combine, x, y, result, operation, COUNT=len(x))
    assert torch.equal(result, COMPARISONS[operation](x, y).int())


@triton.jit
def _cast(source_ptr, target_ptr, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    tl.store(target_ptr + place, tl.load(source_ptr + place).to(target_ptr.dtype.element_ty))


def cast(values, dtype):
    result = torch.empty(len(values), dtype=dtype)
    launch(_cast, values, result, COUNT=len(values))
    return result


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, BF16], ids=str)
def test_casts_to_floating_point(dtype):
    assert_same_bits(cast(every_bf16(), dtype), every_bf16().to(dtype))


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64], ids=str)
def test_casts_to_integers_cut_off_the_fraction(dtype):
    information = torch.iinfo(dtype)
    values = torch.linspace(max(information.min, -(2**40)) / 1.02, min(information.max, 2**40) / 1.02, 1024).to(BF16)
    assert torch.equal(cast(values, dtype), values.to(dtype))


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_casts_from_floating_point_round_to_nearest_even(dtype):
    """All values, all midpoints between neighbours, and what lies just beside a midpoint."""
    low = every_bf16()
    low = low[low.isfinite()].double()
    spacing = torch.ldexp(torch.ones_like(low), torch.frexp(low).exponent.clamp(min=-125) - 8)
    chosen = torch.cat([low + part * spacing for part in (0, 0.25, 0.5, 0.5 - 2**-10, 0.5 + 2**-10, 0.75)])
    chosen = torch.cat([chosen.to(dtype), torch.tensor([float("inf"), -float("inf"), float("nan")], dtype=dtype)])
    values = torch.zeros(1 << len(chosen).bit_length(), dtype=dtype)
    values[: len(chosen)] = chosen
    assert_same_bits(cast(values, BF16), values.to(BF16))


@needs_interpreter
def test_ties_go_to_the_even_neighbour():
    """The spacing of bfloat16 is 2^-7 above 1."""
    values = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.4e38 * (1 + 2**-9)])
    assert cast(values, BF16).tolist() == [1.0, 1 + 2**-6, -1.0, float("inf")]


@needs_interpreter
def test_nan_stays_nan_whatever_its_payload():
    """Rounding the bits of these would give infinity or zero."""
    bits = torch.tensor([0x7F800001, 0x7FFFFFFF, -0x7FFFFF, -1], dtype=torch.int32)
    assert cast(bits.view(torch.float32), BF16).isnan().all()


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64], ids=str)
def test_casts_from_integers_round_to_nearest_even(dtype):
    information = torch.iinfo(dtype)
    values = torch.linspace(information.min, information.max, 2048, dtype=torch.float64).to(dtype)
    values[:512] = torch.arange(256, 768).to(dtype)  # ties in every other place above 256
    assert_same_bits(cast(values, BF16), values.to(BF16))


@triton.jit
def _product(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr, START: tl.constexpr):
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    place = row * SIZE + column
    total = tl.full([SIZE, SIZE], START, tl.float32)
    total = tl.dot(tl.load(a_ptr + place), tl.load(b_ptr + place), total)
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty))


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_a_dot_multiplies_exactly_and_accumulates_in_float32(dtype):
    """Integers below 2^8: every product and sum is exact in float32, and most sums are not in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-255, 256, (32, 32), generator=generator).float() for _ in range(2))
    result = torch.empty(32, 32, dtype=dtype)
    launch(_product, a.to(BF16), b.to(BF16), result, SIZE=32, START=3.0)
    assert torch.equal(result, (a @ b + 3).to(dtype))


@needs_interpreter
def test_the_repair_is_made_once():
    builder = triton_interpreter.InterpreterBuilder
    before = dict(vars(builder))
    fix_interpreter_bf16()
    assert dict(vars(builder)) == before


@pytest.mark.parametrize(
    ("setting", "on"), [("1", True), ("true", True), ("ON", True), ("0", False), ("", False), (None, False)]
)
def test_interpreting_follows_the_variable_that_triton_reads(setting, on, monkeypatch):
    if setting is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", setting)
    assert interpreting() == on == knobs.runtime.interpret


UNREPAIRED = """
import torch, triton, triton.language as tl

@triton.jit
def kernel(x_ptr, sum_ptr, cast_ptr, dot_ptr):
    row, column = tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    place = row * 16 + column
    x = tl.load(x_ptr + place)
    tl.store(sum_ptr + place, x + x)
    tl.store(cast_ptr + place, (x.to(tl.float32) * 1.0078).to(tl.bfloat16))
    tl.store(dot_ptr + place, tl.dot(x, x))

x = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
results = torch.empty_like(x), torch.empty_like(x), torch.empty(16, 16)
kernel[(1,)](x, *results)
expected = x + x, (x.float() * 1.0078).bfloat16(), x.float() @ x.float()
print(*(bool(torch.isclose(a.float(), b.float(), rtol=1e-4).all()) for a, b in zip(results, expected)))
"""


def test_without_the_repair_the_interpreter_is_wrong(tmp_path):
    """When this fails, Triton has learnt bfloat16: what it now does right needs no repair any more."""
    script = tmp_path / "unrepaired.py"
    script.write_text(UNREPAIRED)
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["False", "False", "False"]
