"""The masked pixel loss in plain PyTorch: the specification, with the whole target in memory."""

from collections.abc import Sequence

from torch import Tensor

from ..precision import compute_dtype
from ..tubelets.reference import gather_pixels, to_unit_range


def normalize_target(pixels: Tensor, channels: int, normalize: str | None, eps: float) -> Tensor:
    """Return (x - mean) / (sqrt(unbiased variance) + eps) of pixels [..., P], over a token or over each of its
    channels."""
    if normalize is None:
        return pixels
    groups = pixels.unflatten(-1, (-1, channels if normalize == "patch_channel" else 1))
    centered = groups - groups.mean(dim=-2, keepdim=True)
    # once more: the mean of equal pixels may be off by a rounding, which the division by eps would make a target
    centered = centered - centered.mean(dim=-2, keepdim=True)
    variance = centered.square().sum(dim=-2, keepdim=True) / (groups.shape[-2] - 1)
    return (centered / (variance.sqrt() + eps)).flatten(-2)


def masked_pixel_loss(
    prediction: Tensor, video: Tensor, masked: Tensor, tubelet: Sequence[int], normalize: str | None, eps: float
) -> Tensor:
    """Compute the mean squared error of prediction [B, Km, P] against the pixels of the tokens `masked` [B, Km] of the
    video.

    A scalar in float32 (float64 for a float64 prediction), the dtype of all arithmetic.
    """
    dtype = compute_dtype(prediction.dtype)
    pixels = to_unit_range(gather_pixels(video, masked, tubelet), dtype)
    target = normalize_target(pixels, video.shape[-1], normalize, eps)
    return (prediction.to(dtype) - target).square().mean()
