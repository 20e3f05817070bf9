"""Mean squared error against the pixels of the masked tubelets, in plain PyTorch: the specification."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..precision import compute_dtype
from ..tubelets.reference import gather_pixels, to_unit_range

# Values of the target that exist at one time (at least one clip's): 2 MiB in float32, which a cache holds.
_CHUNK_VALUES = 1 << 19


def normalize_target(pixels: Tensor, channels: int, normalize: str | None, eps: float) -> Tensor:
    """(x - mean) / (sqrt(unbiased variance) + eps) of pixels [..., P], over a token or over each of its channels."""
    if normalize is None:
        return pixels
    groups = pixels.unflatten(-1, (-1, channels if normalize == "patch_channel" else 1))
    centered = groups - groups.mean(dim=-2, keepdim=True)
    variance = centered.square().sum(dim=-2, keepdim=True) / (groups.shape[-2] - 1)
    return (centered / (variance.sqrt() + eps)).flatten(-2)


def _clip_chunks(tensor: Tensor) -> Iterator[slice]:
    clips = max(1, _CHUNK_VALUES // tensor[0].numel())
    if torch.compiler.is_compiling():
        # A compiler fuses the target away; an unrolled loop would only give it dozens of copies to compile.
        clips = tensor.shape[0]
    for start in range(0, tensor.shape[0], clips):
        yield slice(start, start + clips)


class _MaskedPixelLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        prediction: Tensor,
        video: Tensor,
        masked: Tensor,
        tubelet: tuple[int, int, int],
        normalize: str | None,
        eps: float,
    ) -> Tensor:
        dtype = compute_dtype(prediction.dtype)
        total = prediction.new_zeros((), dtype=dtype)
        residual = torch.empty_like(prediction) if ctx.needs_input_grad[0] else None
        for clips in _clip_chunks(prediction):
            pixels = to_unit_range(gather_pixels(video[clips], masked[clips], tubelet), dtype)
            difference = prediction[clips].to(dtype) - normalize_target(pixels, video.shape[-1], normalize, eps)
            total = total + difference.square().sum()
            if residual is not None:
                residual[clips] = difference
        ctx.save_for_backward(residual)
        return total / prediction.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (residual,) = ctx.saved_tensors
        # 2 / count alone underflows in float16; a loss scaler's factor arrives with grad_loss.
        scale = grad_loss * (2 / residual.numel())
        gradient = torch.empty_like(residual)
        for clips in _clip_chunks(residual):
            gradient[clips] = residual[clips].to(scale.dtype) * scale
        return gradient, None, None, None, None, None


def masked_pixel_loss(
    prediction: Tensor,
    video: Tensor,
    masked: Tensor,
    tubelet: tuple[int, int, int],
    normalize: str | None,
    eps: float,
) -> Tensor:
    loss = _MaskedPixelLoss.apply(prediction, video, masked, tubelet, normalize, eps)
    assert isinstance(loss, Tensor)
    return loss
