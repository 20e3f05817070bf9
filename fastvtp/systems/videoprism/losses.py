"""Distillation of token features: cosine distances, and the order in which a decoder gets its tokens.

Shape legend: B = clips, L = tokens of a clip, D = width.
"""

from typing import Any

import torch
from torch import Tensor

from fastvtp_kernels import philox
from fastvtp_kernels.derivatives import function, wants_gradient

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
    return _differentiable(prediction, target.detach(), wants_gradient(prediction))[0]


def _distance(prediction: Tensor, target: Tensor, differentiate: bool) -> tuple[Tensor, Tensor]:
    """Return the distance [] and its gradient for the prediction, which is empty unless asked for."""
    rows, wanted = prediction.flatten(0, -2), target.flatten(0, -2)
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    size = max(1, _CHUNK // rows.shape[1])
    total = rows.new_zeros((), dtype=dtype)
    gradient = torch.empty_like(rows) if differentiate else rows.new_empty(0)
    for start in range(0, len(rows), size):
        x, t = (whole[start : start + size].to(dtype) for whole in (rows, wanted))
        scale = _inverse_length(x)
        t = t * _inverse_length(t) * scale
        cosine = (x * t).sum(dim=-1, keepdim=True)
        total += (1 - cosine).sum()
        if differentiate:
            gradient[start : start + size] = (x * (cosine * scale.square()) - t) / len(rows)
    return total / len(rows), gradient.view_as(prediction) if differentiate else gradient


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    # The gradient is nobody's to differentiate.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _gradients(ctx: Any, of_distance: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
    if of_distance is None:
        return None, None, None
    (gradient,) = ctx.saved_tensors
    return gradient * of_distance.to(gradient.dtype), None, None


_differentiable = function(
    "cosine_distance", _distance, _keep, _gradients, "torch.nn.functional.cosine_similarity has every derivative"
)


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
