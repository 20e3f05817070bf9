"""Decoder input of a masked autoencoder in plain PyTorch: the specification."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import compute_dtype


def assemble_tokens(
    visible: Tensor,
    mask_token: Tensor,
    position: Tensor,
    visible_index: Tensor,
    masked_index: Tensor,
    permutation: Tensor | None,
) -> Tensor:
    mask_rows = mask_token.to(visible.dtype).flatten().expand(*masked_index.shape, -1)
    sequence = torch.cat([visible, mask_rows], dim=1)
    if permutation is None:
        # Looked up before the cast: the table's gradient is then summed over the batch in its own precision.
        index = torch.cat([visible_index, masked_index], dim=1)
        return sequence + F.embedding(index, position).to(visible.dtype)
    order = permutation.long().expand(visible.shape[0], -1)[..., None].expand_as(sequence)
    return sequence.gather(1, order) + position.to(visible.dtype)


def assemble_tokens_backward(
    grad: Tensor,
    mask_token: Tensor,
    position: Tensor,
    visible_index: Tensor,
    masked_index: Tensor,
    permutation: Tensor | None,
    position_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of visible, of mask_token and of position (empty if not asked for), given that of the result."""
    dtype = compute_dtype(grad.dtype)
    visible_count = visible_index.shape[1]
    home = grad
    if permutation is not None:
        order = permutation.long().expand(grad.shape[0], -1).argsort(dim=1)
        home = grad.gather(1, order[..., None].expand_as(grad))
    visible_grad = home[:, :visible_count].contiguous()
    token_grad = home[:, visible_count:].sum((0, 1), dtype=dtype).to(mask_token.dtype).view(mask_token.shape)
    if not position_gradient:
        return visible_grad, token_grad, position.new_empty(0)
    if permutation is not None:
        return visible_grad, token_grad, grad.sum(0, dtype=dtype).to(position.dtype)
    index = torch.cat([visible_index, masked_index], dim=1).flatten()
    table = grad.new_zeros(position.shape, dtype=dtype).index_add_(0, index, grad.flatten(0, 1).to(dtype))
    return visible_grad, token_grad, table.to(position.dtype)
