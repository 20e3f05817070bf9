"""Triton kernel of the tube mask, and its launcher."""
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (The body of a @triton.jit function is Triton's language, which looks like Python.)

import dataclasses
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import philox, tuning
from ..device_draw import key_and_step
from ..launching import launch

STREAM = tl.constexpr(philox.signed(philox.TUBE_MASK))
LARGEST_FRAME = 16384
"""Cells of a frame that one program ranks."""


@triton.jit
def _random_bits(key, sample, step, cell):
    """Return the first Philox word of counter (sample low, sample high, step, cell): int64 in [0, 2^32)."""
    zero = cell * 0
    low = zero + (sample & 0xFFFFFFFF).to(tl.uint32).to(tl.int32, bitcast=True)
    high = zero + (sample >> 32).to(tl.int32)
    bits, _, _, _ = tl.philox(key, low, high, zero + step, cell)
    return bits.to(tl.int64)


@triton.jit(do_not_specialize=["key", "step"])
def _tube_mask(
    sample_ids_ptr,
    visible_ptr,
    masked_ptr,
    draw_ptr,
    key,
    step,
    slots,
    cells,
    hidden_cells,
    ON_DEVICE: tl.constexpr,
    BLOCK_CELLS: tl.constexpr,
    BLOCK_OTHERS: tl.constexpr,
):
    key, step = key_and_step(draw_ptr, key, step, STREAM, ON_DEVICE)
    row = tl.program_id(0).to(tl.int64)
    sample = tl.load(sample_ids_ptr + row)
    cell = tl.arange(0, BLOCK_CELLS)
    bits = _random_bits(key, sample, step, cell)
    rank = tl.zeros([BLOCK_CELLS], tl.int32)
    for first in tl.range(0, cells, BLOCK_OTHERS):
        other = first + tl.arange(0, BLOCK_OTHERS)
        other_bits = _random_bits(key, sample, step, other)
        before = (other_bits[None, :] < bits[:, None]) | (
            (other_bits[None, :] == bits[:, None]) & (other[None, :] < cell[:, None])
        )
        rank += tl.sum((before & (other < cells)[None, :]).to(tl.int32), axis=1)
    exists = cell < cells
    hidden = exists & (rank < hidden_cells)
    shown = exists & (rank >= hidden_cells)
    hidden_place = tl.cumsum(hidden.to(tl.int32), 0) - 1
    shown_cells = cells - hidden_cells
    shown_place = tl.cumsum(shown.to(tl.int32), 0) - 1
    for slot in tl.range(0, slots):
        token = slot * cells + cell
        tl.store(masked_ptr + (row * slots + slot) * hidden_cells + hidden_place, token, mask=hidden)
        tl.store(visible_ptr + (row * slots + slot) * shown_cells + shown_place, token, mask=shown)


def tube_mask(
    sample_ids: Tensor, slots: int, cells: int, hidden_cells: int, draw: Sequence[int], on_device: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return visible and masked tokens, int32 [B, slots * cells] each in part, for sample_ids int64 [B].

    `draw` and `on_device` are what `philox.for_kernels` returns.

    Raises:
        ValueError: a frame has more than LARGEST_FRAME cells.
    """
    visible = sample_ids.new_empty(sample_ids.shape[0], slots * (cells - hidden_cells), dtype=torch.int32)
    masked = sample_ids.new_empty(sample_ids.shape[0], slots * hidden_cells, dtype=torch.int32)
    if cells > LARGEST_FRAME:
        raise ValueError(
            f"tube_mask: a frame has {cells} cells, the kernel ranks up to {LARGEST_FRAME}; use backend='reference'"
        )
    block_cells = triton.next_power_of_2(cells)
    tile = tuning.tile("tube_mask", torch.float32, sample_ids.device)
    others = min(tile.blocks["BLOCK_OTHERS"], max(1, 16384 // block_cells))
    tile = dataclasses.replace(tile, blocks={"BLOCK_OTHERS": others})
    seed, step = draw
    launch(
        _tube_mask,
        (sample_ids.shape[0],),
        sample_ids.contiguous(),
        visible,
        masked,
        on_device,
        philox.kernel_key(philox.TUBE_MASK, seed),
        philox.signed(step, 32),
        slots,
        cells,
        hidden_cells,
        ON_DEVICE=on_device is not None,
        BLOCK_CELLS=block_cells,
        tile=tile,
    )
    return visible, masked
