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
def _load_rows(rows_ptr, row, d, D):
    """float32 [rows, BLOCK_D]; zeros of a row at -1."""
    mask = (row >= 0)[:, None] & (d < D)[None, :]
    return tl.load(rows_ptr + row.to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _sum_chunks(
    rows_ptr,
    places_ptr,
    key_ptr,
    start_ptr,
    partial_ptr,
    D,
    ignored,
    CHUNK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """partial[c] = sum of the rows at the c-th CHUNK of places, where all of these are of one segment; zeros elsewhere.

    key[row] is the segment of a row. A list of thousands is so added up by many programs.
    """
    first = tl.program_id(0) * CHUNK
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row = tl.load(places_ptr + first + tl.arange(0, CHUNK))
    segment = tl.max(tl.load(key_ptr + row, mask=row >= 0, other=-1))
    exists = segment >= 0
    begins = tl.load(start_ptr + segment, mask=exists, other=0) <= first
    ends = tl.load(start_ptr + segment + 1, mask=exists, other=0) >= first + CHUNK
    whole = begins & ends & (segment != ignored)
    total = tl.zeros([BLOCK_ROWS, BLOCK_D], tl.float32)
    for start in tl.range(first, tl.where(whole, first + CHUNK, first), BLOCK_ROWS):
        total += _load_rows(rows_ptr, tl.load(places_ptr + start + tl.arange(0, BLOCK_ROWS)), d, D)
    tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * D + d, tl.sum(total, axis=0), mask=d < D)


@triton.jit
def _sum_segments(
    rows_ptr,
    places_ptr,
    start_ptr,
    partial_ptr,
    output_ptr,
    D,
    ignored,
    CHUNK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """output[s] = sum of the rows at places[start[s]] up to places[start[s + 1]]; those at -1 are none.

    Whole chunks of them are sums already, partial [chunks, D]. Without places (None) these are the rows in their order.
    """
    segment = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    lane = tl.arange(0, BLOCK_ROWS)
    start = tl.load(start_ptr + segment)
    end = tl.where(segment == ignored, start, tl.load(start_ptr + segment + 1))
    total = tl.zeros([BLOCK_ROWS, BLOCK_D], tl.float32)
    if places_ptr is None:
        for first in tl.range(start, end, BLOCK_ROWS):
            place = first + lane
            total += _load_rows(rows_ptr, tl.where(place < end, place, -1), d, D)
    else:
        chunk, chunks = tl.cdiv(start, CHUNK), end // CHUNK
        added = tl.maximum(chunks - chunk, 0) * CHUNK
        for first in tl.range(start, end - added, BLOCK_ROWS):
            place = first + lane
            place += tl.where(place >= chunk * CHUNK, added, 0)
            total += _load_rows(rows_ptr, tl.load(places_ptr + place, mask=place < end, other=-1), d, D)
        for first in tl.range(chunk, chunks, BLOCK_ROWS):
            total += _load_rows(partial_ptr, tl.where(first + lane < chunks, first + lane, -1), d, D)
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


def _sum_of_lists(
    rows: Tensor, places: Tensor, key: Tensor, starts: Tensor, dtype: torch.dtype, kernel: str, ignored: int
) -> Tensor:
    """Compute the sums of lists of rows; key: int [M], the list of each row."""
    rows, places, starts = rows.contiguous(), places.contiguous(), starts.contiguous()
    segments, width = len(starts) - 1, rows.shape[1]
    tile = tuning.tile("sum_chunks", torch.float32, rows.device)
    length = tile.blocks["CHUNK"]
    partial = rows.new_empty(len(places) // length, width, dtype=torch.float32)
    if len(partial):
        grid = (len(partial), blocks(width, tile.blocks["BLOCK_D"]))
        launch(_sum_chunks, grid, rows, places, key.contiguous(), starts, partial, width, ignored, tile=tile)
    output = rows.new_empty(segments, width, dtype=dtype)
    tile = tuning.tile(kernel, torch.float32, rows.device)
    grid = (segments, blocks(width, tile.blocks["BLOCK_D"]))
    launch(_sum_segments, grid, rows, places, starts, partial, output, width, ignored, CHUNK=length, tile=tile)
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
    return _sum_of_lists(rows, order, key, starts, dtype, "sum_segments", -1)


def sum_rows(gradient: Tensor, rows: Tensor, places: Tensor, starts: Tensor, ignored: int) -> Tensor:
    """Compute the registered op of this name."""
    return _sum_of_lists(gradient, places, rows, starts, gradient.dtype, "sum_rows", ignored)


def sum_sequences(x: Tensor, offsets: Tensor) -> Tensor:
    """Compute the registered op of this name."""
    width = x.shape[1]
    output = x.new_empty(len(offsets) - 1, width, dtype=torch.float32)
    tile = tuning.tile("sum_sequences", torch.float32, x.device)
    grid = (len(output), blocks(width, tile.blocks["BLOCK_D"]))
    tensors = x.contiguous(), None, offsets.contiguous(), None, output
    launch(_sum_segments, grid, *tensors, width, -1, CHUNK=0, tile=tile)
    return output


def spread_sequences(values: Tensor, offsets: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    """Compute the registered op of this name."""
    sequences, width = values.shape
    output = values.new_empty(num_rows, width, dtype=dtype)
    tile = tuning.tile("spread_sequences", torch.float32, values.device)
    grid = (sequences + 1, blocks(width, tile.blocks["BLOCK_D"]))
    tensors = values.contiguous(), offsets.contiguous(), output
    launch(_spread_segments, grid, *tensors, sequences, num_rows, width, tile=tile)
    return output
