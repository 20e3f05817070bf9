"""Triton kernels of the decoder's input, and their launchers.

Shape legend: L = Kv + Km places of a clip, D width. One program writes or reads whole rows.
"""
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (The body of a @triton.jit function is Triton's language, which looks like Python.)

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import tuning
from ..launching import blocks, launch
from ..segments.kernels import sum_by_key


@triton.jit
def _source(permutation_ptr, clip, place, length, order_stride, PERMUTED: tl.constexpr):
    """Tell which of the tokens [visible ..., masked ...] stands at each place of the sequence."""
    if PERMUTED:
        return tl.load(permutation_ptr + clip * order_stride + place, mask=place < length, other=0).to(tl.int32)
    else:
        return place


@triton.jit
def _assemble(
    visible_ptr,
    token_ptr,
    position_ptr,
    visible_index_ptr,
    masked_index_ptr,
    permutation_ptr,
    output_ptr,
    visible_count,
    masked_count,
    order_stride,
    D,
    PERMUTED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    length = visible_count + masked_count
    chunks = tl.cdiv(length, BLOCK_ROWS)
    clip = (tl.program_id(0) // chunks).to(tl.int64)
    place = tl.program_id(0) % chunks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    exists, column = (place < length)[:, None], (d < D)[None, :]
    source = _source(permutation_ptr, clip, place, length, order_stride, PERMUTED)
    is_visible = source < visible_count
    row = clip * visible_count + source
    visible = tl.load(
        visible_ptr + row[:, None] * D + d[None, :], mask=exists & is_visible[:, None] & column, other=0.0
    )
    token = tl.load(token_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    total = tl.where(is_visible[:, None], visible.to(tl.float32), token[None, :])
    if PERMUTED:
        position = place
    else:
        first = tl.load(visible_index_ptr + row, mask=(place < length) & is_visible, other=0)
        hidden = clip * masked_count + source - visible_count
        second = tl.load(masked_index_ptr + hidden, mask=(place < length) & (source >= visible_count), other=0)
        position = tl.where(is_visible, first.to(tl.int32), second.to(tl.int32))
    total += tl.load(position_ptr + position[:, None] * D + d[None, :], mask=exists & column, other=0.0).to(tl.float32)
    address = (clip * length + place)[:, None] * D + d[None, :]
    tl.store(output_ptr + address, total.to(output_ptr.dtype.element_ty), mask=exists & column)


@triton.jit
def _assemble_backward(
    grad_ptr,
    permutation_ptr,
    visible_grad_ptr,
    partial_ptr,
    visible_count,
    length,
    order_stride,
    D,
    PERMUTED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Write each visible token's gradient to its own row; partial[program] = sum over this program's mask tokens."""
    parts = tl.cdiv(length, BLOCK_ROWS * STEPS)
    clip = (tl.program_id(0) // parts).to(tl.int64)
    first = tl.program_id(0) % parts * BLOCK_ROWS * STEPS
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    column = (d < D)[None, :]
    total = tl.zeros([BLOCK_D], tl.float32)
    for step in tl.range(0, STEPS):
        place = first + step * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        exists = place < length
        source = _source(permutation_ptr, clip, place, length, order_stride, PERMUTED)
        is_visible = (source < visible_count)[:, None]
        address = (clip * length + place)[:, None] * D + d[None, :]
        grad = tl.load(grad_ptr + address, mask=exists[:, None] & column, other=0.0)
        row = clip * visible_count + source
        tl.store(visible_grad_ptr + row[:, None] * D + d[None, :], grad, mask=exists[:, None] & is_visible & column)
        total += tl.sum(tl.where(is_visible, 0.0, grad.to(tl.float32)), axis=0)
    tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * D + d, total, mask=d < D)


def _order_stride(permutation: Tensor | None) -> int:
    return permutation.shape[-1] if permutation is not None and permutation.ndim == 2 else 0


def assemble_tokens(
    visible: Tensor,
    mask_token: Tensor,
    position: Tensor,
    visible_index: Tensor,
    masked_index: Tensor,
    permutation: Tensor | None,
) -> Tensor:
    """Return the decoder's input [B, Kv + Km, D] as `reference.assemble_tokens`, sums in float32."""
    batch_size, visible_count, width = visible.shape
    length = visible_count + masked_index.shape[1]
    output = visible.new_empty(batch_size, length, width)
    tile = tuning.tile("assemble", torch.float32, visible.device)
    chunks = blocks(length, tile.blocks["BLOCK_ROWS"])
    launch(
        _assemble,
        (batch_size * chunks, blocks(width, tile.blocks["BLOCK_D"])),
        visible.contiguous(),
        mask_token.contiguous(),
        position.contiguous(),
        visible_index.contiguous(),
        masked_index.contiguous(),
        None if permutation is None else permutation.contiguous(),
        output,
        visible_count,
        length - visible_count,
        _order_stride(permutation),
        width,
        PERMUTED=permutation is not None,
        tile=tile,
    )
    return output


def assemble_tokens_backward(
    grad: Tensor,
    mask_token: Tensor,
    position: Tensor,
    visible_index: Tensor,
    masked_index: Tensor,
    permutation: Tensor | None,
    position_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of visible, mask_token and position (empty unless wanted), given that of the result.

    Of mask_token and position themselves only shape and dtype count.
    """
    grad = grad.contiguous()
    batch_size, length, width = grad.shape
    visible_count = visible_index.shape[1]
    visible_grad = grad.new_empty(batch_size, visible_count, width)
    tile = tuning.tile("assemble_backward", torch.float32, grad.device)
    parts = blocks(length, tile.blocks["BLOCK_ROWS"] * tile.blocks["STEPS"])
    partial = grad.new_empty(batch_size * parts, width, dtype=torch.float32)
    launch(
        _assemble_backward,
        (batch_size * parts, blocks(width, tile.blocks["BLOCK_D"])),
        grad,
        None if permutation is None else permutation.contiguous(),
        visible_grad,
        partial,
        visible_count,
        length,
        _order_stride(permutation),
        width,
        PERMUTED=permutation is not None,
        tile=tile,
    )
    token_grad = partial.sum(0).to(mask_token.dtype).view(mask_token.shape)
    if not position_gradient:
        return visible_grad, token_grad, position.new_empty(0)
    if permutation is not None:
        return visible_grad, token_grad, grad.sum(0, dtype=torch.float32).to(position.dtype)
    key = torch.cat([visible_index, masked_index], dim=1).flatten()
    return visible_grad, token_grad, sum_by_key(grad.flatten(0, 1), key, position.shape[0], position.dtype)
