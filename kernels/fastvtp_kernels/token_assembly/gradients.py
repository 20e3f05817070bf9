"""The backward pass of the registered `assemble_tokens` in plain PyTorch, where no kernels run."""

import torch
from torch import Tensor

from ..precision import compute_dtype


def assemble_tokens_backward(
    grad: Tensor,
    mask_token: Tensor,
    position: Tensor,
    visible_index: Tensor,
    masked_index: Tensor,
    permutation: Tensor | None,
    position_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of visible, mask_token and position (empty unless wanted), given that of the result."""
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
