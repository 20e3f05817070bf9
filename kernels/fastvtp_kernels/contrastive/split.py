"""The tiles of `tiles.py` for float32 features: each product as three of bfloat16, on tensor cores.

A feature x is the sum of high = bfloat16(x) and low = bfloat16(x - high), to 2^-17 of its size. The product of two is
high high' + high low' + low high'; low low' is left out, which is 2^-18 of it. As the sums run over the width, that is
one product of features three times as wide: [high, high, low] with [high', low', high']. So these are the kernels of
bfloat16 features, and logits are kept in float32 as ever. Gradients of logits are stored as high and low too.
"""

import torch
from torch import Tensor

from ..precision import accumulate_product
from . import tiles
from .targets import LogSums, Shifts, Statistics, Targets

UNIT, join, join_parts, prepare, gain = tiles.UNIT, tiles.join, tiles.join_parts, tiles.prepare, tiles.gain
strip_rows = tiles.strip_rows


def parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return bfloat16 high and low, whose sum is nearly x."""
    high = x.bfloat16()
    return high, (x - high).bfloat16()


def wide(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return features three times as wide in bfloat16, [M, 3 D] and [N, 3 D], whose products are those of a and b."""
    (high, low), (other_high, other_low) = parts(a), parts(b)
    return torch.cat([high, high, low], dim=1), torch.cat([other_high, other_low, other_high], dim=1)


def shift(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """As `tiles.shift`."""
    return tiles.shift(*wide(a, b), scale)


def statistics(a: Tensor, b: Tensor, scale: Tensor, targets: Targets, shifts: Shifts) -> Statistics:
    """As `tiles.statistics`."""
    return tiles.statistics(*wide(a, b), scale, targets, shifts)


def logit_gradient(
    a: Tensor, b: Tensor, scale: Tensor, sums: LogSums, targets: Targets, shifts: Shifts
) -> tuple[Tensor, Tensor]:
    """As `tiles.logit_gradient`, the gradient as high and low: [2, M, N]."""
    return tiles.logit_gradient(*wide(a, b), scale, sums, targets, shifts, parts=2)


def sigmoid(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, offset: int, with_gradient: bool
) -> tuple[Tensor | None, Tensor]:
    """As `tiles.sigmoid`, the gradient as high and low: [2, M, N]."""
    return tiles.sigmoid(*wide(a, b), scale, bias, offset, with_gradient, parts=2)


def accumulate(total: Tensor, gradient: Tensor, x: Tensor) -> None:
    """total [M, D] += gradient [2, M, N] @ x [N, D], float32."""
    high, low = parts(x)
    for of_logits, of_features in ((gradient[0], high), (gradient[0], low), (gradient[1], high)):
        accumulate_product(total, of_logits, of_features)
