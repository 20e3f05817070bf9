"""Triton kernels that read tubelets straight from the frames, and their launchers.

Shape legend: M = B * K listed tokens, P = pt * ph * pw * C values a token in the order (pt, ph, pw, C), D width.
A tubelet is pt * ph segments of pw * C consecutive bytes; nothing else of the clip is addressed.
"""
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (The body of a @triton.jit function is Triton's language, which looks like Python.)

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import tuning
from ..launching import blocks, dot_precision, launch
from ..segments.kernels import sum_by_key
from .frames import centered, layout, load_values, strides, token_origin, value_offset

# Programs that the split of the weight gradient aims at: two waves of the largest GPUs. Fixed, so that the order of
# summation does not depend on the device.
_SPLIT_PROGRAMS = 264


@triton.jit
def _embed(
    video_ptr, index_ptr, weight_ptr, bias_ptr, position_ptr, output_ptr, rows_ptr,
    M, D, frames,
    P: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, SEGMENT: tl.constexpr, ALIGNED: tl.constexpr,
    POSITION: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """output[row of m] = centered values of token m . folded weight + shift (+ position), one tile a program."""
    # Neighbouring programs share their tokens: the frames are read from memory once, the weight stays in L2.
    m = tl.program_id(0) // tl.cdiv(D, BLOCK_D) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(0) % tl.cdiv(D, BLOCK_D) * BLOCK_D + tl.arange(0, BLOCK_D)
    index, origin = token_origin(index_ptr, m, M, frames, PT, PH, SEGMENT)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    p = tl.arange(0, BLOCK_P)
    pixels = load_values(
        video_ptr,
        origin,
        value_offset(p, frames, PH, SEGMENT),
        (m < M)[:, None] & (p < P)[None, :],
        ALIGNED,
    )
    for start in tl.range(0, P, BLOCK_P):
        weight = tl.load(
            weight_ptr + d[None, :] * P + (start + p)[:, None],
            mask=(d[None, :] < D) & (start + p < P)[:, None],
            other=0.0,
        )
        values = centered(pixels).to(weight.dtype)
        following = start + BLOCK_P + p
        pixels = load_values(
            video_ptr,
            origin,
            value_offset(following, frames, PH, SEGMENT),
            (m < M)[:, None] & (following < P)[None, :],
            ALIGNED,
        )
        total = tl.dot(values, weight, total, input_precision=PRECISION)
    total += tl.load(bias_ptr + d, mask=d < D, other=0.0)[None, :]
    mask = (m < M)[:, None] & (d < D)[None, :]
    if POSITION:
        total += tl.load(position_ptr + index[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
    row = tl.load(rows_ptr + m, mask=m < M, other=0).to(tl.int64) if ROWS else m.to(tl.int64)
    tl.store(output_ptr + row[:, None] * D + d[None, :], total.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _fold(
    weight_ptr,
    bias_ptr,
    folded_ptr,
    shift_ptr,
    scales,
    shifts,
    VALUES,
    C: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_VALUES: tl.constexpr,
):
    """Write row d of the weight from [C, pt, ph, pw] to [pt, ph, pw, C], scaled per channel.

    shift[d] = its product with the shifts, plus the bias.
    """
    d = tl.program_id(0).to(tl.int64)
    value = tl.arange(0, BLOCK_VALUES)
    total = tl.zeros([BLOCK_VALUES], tl.float32)
    for c in tl.static_range(C):
        for start in tl.range(0, VALUES, BLOCK_VALUES):
            mask = start + value < VALUES
            weight = tl.load(weight_ptr + (d * C + c) * VALUES + start + value, mask=mask, other=0.0).to(tl.float32)
            folded = (weight * scales[c]).to(folded_ptr.dtype.element_ty)
            tl.store(folded_ptr + (d * VALUES + start + value) * C + c, folded, mask=mask)
            total += weight * shifts[c]
    shift = tl.sum(total)
    if BIAS:
        shift += tl.load(bias_ptr + d).to(tl.float32)
    tl.store(shift_ptr + d, shift)


@triton.jit
def _weight_gradient(
    grad_ptr,
    video_ptr,
    index_ptr,
    partial_ptr,
    M,
    D,
    split_tokens,
    frames,
    P: tl.constexpr,
    PT: tl.constexpr,
    PH: tl.constexpr,
    SEGMENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """partial[s] = sum over the s-th part of the tokens of grad (outer) centered values."""
    d = tl.program_id(0) % tl.cdiv(D, BLOCK_D) * BLOCK_D + tl.arange(0, BLOCK_D)
    p = tl.program_id(0) // tl.cdiv(D, BLOCK_D) * BLOCK_P + tl.arange(0, BLOCK_P)
    split = tl.program_id(1)
    offset = value_offset(p, frames, PH, SEGMENT)
    end = tl.minimum((split + 1) * split_tokens, M)
    total = tl.zeros([BLOCK_D, BLOCK_P], tl.float32)
    for start in tl.range(split * split_tokens, end, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        _, origin = token_origin(index_ptr, m, end, frames, PT, PH, SEGMENT)
        pixels = load_values(video_ptr, origin, offset, (m < end)[:, None] & (p < P)[None, :], ALIGNED)
        grad_mask = (m < end)[:, None] & (d < D)[None, :]
        grad = tl.load(grad_ptr + m.to(tl.int64)[:, None] * D + d[None, :], mask=grad_mask, other=0.0)
        values = centered(pixels).to(grad.dtype)
        total = tl.dot(tl.trans(grad), values, total, input_precision=PRECISION)
    address = (split.to(tl.int64) * D + d[:, None]) * P + p[None, :]
    tl.store(partial_ptr + address, total, mask=(d < D)[:, None] & (p < P)[None, :])


@triton.jit
def _unfold_gradient(
    partial_ptr,
    bias_grad_ptr,
    output_ptr,
    scales,
    shifts,
    D,
    SPLITS,
    VALUES,
    C: tl.constexpr,
    BLOCK_VALUES: tl.constexpr,
):
    """Write row d of the weight's gradient: partials added in order, folding undone, back to [C, pt, ph, pw]."""
    d = tl.program_id(0).to(tl.int64)
    value = tl.arange(0, BLOCK_VALUES)
    bias_grad = tl.load(bias_grad_ptr + d)
    for c in tl.static_range(C):
        for start in tl.range(0, VALUES, BLOCK_VALUES):
            mask = start + value < VALUES
            total = tl.zeros([BLOCK_VALUES], tl.float32)
            for split in tl.range(0, SPLITS):
                address = ((split * D + d) * VALUES + start + value) * C + c
                total += tl.load(partial_ptr + address, mask=mask, other=0.0)
            total = total * scales[c] + bias_grad * shifts[c]
            address = (d * C + c) * VALUES + start + value
            tl.store(output_ptr + address, total.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gather(
    video_ptr,
    index_ptr,
    output_ptr,
    means,
    stds,
    unit,
    M,
    frames,
    P: tl.constexpr,
    C: tl.constexpr,
    PT: tl.constexpr,
    PH: tl.constexpr,
    SEGMENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    m = tl.program_id(0) // tl.cdiv(P, BLOCK_P) * BLOCK_M + tl.arange(0, BLOCK_M)
    p = tl.program_id(0) % tl.cdiv(P, BLOCK_P) * BLOCK_P + tl.arange(0, BLOCK_P)
    _, origin = token_origin(index_ptr, m, M, frames, PT, PH, SEGMENT)
    mask = (m < M)[:, None] & (p < P)[None, :]
    offset = value_offset(p, frames, PH, SEGMENT)
    pixels = load_values(video_ptr, origin, offset, mask, ALIGNED).to(tl.float32) / unit
    mean = tl.zeros([BLOCK_P], tl.float32)
    std = tl.full([BLOCK_P], 1.0, tl.float32)
    for c in tl.static_range(C):
        mean = tl.where(p % C == c, means[c], mean)
        std = tl.where(p % C == c, stds[c], std)
    values = (pixels - mean[None, :]) / std[None, :]
    tl.store(output_ptr + m.to(tl.int64)[:, None] * P + p[None, :], values.to(output_ptr.dtype.element_ty), mask=mask)


def fold_constants(video: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """Return scales and shifts, one per channel, with (pixel - mean) / std = scale * centered(pixel) + shift."""
    half_range = 128 / 255 if video.dtype == torch.uint8 else 0.5
    scales = tuple(half_range / s for s in std)
    return scales, tuple((half_range - m) / s for m, s in zip(mean, std, strict=True))


class Embedding(NamedTuple):
    """What normalised pixels are multiplied with, and what is added: the registered op's arguments after the tokens."""

    weight: Tensor
    """[D, C, pt, ph, pw]."""
    bias: Tensor | None
    position: Tensor | None
    tubelet: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    dtype: torch.dtype
    """Dtype of the operands and the result; sums are float32."""


def tubelet_embed(video: Tensor, index: Tensor, *flat: Any) -> Tensor:
    """Return the embedded tubelets [B, K, D] in a new tensor; `flat` are the fields of `Embedding`."""
    embedding = Embedding(*flat)
    output = video.new_empty(*index.shape, embedding.weight.shape[0], dtype=embedding.dtype)
    _embed_into(output, None, video, index, embedding)
    return output


def tubelet_embed_into(out: Tensor, rows: Tensor, video: Tensor, index: Tensor, *flat: Any) -> None:
    """Write the same embedding to `rows` [B, K] of `out` [N, D], in place."""
    _embed_into(out, rows, video, index, Embedding(*flat))


def _embed_into(output: Tensor, rows: Tensor | None, video: Tensor, index: Tensor, embedding: Embedding) -> None:
    weight, bias, position, tubelet, mean, std, dtype = embedding
    video, index = video.contiguous(), index.contiguous()
    width = weight.shape[0]
    constants = layout(video, tubelet)
    folded = weight.new_empty(width, constants["P"], dtype=dtype)
    shift = weight.new_empty(width, dtype=torch.float32)
    launch(
        _fold,
        (width,),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        folded,
        shift,
        *fold_constants(video, mean, std),
        weight[0, 0].numel(),
        C=weight.shape[1],
        BIAS=bias is not None,
        tile=tuning.tile("fold", torch.float32, video.device),
    )
    tile = tuning.tile("embed", dtype, video.device)
    launch(
        _embed,
        (blocks(index.numel(), tile.blocks["BLOCK_M"]) * blocks(width, tile.blocks["BLOCK_D"]),),
        *(video, index, folded, shift, None if position is None else position.contiguous(), output, rows),
        *(index.numel(), width, strides(video, index, tubelet)),
        **constants,
        POSITION=position is not None,
        ROWS=rows is not None,
        PRECISION=dot_precision(dtype),
        tile=tile,
    )


def tubelet_embed_backward(
    grad: Tensor,
    video: Tensor,
    index: Tensor,
    weight: Tensor,
    tubelet: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    position: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of weight, bias (float32) and position (empty without it), given that of the embedding."""
    video, index = video.contiguous(), index.contiguous()
    grad = grad.contiguous().flatten(0, 1)
    count, width = grad.shape
    bias_grad = grad.sum(0, dtype=torch.float32)
    constants = layout(video, tubelet)
    tile = tuning.tile("weight_gradient", grad.dtype, video.device)
    sizes = tile.blocks
    tiles = blocks(width, sizes["BLOCK_D"]) * blocks(constants["P"], sizes["BLOCK_P"])
    steps = blocks(count, sizes["BLOCK_M"])
    split_steps = max(1, blocks(steps, max(1, _SPLIT_PROGRAMS // tiles)))
    splits = blocks(steps, split_steps)
    partial = grad.new_empty(splits, width, constants["P"], dtype=torch.float32)
    launch(
        _weight_gradient,
        (tiles, splits),
        grad,
        video,
        index,
        partial,
        count,
        width,
        split_steps * sizes["BLOCK_M"],
        strides(video, index, tubelet),
        **constants,
        PRECISION=dot_precision(grad.dtype),
        tile=tile,
    )
    weight_grad = torch.empty_like(weight, memory_format=torch.contiguous_format)
    launch(
        _unfold_gradient,
        (width,),
        partial,
        bias_grad,
        weight_grad,
        *fold_constants(video, mean, std),
        width,
        splits,
        weight[0, 0].numel(),
        C=weight.shape[1],
        tile=tuning.tile("fold", torch.float32, video.device),
    )
    if position is None:
        return weight_grad, bias_grad, grad.new_empty(0)
    return weight_grad, bias_grad, sum_by_key(grad, index.flatten(), position.shape[0], position.dtype)


def gather_tubelets(
    video: Tensor,
    index: Tensor,
    tubelet: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Return (pixels - mean) / std of the listed tubelets, [B, K, P] in `dtype`."""
    video, index = video.contiguous(), index.contiguous()
    constants = layout(video, tubelet)
    output = video.new_empty(*index.shape, constants["P"], dtype=dtype)
    tile = tuning.tile("gather", torch.float32, video.device)
    grid = (blocks(index.numel(), tile.blocks["BLOCK_M"]) * blocks(constants["P"], tile.blocks["BLOCK_P"]),)
    launch(
        _gather,
        grid,
        video,
        index,
        output,
        tuple(mean),
        tuple(std),
        255.0 if video.dtype == torch.uint8 else 1.0,
        index.numel(),
        strides(video, index, tubelet),
        C=video.shape[-1],
        tile=tile,
        **constants,
    )
    return output
