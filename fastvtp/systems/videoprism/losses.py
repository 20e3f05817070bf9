"""Distillation of token features: cosine distances, and the order in which a decoder gets its tokens.

Shape legend: B = clips, L = tokens of a clip, D = width.
"""

from typing import Any

import torch
from torch import Tensor

from fastvtp_kernels import philox

_CHUNK = 1 << 21  # values that are float32 at a time
_TINY = 1e-16  # the square of a length below which a row has no direction


def cosine_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean over all rows of 1 - cos(prediction, target), computed in float32: [..., D] each -> [].

    Gradients reach `prediction` alone, and are made with the loss, a piece of the rows at a time: neither float32
    copies of bfloat16 features nor normalised ones exist as a whole, and the target is not kept for the backward.
    VideoPrism's distance between features (arXiv:2402.13217, section 2.3.2). Raises ValueError for unequal shapes.
    """
    if prediction.shape != target.shape or not prediction.numel():
        raise ValueError(
            f"prediction and target must have one shape, got {list(prediction.shape)}, {list(target.shape)}"
        )
    distance: Any = _CosineDistance.apply(prediction, target.detach())
    return distance


class _CosineDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor) -> Tensor:
        rows, wanted = prediction.flatten(0, -2), target.flatten(0, -2)
        size = max(1, _CHUNK // rows.shape[1])
        total = torch.zeros((), device=rows.device)
        gradient = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        for start in range(0, len(rows), size):
            x, t = (whole[start : start + size].float() for whole in (rows, wanted))
            scale = _inverse_length(x)
            t = t * _inverse_length(t) * scale
            cosine = (x * t).sum(dim=-1, keepdim=True)
            total += (1 - cosine).sum()
            if gradient is not None:
                gradient[start : start + size] = (x * (cosine * scale.square()) - t) / len(rows)
        if gradient is not None:
            ctx.save_for_backward(gradient.view_as(prediction))
        return total / len(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None


def _inverse_length(x: Tensor) -> Tensor:
    """Return one over the length of each row, finite for a zero row: [..., D] -> [..., 1]."""
    return x.square().sum(dim=-1, keepdim=True).clamp(min=_TINY).rsqrt()


def shuffled_order(sample_ids: Tensor, length: int, *, seed: int, step: int) -> Tensor:
    """Draw a permutation of `length` places for each sample: int64 [B] -> int64 [B, length].

    It follows from (seed, step, sample id) alone: bit-identical on every device, in any batch, on any rank.
    """
    place = torch.arange(length, device=sample_ids.device)
    counter = (*philox.split_words(sample_ids.long()[:, None]), step, place)
    return philox.random_words(philox.TOKEN_ORDER, seed, counter)[0].argsort(dim=1, stable=True)
