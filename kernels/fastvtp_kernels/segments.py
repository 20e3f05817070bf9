"""Sums of rows that share a key, in a fixed order: the gradient of a table lookup without atomics."""
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (The body of a @triton.jit function is Triton's language, which looks like Python.)

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tuning
from .launching import blocks, launch


@triton.jit
def _sum_segments(
    rows_ptr,
    order_ptr,
    start_ptr,
    output_ptr,
    D,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    segment = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    start = tl.load(start_ptr + segment)
    end = tl.load(start_ptr + segment + 1)
    total = tl.zeros([BLOCK_D], tl.float32)
    for first in tl.range(start, end, BLOCK_ROWS):
        place = first + tl.arange(0, BLOCK_ROWS)
        row = tl.load(order_ptr + place, mask=place < end, other=0)
        mask = (place < end)[:, None] & (d < D)[None, :]
        values = tl.load(rows_ptr + row[:, None] * D + d[None, :], mask=mask, other=0.0)
        total += tl.sum(values.to(tl.float32), axis=0)
    tl.store(output_ptr + segment * D + d, total.to(output_ptr.dtype.element_ty), mask=d < D)


def sum_segments(rows: Tensor, key: Tensor, segments: int, dtype: torch.dtype) -> Tensor:
    """Compute the sum over all rows of equal key, accumulated in float32 in the order of the rows.

    Args:
        rows: [M, D] contiguous.
        key: int [M], in [0, segments).
        segments: number of rows of the result; a key that no row has gives zeros.
        dtype: of the result.

    Returns:
        [segments, D].
    """
    keys, order = key.sort(stable=True)
    start = torch.searchsorted(keys, torch.arange(segments + 1, device=key.device, dtype=key.dtype))
    output = rows.new_empty(segments, rows.shape[1], dtype=dtype)
    tile = tuning.tile("sum_segments", torch.float32, rows.device)
    grid = (segments, blocks(rows.shape[1], tile.blocks["BLOCK_D"]))
    launch(_sum_segments, grid, rows, order, start, output, rows.shape[1], tile=tile)
    return output
