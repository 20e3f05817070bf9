"""Triton kernels of the masked pixel loss, and their launchers.

Shape legend: M = B * Km masked tokens, P = pt * ph * pw * C values a token. The target lives in registers. What
backward needs is written in the same pass.
"""
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (The body of a @triton.jit function is Triton's language, which looks like Python.)

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import tuning
from ..launching import blocks, launch
from ..tubelets.frames import byte_less, layout, line_offset, load_values, strides, token_origin, value_offset
from ..tuning import Tile
from .residual import residual_scale

# Values of a token that a thread may hold, and warps that may hold one token together.
_VALUES_PER_THREAD, _MOST_WARPS = 64, 8


@triton.jit
def _of_group(values, p, GROUPS: tl.constexpr):
    """Spread a tuple of GROUPS vectors [rows] to [rows, columns]: each value gets the entry of its group."""
    chosen = values[0][:, None]
    for group in tl.static_range(1, GROUPS):
        chosen = tl.where((p % GROUPS == group)[None, :], values[group][:, None], chosen)
    return chosen


@triton.jit
def _add_by_group(totals, values, p, GROUPS: tl.constexpr):
    """Add values [rows, columns], lane by lane, to the total of their group, and return the tuple of totals."""
    sums = ()
    for group in tl.static_range(GROUPS):
        sums = sums + (totals[group] + tl.where((p % GROUPS == group)[None, :], values, 0.0),)
    return sums


@triton.jit
def _divided_sums(totals, divisor, GROUPS: tl.constexpr):
    quotients = ()
    for group in tl.static_range(GROUPS):
        # Correctly rounded: `/` may miss the mean of a flat patch by one unit in the last place, and eps is tiny.
        quotients = quotients + (tl.div_rn(tl.sum(totals[group], axis=1), 1.0 * divisor),)
    return quotients


@triton.jit
def _pixel_loss(
    prediction_ptr,
    video_ptr,
    index_ptr,
    residual_ptr,
    partial_ptr,
    unit,
    eps,
    scale,
    M,
    frames,
    P: tl.constexpr,
    GROUPS: tl.constexpr,
    PT: tl.constexpr,
    PH: tl.constexpr,
    SEGMENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """partial[m] = sum of squared differences of token m; GROUPS sets of its values (C, 1 or none) are normalised.

    Three sweeps over the same bytes (mean, variance, loss), of which the first reads memory and the others the cache:
    whole tokens in registers would leave too few programs on a multiprocessor to keep memory busy. Sums are of the
    video's own units: exact for uint8, so that in a flat patch every deviation is exactly zero.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    _, origin = token_origin(index_ptr, m, M, frames, PT, PH, SEGMENT)
    exists = (m < M)[:, None]
    lane = tl.arange(0, BLOCK_P)
    zeros = tl.zeros([BLOCK_M, BLOCK_P], tl.float32)
    if GROUPS > 0:
        none = ()
        for _ in tl.static_range(GROUPS):
            none = none + (zeros,)
        totals = none
        for start in tl.range(0, P, BLOCK_P):
            p = start + lane
            offset = value_offset(p, frames, PH, SEGMENT)
            pixels = load_values(video_ptr, origin, offset, exists & (p < P)[None, :], ALIGNED).to(tl.float32)
            totals = _add_by_group(totals, pixels, p, GROUPS)
        means = _divided_sums(totals, P // GROUPS, GROUPS)
        totals = none
        for start in tl.range(0, P, BLOCK_P):
            p = start + lane
            offset = value_offset(p, frames, PH, SEGMENT)
            mask = exists & (p < P)[None, :]
            pixels = load_values(video_ptr, origin, offset, mask, ALIGNED).to(tl.float32)
            deviation = tl.where(mask, pixels - _of_group(means, p, GROUPS), 0.0)
            totals = _add_by_group(totals, deviation * deviation, p, GROUPS)
        variances = _divided_sums(totals, P // GROUPS - 1, GROUPS)
        factors = ()
        for group in tl.static_range(GROUPS):
            factors = factors + (1.0 / (tl.sqrt(variances[group]) + eps * unit),)
    squares = zeros
    for start in tl.range(0, P, BLOCK_P):
        p = start + lane
        mask = exists & (p < P)[None, :]
        address = m.to(tl.int64)[:, None] * P + p[None, :]
        prediction = tl.load(prediction_ptr + address, mask=mask, other=0.0).to(tl.float32)
        offset = value_offset(p, frames, PH, SEGMENT)
        pixels = load_values(video_ptr, origin, offset, mask, ALIGNED).to(tl.float32)
        if GROUPS > 0:
            target = (pixels - _of_group(means, p, GROUPS)) * _of_group(factors, p, GROUPS)
        else:
            target = pixels / unit
        difference = tl.where(mask, prediction - target, 0.0)
        squares += difference * difference
        if RESIDUAL:
            tl.store(residual_ptr + address, (difference * scale).to(residual_ptr.dtype.element_ty), mask=mask)
    tl.store(partial_ptr + m, tl.sum(squares, axis=1), mask=m < M)


@triton.jit
def _byte_loss(
    prediction_ptr,
    video_ptr,
    index_ptr,
    residual_ptr,
    partial_ptr,
    eps,
    scale,
    M,
    frames,
    P: tl.constexpr,
    GROUPS: tl.constexpr,
    PT: tl.constexpr,
    PH: tl.constexpr,
    SEGMENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """The same of bytes, one token a program: everything is read once and stays in registers.

    A token is a tile of LINES segments, cut into PARTS of BLOCK_COLUMNS values. Where a thread holds whole lines of a
    part, which channel a register is of is known to the compiler, and sums by channel need neither masks nor selection.

    With n values x in a group and S their sum, the target is (n x - S) / (n (deviation + eps)), and the variance is
    (n sum(x^2) - S^2) / (n (n - 1)). Both numerators are computed exactly: in integers, and in float32 below 2^24. In a
    flat patch they are zero.
    """
    PARTS: tl.constexpr = (SEGMENT + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    m = tl.program_id(0)
    line, column = tl.arange(0, LINES), tl.arange(0, BLOCK_COLUMNS)
    _, origin = token_origin(index_ptr, m, M, frames, PT, PH, SEGMENT)
    first_pixel = origin + line_offset(line, frames, PH)
    first_value = m.to(tl.int64) * P + line * SEGMENT
    pixels, predictions = (), ()
    for part in tl.static_range(PARTS):
        place = part * BLOCK_COLUMNS + column
        mask = (line < PT * PH)[:, None] & (place < SEGMENT)[None, :]
        pixels = pixels + (load_values(video_ptr, first_pixel, place, mask, ALIGNED).to(tl.int32),)
        address = first_value[:, None] + place[None, :]
        predictions = predictions + (tl.load(prediction_ptr + address, mask=mask, other=0.0),)
    sums, factors = (), ()
    if GROUPS > 0:
        COUNT: tl.constexpr = P // GROUPS
        for group in tl.static_range(GROUPS):
            of_lines = tl.zeros([LINES, BLOCK_COLUMNS], tl.int32)
            squares_of_lines = of_lines
            for part in tl.static_range(PARTS):
                in_group = ((part * BLOCK_COLUMNS + column) % GROUPS == group)[None, :]
                chosen = tl.where(in_group, pixels[part], 0)
                of_lines += chosen
                squares_of_lines += chosen * chosen
            total = tl.sum(tl.sum(of_lines, axis=1), axis=0)
            squares = tl.sum(tl.sum(squares_of_lines, axis=1), axis=0).to(tl.int64)
            numerator = (squares * COUNT - total.to(tl.int64) * total).to(tl.float32)
            deviation = tl.sqrt(numerator / (1.0 * COUNT * (COUNT - 1)))
            sums = sums + (total.to(tl.float32),)
            factors = factors + (1.0 / ((deviation + eps * 255.0) * COUNT),)
    loss = tl.zeros([LINES, BLOCK_COLUMNS], tl.float32)
    for part in tl.static_range(PARTS):
        place = part * BLOCK_COLUMNS + column
        pixel, prediction = byte_less(pixels[part], 0), predictions[part].to(tl.float32)
        if GROUPS > 0:
            group_sum, factor = sums[0], factors[0]
            for group in tl.static_range(1, GROUPS):
                in_group = (place % GROUPS == group)[None, :]
                group_sum = tl.where(in_group, sums[group], group_sum)
                factor = tl.where(in_group, factors[group], factor)
            difference = prediction - (pixel * COUNT - group_sum) * factor
        else:
            # Not pixel * (1 / 255), whose error a small difference would not cover.
            difference = (prediction * 255.0 - pixel) * (1.0 / 255.0)
        mask = (line < PT * PH)[:, None] & (place < SEGMENT)[None, :]
        difference = tl.where(mask, difference, 0.0)
        loss += difference * difference
        if RESIDUAL:
            residual = (difference * scale).to(residual_ptr.dtype.element_ty)
            tl.store(residual_ptr + first_value[:, None] + place[None, :], residual, mask=mask)
    tl.store(partial_ptr + m, tl.sum(tl.sum(loss, axis=1), axis=0))


@triton.jit
def _scale(values_ptr, factor_ptr, count, BLOCK: tl.constexpr):
    factor = tl.load(factor_ptr)
    # Alone in the loss, or with weight 1, nothing is left to do, and the host need not know.
    if factor == 1.0:
        return
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(values_ptr + place, mask=place < count, other=0.0)
    tl.store(values_ptr + place, (values.to(tl.float32) * factor).to(values.dtype), mask=place < count)


def masked_pixel_loss(
    prediction: Tensor,
    video: Tensor,
    masked: Tensor,
    tubelet: Sequence[int],
    normalize: str | None,
    eps: float,
    with_residual: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss, float32 [], and (prediction - target) * `residual_scale`, empty unless wanted."""
    prediction, video, masked = prediction.contiguous(), video.contiguous(), masked.contiguous()
    residual = torch.empty_like(prediction) if with_residual else prediction.new_empty(0)
    partial = prediction.new_empty(masked.numel(), dtype=torch.float32)
    constants = layout(video, tubelet)
    constants |= {
        "GROUPS": {"patch_channel": video.shape[-1], "patch": 1, None: 0}[normalize],
        "RESIDUAL": with_residual,
    }
    tensors = prediction, video, masked, residual, partial
    rest = eps, residual_scale(prediction), masked.numel(), strides(video, masked, tubelet)
    lines = 1 << (tubelet[0] * tubelet[1] - 1).bit_length()
    tile = _byte_tile(video, lines, constants["SEGMENT"])
    if tile is not None:
        launch(_byte_loss, (masked.numel(),), *tensors, *rest, LINES=lines, tile=tile, **constants)
    else:
        tile = tuning.tile("pixel_loss", torch.float32, prediction.device)
        unit = 255.0 if video.dtype == torch.uint8 else 1.0
        grid = (blocks(masked.numel(), tile.blocks["BLOCK_M"]),)
        launch(_pixel_loss, grid, *tensors, unit, *rest, tile=tile, **constants)
    return partial.sum() / prediction.numel(), residual


def _byte_tile(video: Tensor, lines: int, segment: int) -> Tile | None:
    """Return the tile for tokens of so many lines of bytes, with the warps that hold one of them; None: none can."""
    if video.dtype != torch.uint8:
        return None
    tile = tuning.tile("pixel_loss_bytes", torch.float32, video.device)
    columns = tile.blocks["BLOCK_COLUMNS"]
    threads = blocks(lines * blocks(segment, columns) * columns, _VALUES_PER_THREAD)
    warps = triton.next_power_of_2(blocks(threads, 32))
    return replace(tile, num_warps=warps) if warps <= _MOST_WARPS else None


def scale_in_place(values: Tensor, factor: Tensor) -> None:
    """values *= factor for a float32 scalar on the device; free of memory traffic where the factor is 1."""
    tile = tuning.tile("scale", torch.float32, values.device)
    grid = (blocks(values.numel(), tile.blocks["BLOCK"]),)
    launch(_scale, grid, values, factor, values.numel(), tile=tile)
