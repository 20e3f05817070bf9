"""Tables of positions: sines and cosines, and learned tables at another size."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


def sinusoid_positions(num_positions: int, width: int) -> Tensor:
    """Return fixed positions of VideoPrism's text tower: float32 [num_positions, width], sines in the first half of a
    row, cosines in the second.

    angle(p, i) = p * 10000^(-i / (n - 1)) for i < n = width // 2: the last timescale is 10000 itself. An odd width ends
    in a zero.
    """
    count = width // 2
    rate = torch.exp(-torch.arange(count, dtype=torch.float64) * math.log(10000) / max(count - 1, 1))
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * rate
    return nn.functional.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, width % 2)).float()


def resize_positions(table: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Resize a table of positions over a grid to another grid: [before[0] * before[1], D] -> [after[0] * after[1], D].

    It is interpolated bilinearly, antialiased where it shrinks (as `jax.image.resize` does), in float32.
    """
    if before == after:
        return table
    grid = table.T.reshape(1, -1, *before).float()
    resized = interpolate(grid, size=after, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].flatten(1).T.to(table.dtype)


def sincos_positions(num_positions: int, width: int) -> Tensor:
    """Return fixed positions over the flat token index: float32 [num_positions, width].

    angle(p, j) = p / 10000^(2*floor(j/2)/width); sine on even columns, cosine on odd ones (VideoMAE, SimVTP). Computed
    in float64: at p = 1567 the float32 angle is already off by 1e-4.
    """
    exponent = 2 * (torch.arange(width, dtype=torch.float64) // 2) / width
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] / 10000.0**exponent
    table = torch.empty_like(angle)
    table[:, 0::2], table[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
    return table.float()
