"""Mask patterns beside the tube: blocks in space and time, and the running cell. Plain PyTorch on every device.

Integers decide everything, so a mask has the same bits on every device. Counts are fixed, so shapes are static.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import philox
from ..validation import check_index, check_seed
from .op import TubeMask, check_grid, resolve_sample_ids

# One bit of an int64 per block; the bit after them stands for "no block".
MAX_BLOCKS = 62


@dataclass(frozen=True)
class BlockShapes:
    """Which blocks `block_tube_mask` may draw; the defaults are BEVT's.

    min_cells: smallest area of a rectangle, in cells; less where no allowed rectangle of that area fits the frame. The
        largest is mask_ratio * h * w, or the smallest where that is less than min_cells.
    aspect: least and greatest height / width of a rectangle.
    tube_length: least and greatest run, as parts of the clip; int(part * t) time slots, at least 1.
    """

    min_cells: int = 16
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    tube_length: tuple[float, float] = (0.5, 0.75)


_BEVT = BlockShapes()


class Blocks(NamedTuple):
    """Boxes in space and time, int64 [B, R] each; time wraps around the end of the clip."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    start: Tensor
    length: Tensor


def block_tube_mask(
    batch_size: int,
    grid: tuple[int, int, int],
    mask_ratio: float,
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    shapes: BlockShapes = _BEVT,
    device: torch.device | str | None = None,
) -> TubeMask:
    """Draw block-wise tube masks after BEVT (Wang et al. 2022), with the same count of masked tokens in every sample.

    A block is a rectangle of cells, uniform among those of allowed area and aspect (which makes area uniform and aspect
    log-uniform, as in BEiT, Bao et al. 2021), at a uniform place inside the frame, masked over a run of time slots with
    a uniform start that wraps around. Blocks are drawn in order and masked whole until the next one would pass the
    count. That last block is cut: its rows are masked from the top or from the bottom (drawn), cell after cell over
    the whole run. After 62 blocks (only ratios near 1 need more) the missing tokens are taken in the same order.

    The released BEVT code unites rectangles in one frame, repeats them over one run and leaves the count to chance.
    Here each block has its own run, so that blocks add up to any ratio, such as VideoPrism's 0.65 of all tokens (Zhao
    et al. 2024). Every time slot is masked equally often; the centre of the frame more often than its corners.

    Args:
        batch_size: number of clips B.
        grid: tubelet grid (t, h, w); token index = (t * h + y) * w + x.
        mask_ratio: round(mask_ratio * t * h * w) tokens are masked; 0 <= mask_ratio < 1.
        seed: 0 <= seed < 2^64, or one int64 in a tensor on the device, which captured graphs read anew.
        step: training step, 0 <= step < 2^32, or a tensor like seed; a new step gives new masks.
        sample_ids: int [B], the identity of each clip, in [0, 2^63); default arange(B).
        shapes: areas, aspects and lengths of the blocks.
        device: where the result lives; default: the device of `sample_ids`, else the CPU.

    Returns:
        TubeMask(visible int32 [B, t * h * w - count], masked int32 [B, count]).

    Raises:
        ValueError: a size, a range, the ratio, the seed or the step is out of range, `sample_ids` is not [B], or no
            rectangle of the given aspect fits the frame.
        TypeError: `sample_ids` is neither int32 nor int64.
    """
    op = "block_tube_mask"
    check_grid(op, batch_size, grid, mask_ratio)
    min_cells, aspect, tube_length = shapes.min_cells, shapes.aspect, shapes.tube_length
    if len(aspect) != 2 or not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"{op}: aspect is {tuple(aspect)}, expected 0 < least <= greatest")
    if len(tube_length) != 2 or not 0 < tube_length[0] <= tube_length[1] <= 1:
        raise ValueError(f"{op}: tube_length is {tuple(tube_length)}, expected 0 < least <= greatest <= 1")
    if min_cells < 1:
        raise ValueError(f"{op}: min_cells is {min_cells}, expected min_cells >= 1")
    slots, height, width = grid
    allowed = block_shapes(height, width, min_cells, int(mask_ratio * (height * width)), aspect)
    lengths = [max(int(part * slots), 1) for part in tube_length]
    sample_ids = resolve_sample_ids(op, sample_ids, batch_size, device)
    seed, step = check_seed(op, seed, step, device=sample_ids.device)
    blocks = draw_blocks(grid, allowed, (lengths[0], lengths[1]), seed, step, sample_ids)
    counter = (*philox.split_words(sample_ids[:, None]), step, MAX_BLOCKS)
    from_bottom = philox.below(philox.random_words(philox.BLOCK_MASK, seed, counter)[0], 2) == 1
    count = round(mask_ratio * (slots * height * width))
    return TubeMask(*_mask_in_order(grid, blocks, from_bottom, count))


def running_cell_mask(
    batch_size: int,
    grid: tuple[int, int, int],
    mask_ratio: float = 0.5,
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
    cell: tuple[int, int] = (2, 2),
    among: Tensor | None = None,
    device: torch.device | str | None = None,
) -> TubeMask:
    """Return the running cell that spares the decoder a part of its tokens (VideoMAE v2, Wang et al. 2023).

    `masked` are the tokens hidden from the decoder, `visible` those that it works on.

    A small cell tiles the frame. Its n places, in row-major order, have turns that advance by one with each time slot:
    (place + slot + a drawn phase) mod n. Tokens are ranked by (turn, 32 random bits, index), and the first
    int(mask_ratio * K) of the K tokens are hidden. So k / n of the tokens hides exactly the turns below k, as in the
    released code, wherever turns are equally frequent: on a grid that the cell divides, and on any grid, or among any
    tubes through the whole clip, if n divides t. Elsewhere and for other ratios, one turn is hidden in part at random.

    The decoder of VideoMAE v2 is scored on tokens that are hidden from the encoder and not from the decoder. Their
    number would depend on the draw; with `among=tube_mask(...).masked` the cell divides only the tokens hidden from the
    encoder, and `visible` are the decoder's targets, equally many in every sample.

    Args:
        batch_size: number of clips B.
        grid: tubelet grid (t, h, w); token index = (t * h + y) * w + x.
        mask_ratio: int(mask_ratio * K) tokens are hidden; 0 <= mask_ratio < 1.
        seed: 0 <= seed < 2^64, or one int64 in a tensor on the device, which captured graphs read anew.
        step: training step, 0 <= step < 2^32, or a tensor like seed; a new step gives new phases.
        sample_ids: int [B], the identity of each clip, in [0, 2^63); default arange(B).
        cell: height and width of the cell.
        among: int [B, K], distinct token indices to divide; default: all K = t * h * w tokens.
        device: where the result lives unless `among` says so; default: the device of `sample_ids`, else the CPU.

    Returns:
        TubeMask(visible int32 [B, K - hidden], masked int32 [B, hidden]).

    Raises:
        ValueError: a size, the ratio, the seed or the step is out of range, `sample_ids` is not [B], or `among` is not
            [B, K] or (on the CPU) holds an index outside the grid.
        TypeError: `sample_ids` or `among` is neither int32 nor int64.
    """
    op = "running_cell_mask"
    check_grid(op, batch_size, grid, mask_ratio)
    if len(cell) != 2 or min(cell) < 1:
        raise ValueError(f"{op}: cell is {tuple(cell)}, expected two sizes >= 1")
    slots, height, width = grid
    if among is not None:
        check_index(op, "among", among, slots * height * width, batch_size, "K")
        device = among.device
    sample_ids = resolve_sample_ids(op, sample_ids, batch_size, device)
    seed, step = check_seed(op, seed, step, device=sample_ids.device)
    if among is None:
        tokens = torch.arange(slots * height * width, device=sample_ids.device).expand(batch_size, -1)
    else:
        tokens = among.long()
    slot, row, column = tokens // (height * width), tokens // width % height, tokens % width
    place = row % cell[0] * cell[1] + column % cell[1]
    places = cell[0] * cell[1]
    counter = (*philox.split_words(sample_ids[:, None]), step)
    phase = philox.below(philox.random_words(philox.RUNNING_CELL_MASK, seed, (*counter, 0))[0], places)
    # The phase is the first word of token 0; ties take the second words.
    bits = philox.random_words(philox.RUNNING_CELL_MASK, seed, (*counter, tokens))[1]
    turn = (place + slot + phase) % places
    order = ((turn << 32) | bits).argsort(dim=1, stable=True)
    return TubeMask(*_divide(tokens.gather(1, order), int(mask_ratio * tokens.shape[1])))


def block_shapes(
    height: int, width: int, min_cells: int, max_cells: int, aspect: tuple[float, float]
) -> list[tuple[int, int]]:
    """Return (height, width), ascending, of the rectangles in the frame of the given aspect and min_cells..max_cells
    cells.

    The least area gives way where nothing fits otherwise, then the greatest.
    """
    # Area uniform and log(aspect) uniform: the density of (height, width) is then constant, so all shapes weigh alike.
    shapes = [
        (high, wide)
        for high in range(1, height + 1)
        for wide in range(1, width + 1)
        if aspect[0] <= high / wide <= aspect[1]
    ]
    if not shapes:
        raise ValueError(
            f"block_tube_mask: aspect is {tuple(aspect)}, expected one that a rectangle in {height} x {width} cells has"
        )
    least = min(min_cells, max([high * wide for high, wide in shapes]))
    shapes = [(high, wide) for high, wide in shapes if high * wide >= least]
    greatest = max(max_cells, min([high * wide for high, wide in shapes]))
    return [(high, wide) for high, wide in shapes if high * wide <= greatest]


def draw_blocks(
    grid: tuple[int, int, int],
    shapes: list[tuple[int, int]],
    lengths: tuple[int, int],
    seed: philox.Word,
    step: philox.Word,
    sample_ids: Tensor,
) -> Blocks:
    """Draw the first `MAX_BLOCKS` blocks of each sample: one of `shapes`, over one of `lengths` (first to last)
    slots."""
    slots, height, width = grid
    block = torch.arange(MAX_BLOCKS, device=sample_ids.device)
    counter = (*philox.split_words(sample_ids[:, None]), step, block)
    shape_bits, top_bits, left_bits, run_bits = philox.random_words(philox.BLOCK_MASK, seed, counter)
    high, wide = _pick(shapes, philox.below(shape_bits, len(shapes)))
    run = philox.below(run_bits, slots * (lengths[1] - lengths[0] + 1))
    top, left = philox.below(top_bits, height - high + 1), philox.below(left_bits, width - wide + 1)
    return Blocks(top, left, high, wide, run % slots, lengths[0] + run // slots)


def _pick(shapes: list[tuple[int, int]], index: Tensor) -> tuple[Tensor, Tensor]:
    """Return height and width of the shape at each index of a list in ascending order."""
    high, wide = torch.zeros_like(index), torch.zeros_like(index)
    # Without a table: it would have to be copied from the host. Widths of one height follow one another.
    for position, (height, narrowest) in enumerate(shapes):
        if position == 0 or shapes[position - 1][0] != height:
            reached = index >= position
            high = torch.where(reached, height, high)
            wide = torch.where(reached, index - position + narrowest, wide)
    return high, wide


def _mask_in_order(
    grid: tuple[int, int, int], blocks: Blocks, from_bottom: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return visible and masked tokens; masked are the first `count` by (first block over them, cell, time slot)."""
    slots, height, width = grid
    cells = height * width
    place = torch.arange(cells, device=from_bottom.device)
    cell = torch.where(from_bottom, cells - 1 - place, place)
    rows = _covering(height, blocks.top, blocks.height).gather(1, cell // width)
    columns = _covering(width, blocks.left, blocks.width).gather(1, cell % width)
    covering = (rows & columns)[:, :, None] & _covering(slots, blocks.start, blocks.length)[:, None, :]
    # The lowest set bit alone: it sorts as the number of the first block does.
    covering = covering.flatten(1) | (1 << MAX_BLOCKS)
    order = (covering & -covering).argsort(dim=1, stable=True)
    return _divide(order % slots * cells + cell.gather(1, order // slots), count)


def _covering(size: int, start: Tensor, length: Tensor) -> Tensor:
    """int64 [B, size]: bit r is set where block r covers this row, column or time slot (which wraps around)."""
    position = torch.arange(size, device=start.device)
    covered = (position - start[:, :, None]) % size < length[:, :, None]
    return (covered.long() << torch.arange(MAX_BLOCKS, device=start.device)[:, None]).sum(dim=1)


def _divide(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cut ordered tokens [B, K] into the visible rest and the first `count`, masked; int32, ascending."""
    return tokens[:, count:].sort(dim=1).values.int(), tokens[:, :count].sort(dim=1).values.int()
