"""The backward pass of the registered `tubelet_embed` in plain PyTorch, where no kernels run."""

from collections.abc import Sequence

from torch import Tensor

from ..precision import compute_dtype
from .reference import gather_tubelets


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
    tokens = gather_tubelets(video, index, tubelet, mean, std, grad.dtype).flatten(0, 1)
    rows = grad.flatten(0, 1)
    matrix = rows.mT @ tokens
    kernel = matrix.unflatten(1, (*tubelet, -1)).permute(0, 4, 1, 2, 3).to(weight.dtype)
    bias = rows.sum(0, dtype=compute_dtype(rows.dtype))
    if position is None:
        return kernel.contiguous(), bias, rows.new_empty(0)
    table = bias.new_zeros(position.shape).index_add_(0, index.flatten(), rows.to(bias.dtype))
    return kernel.contiguous(), bias, table.to(position.dtype)
