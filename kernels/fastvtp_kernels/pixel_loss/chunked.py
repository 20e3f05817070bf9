"""The masked pixel loss in plain PyTorch, a chunk of the target at a time: what backend="reference" runs."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..derivatives import function, wants_gradient
from ..precision import compute_dtype
from ..tubelets.reference import gather_pixels, to_unit_range
from ..validation import values_readable
from .reference import normalize_target
from .residual import gradients, residual_scale, save_residual

# Values of the target, and of the residual, in work at one time: 2 MiB in float32, which a cache holds.
_CHUNK_VALUES = 1 << 19


def _chunks(prediction: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield the clips and tokens of one chunk after another: whole clips, or parts of one."""
    clips, tokens, width = prediction.shape
    if torch.compiler.is_compiling():
        # A compiler fuses the target away; an unrolled loop would only give it dozens of copies to compile.
        yield slice(clips), slice(tokens)
        return
    clip_step = max(1, _CHUNK_VALUES // (tokens * width))
    token_step = max(1, _CHUNK_VALUES // width) if clip_step == 1 else tokens
    for clip in range(0, clips, clip_step):
        for token in range(0, tokens, token_step):
            yield slice(clip, clip + clip_step), slice(token, token + token_step)


def loss_and_residual(
    prediction: Tensor,
    video: Tensor,
    masked: Tensor,
    tubelet: Sequence[int],
    normalize: str | None,
    eps: float,
    with_residual: bool,
) -> tuple[Tensor, Tensor]:
    """Return the loss, and (prediction - target) * `residual_scale` in the prediction's dtype, empty unless wanted."""
    dtype = compute_dtype(prediction.dtype)
    total = prediction.new_zeros((), dtype=dtype)
    residual = prediction.new_empty(prediction.shape) if with_residual else prediction.new_empty(0)
    for clips, tokens in _chunks(prediction):
        pixels = to_unit_range(gather_pixels(video[clips], masked[clips, tokens], tubelet), dtype)
        target = normalize_target(pixels, video.shape[-1], normalize, eps)
        difference = prediction[clips, tokens].to(dtype) - target
        total = total + difference.square().sum()
        if with_residual:
            residual[clips, tokens] = difference * residual_scale(prediction)
    return total / prediction.numel(), residual


def scale_by_chunks(residual: Tensor, factor: Tensor) -> None:
    """residual *= factor in plain PyTorch; nothing to do for a factor of 1, where looking at it is free."""
    if values_readable(factor) and factor == 1:
        return
    for chunk in residual.view(-1).split(_CHUNK_VALUES):
        chunk.copy_(chunk.to(factor.dtype) * factor)


def _gradients(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    return gradients(ctx, grad_loss, scale_by_chunks)


_differentiable = function("masked_pixel_loss", loss_and_residual, save_residual, _gradients)


def masked_pixel_loss(
    prediction: Tensor, video: Tensor, masked: Tensor, tubelet: Sequence[int], normalize: str | None, eps: float
) -> Tensor:
    """Return `reference.masked_pixel_loss`, whose gradient is computed with the loss."""
    return _differentiable(prediction, video, masked, tubelet, normalize, eps, wants_gradient(prediction))[0]
