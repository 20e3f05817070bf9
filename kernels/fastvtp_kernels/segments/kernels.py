"""Triton kernels of sums over rows that belong together, in a fixed order and without atomics, and their launchers.

Shape legend: M rows, S segments of them, D width.
"""
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (The body of a @triton.jit function is Triton's language, which looks like Python.)

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import tuning
from ..launching import blocks, launch


@triton.jit
def _sum_segments(
    rows_ptr,
    places_ptr,
    start_ptr,
    output_ptr,
    D,
    ignored,
    LISTED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """output[s] = sum of the rows at places[start[s]] up to places[start[s + 1]]; those at -1 are none.

    Without LISTED the places are the rows in their order.
    """
    segment = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    start = tl.load(start_ptr + segment)
    end = tl.where(segment == ignored, start, tl.load(start_ptr + segment + 1))
    total = tl.zeros([BLOCK_ROWS, BLOCK_D], tl.float32)
    for first in tl.range(start, end, BLOCK_ROWS):
        place = first + tl.arange(0, BLOCK_ROWS)
        if LISTED:
            row = tl.load(places_ptr + place, mask=place < end, other=-1)
        else:
            row = tl.where(place < end, place, -1)
        mask = (row >= 0)[:, None] & (d < D)[None, :]
        values = tl.load(rows_ptr + row.to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0)
        total += values.to(tl.float32)
    tl.store(output_ptr + segment * D + d, tl.sum(total, axis=0).to(output_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def _spread_segments(
    values_ptr, start_ptr, output_ptr, S, M, D, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Write values[s] to each row of segment s, and zeros to the rows behind the last."""
    segment = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    start = tl.load(start_ptr + segment)
    end = tl.load(start_ptr + segment + 1, mask=segment < S, other=M)
    value = tl.load(values_ptr + segment * D + d, mask=(d < D) & (segment < S), other=0.0)
    spread = tl.broadcast_to(value.to(output_ptr.dtype.element_ty)[None, :], [BLOCK_ROWS, BLOCK_D])
    for first in tl.range(start, end, BLOCK_ROWS):
        row = (first + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        mask = (row < end)[:, None] & (d < D)[None, :]
        tl.store(output_ptr + row[:, None] * D + d[None, :], spread, mask=mask)


def _sum(rows: Tensor, places: Tensor | None, starts: Tensor, dtype: torch.dtype, kernel: str, ignored: int) -> Tensor:
    segments, width = len(starts) - 1, rows.shape[1]
    output = rows.new_empty(segments, width, dtype=dtype)
    tile = tuning.tile(kernel, torch.float32, rows.device)
    grid = (segments, blocks(width, tile.blocks["BLOCK_D"]))
    tensors = rows.contiguous(), places, starts.contiguous(), output
    launch(_sum_segments, grid, *tensors, width, ignored, LISTED=places is not None, tile=tile)
    return output


def sum_by_key(rows: Tensor, key: Tensor, segments: int, dtype: torch.dtype) -> Tensor:
    """Compute the sum over all rows of equal key, accumulated in float32 in a fixed order.

    Args:
        rows: [M, D].
        key: int [M], in [0, segments).
        segments: number of rows of the result; a key that no row has gives zeros.
        dtype: of the result.

    Returns:
        [segments, D].
    """
    keys, order = key.sort(stable=True)
    starts = torch.searchsorted(keys, torch.arange(segments + 1, device=key.device, dtype=key.dtype))
    return _sum(rows, order, starts, dtype, "sum_segments", -1)


def sum_rows(gradient: Tensor, rows: Tensor, places: Tensor, starts: Tensor, ignored: int) -> Tensor:
    """Compute the registered op of this name."""
    return _sum(gradient, places.contiguous(), starts, gradient.dtype, "sum_rows", ignored)


def sum_sequences(x: Tensor, offsets: Tensor) -> Tensor:
    """Compute the registered op of this name."""
    return _sum(x, None, offsets, torch.float32, "sum_sequences", -1)


def spread_sequences(values: Tensor, offsets: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    """Compute the registered op of this name."""
    sequences, width = values.shape
    output = values.new_empty(num_rows, width, dtype=dtype)
    tile = tuning.tile("spread_sequences", torch.float32, values.device)
    grid = (sequences + 1, blocks(width, tile.blocks["BLOCK_D"]))
    tensors = values.contiguous(), offsets.contiguous(), output
    launch(_spread_segments, grid, *tensors, sequences, num_rows, width, tile=tile)
    return output
