"""A benchmark file builds cases: variants of one op on the same inputs, and what their work costs at least."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .record import Direction
from .timing import Function


@dataclass(frozen=True)
class Missing:
    """Missing stands in the place of a variant that cannot run here, and says why."""

    reason: str


@dataclass(frozen=True)
class Cost:
    """An op's cost is its useful work: each needed input byte read once, each output byte written once, the FLOP."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Options:
    """The options say on which device, in which dtype and in which size a benchmark builds its cases.

    Training steps alone read the last two: `batch` is the number of clips of a step (None: as many as the case wants),
    `optimizer` says whether the optimizer's step is timed too.
    """

    device: torch.device
    dtype: torch.dtype
    smoke: bool = False
    batch: int | None = None
    optimizer: bool = True

    def clips(self, *, cpu: int, cuda: int, smoke: int) -> int:
        """Return how many clips a batch has: what was asked for, or what suits the device."""
        return self.batch or (smoke if self.smoke else cuda if self.device.type == "cuda" else cpu)


@dataclass(frozen=True)
class Case:
    """A case holds the variants of one op on the same inputs, and knows which of their outputs are right.

    `error` judges what a variant returns: above `tolerance`, or where it is NaN, the variant is wrong. Speedups refer
    to the variant named `baseline`.
    """

    op: str
    name: str
    direction: Direction
    shape: dict[str, int]
    dtype: torch.dtype
    device: torch.device
    cost: Cost
    variants: dict[str, Function | Missing]
    baseline: str
    error: Callable[[Any], float]
    tolerance: float


CaseFactory = Callable[[], Case]
