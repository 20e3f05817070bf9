"""Runs every variant of every op's cases, in smoke shapes, under pytest-benchmark.

`pytest benchmarks/ --benchmark-only` times them, on CUDA where there is one. For figures to keep, use the command line
of the files.
"""

import importlib

import pytest
import torch

from benchmarks.harness.case import Case, Missing, Options
from benchmarks.harness.command import DTYPES
from fastvtp_kernels.ops import OPS

pytest.importorskip("pytest_benchmark")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OPTIONS = Options(DEVICE, DTYPES["bfloat16" if DEVICE.type == "cuda" else "float32"], smoke=True)
MODULES = [importlib.import_module(f"benchmarks.ops.{name}") for name in OPS]
CASES = [factory() for module in MODULES for factory in module.cases(OPTIONS)]


@pytest.mark.parametrize(
    ("case", "variant"),
    [
        pytest.param(case, variant, id=f"{case.op}, {case.name}, {case.direction}, {variant}")
        for case in CASES
        for variant in case.variants
    ],
)
def test_variant(benchmark, case: Case, variant: str):
    """Check that the variant is right, then time it."""
    function = case.variants[variant]
    if isinstance(function, Missing):
        pytest.skip(function.reason)
    benchmark.group = f"{case.op}, {case.name}, {case.direction}"
    torch.compiler.reset()

    def call() -> object:
        output = function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return output

    assert case.error(call()) <= case.tolerance
    benchmark(call)
