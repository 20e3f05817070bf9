"""What a benchmark file builds: cases, their variants, and what their work costs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .record import Direction
from .timing import Function


@dataclass(frozen=True)
class Missing:
    """A variant that cannot run here."""

    reason: str


@dataclass(frozen=True)
class Cost:
    """Useful work of an op: each needed input byte read once, each output byte written once, and the FLOP."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Options:
    """What a benchmark file builds its cases from. Of training steps alone: batch, clips of one (None: as many as the
    case wants); optimizer, whether its step is timed too."""

    device: torch.device
    dtype: torch.dtype
    smoke: bool = False
    batch: int | None = None
    optimizer: bool = True

    def clips(self, *, cpu: int, cuda: int, smoke: int) -> int:
        """Clips of a batch."""
        return self.batch or (smoke if self.smoke else cuda if self.device.type == "cuda" else cpu)


@dataclass(frozen=True)
class Case:
    """Variants of one op on the same inputs.

    error: of a variant's output; above `tolerance` (or NaN) the variant is wrong. baseline: the variant that speedups
    refer to.
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
