"""Gather and embed listed tubelets in plain PyTorch: the specification."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import compute_dtype


def gather_pixels(video: Tensor, index: Tensor, tubelet: Sequence[int]) -> Tensor:
    """Return the raw values of the listed tubelets, [B, K, P] in the video's dtype, value order (pt, ph, pw, C)."""
    batch_size, frames, height, width, channels = video.shape
    pt, ph, pw = tubelet
    grid_height, grid_width = height // ph, width // pw
    # The unit copied is one tubelet's share of a scan line: pw * C consecutive values.
    segments = video.detach().reshape(-1, pw * channels)
    token = index.long()
    t, y, x = token // (grid_height * grid_width), token // grid_width % grid_height, token % grid_width
    clip = torch.arange(batch_size, device=video.device)[:, None]
    first = ((clip * frames + t * pt) * height + y * ph) * grid_width + x
    frame = torch.arange(pt, device=video.device)[:, None]
    line = torch.arange(ph, device=video.device)
    segment = first[..., None, None] + (frame * height + line) * grid_width
    return segments.index_select(0, segment.flatten()).view(*index.shape, pt * ph * pw * channels)


def to_unit_range(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Return pixels in [0, 1]: uint8 is divided by 255, floating point already is in that range."""
    return pixels.to(dtype) / 255 if pixels.dtype == torch.uint8 else pixels.to(dtype)


def gather_tubelets(
    video: Tensor,
    index: Tensor,
    tubelet: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Return (pixels - mean) / std of the listed tubelets, [B, K, P] in `dtype`; mean and std are one number per
    channel."""
    pixels = to_unit_range(gather_pixels(video, index, tubelet), compute_dtype(dtype))
    pixels = pixels.unflatten(-1, (-1, video.shape[-1]))
    return ((pixels - _per_channel(mean, pixels)) / _per_channel(std, pixels)).flatten(-2).to(dtype)


def tubelet_embed(
    video: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    tubelet: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """[B, K, D]: the listed tubelets times the weight [D, C, pt, ph, pw], plus bias [D] and their rows of position."""
    tokens = gather_tubelets(video, index, tubelet, mean, std, weight.dtype)
    matrix = weight.permute(0, 2, 3, 4, 1).flatten(1)
    embedded = F.linear(tokens, matrix, bias)
    return embedded if position is None else embedded + F.embedding(index, position).to(embedded.dtype)


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """Return the values as a tensor [C] in the dtype and on the device of `like`."""
    # Filled one by one: torch.tensor(values) on an accelerator would wait for a copy from the host.
    return torch.stack([like.new_full((), value) for value in values])
