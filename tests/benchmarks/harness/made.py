"""A made-up case: variants that are right, wrong, missing or failing, and how long the right ones take."""

from typing import Any, ClassVar

import torch

from benchmarks.harness.case import Case, Cost, Missing
from benchmarks.harness.timing import Ceilings, Timing
from fastvtp_kernels import BackendUnavailableError

CPU = torch.device("cpu")
CEILINGS = Ceilings(bytes_per_s=100.0, flops_per_s=1000.0)


def unavailable() -> object:
    raise BackendUnavailableError("no such chip")


def failing() -> object:
    raise RuntimeError("out of luck\nand more")


class FixedTimer:
    """Knows how long the right variants take, and no others."""

    seconds: ClassVar = {"usual": 8.0, "right": 2.0}

    def time(self, variants: dict[str, Any], seconds: float) -> dict[str, Timing]:
        return {name: Timing(self.seconds[name], p20=1, p80=9, wall=10, calls=7) for name in variants}


VARIANTS: dict[str, Any] = {
    "usual": lambda: 0.0,
    "right": lambda: 0.5,
    "wrong": lambda: 0.6,
    "not a number": lambda: float("nan"),
    "far off": lambda: float("inf"),
    "absent": Missing("not installed"),
    "unavailable": unavailable,
    "failing": failing,
}
CASE = Case(
    op="op",
    name="one",
    direction="forward",
    shape={"batch": 1},
    dtype=torch.float32,
    device=CPU,
    cost=Cost(100, 500),
    variants=VARIANTS,
    baseline="usual",
    error=lambda output: output,
    tolerance=0.5,
)
