"""Tokens of the listed tubelets, read straight from the decoder's frames."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dispatch import implementation, register
from ..validation import check_channels, check_devices, check_floating, check_index, check_shape, check_video
from . import reference

register("gather_tubelets", reference=reference.gather_tubelets)
register("tubelet_embed", reference=reference.tubelet_embed)


def gather_tubelets(
    video: Tensor,
    index: Tensor,
    *,
    tubelet: tuple[int, int, int] = (2, 16, 16),
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Tensor:
    """Normalised values (x / 255 - mean) / std of the listed tubelets; nothing else of the clip is read.

    Args:
        video: uint8 [B, T, H, W, C], or floating point in [0, 1] (then not divided by 255). Receives no gradient.
            A video whose memory is not contiguous is copied first.
        index: int32 or int64 [B, K], token indices (t * h + y) * w + x on the tubelet grid (t, h, w).
        tubelet: (pt, ph, pw) frames, lines and columns per token; each divides the video's size.
        mean: per channel, in units of [0, 1].
        std: per channel, in units of [0, 1].
        dtype: of the result; arithmetic is float32 (float64 for float64).
        backend: see `fastvtp_kernels.dispatch`.

    Returns:
        [B, K, P], P = pt * ph * pw * C, value order inside a token (pt, ph, pw, C).

    Raises:
        ValueError: a shape does not fit or (on the CPU) an index is outside the grid.
        TypeError: a dtype is not one of those above.
    """
    _check("gather_tubelets", video, index, tubelet, mean, std)
    run = implementation("gather_tubelets", backend, video.device)
    return run(video, index, tuple(tubelet), mean, std, dtype)


def tubelet_embed(
    video: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None = None,
    *,
    tubelet: tuple[int, int, int] = (2, 16, 16),
    mean: Sequence[float],
    std: Sequence[float],
    backend: str | None = None,
) -> Tensor:
    """Patch embedding of the listed tubelets only: a Conv3d with stride = kernel, evaluated where it is needed.

    Equal to `conv3d((video / 255 - mean) / std)` followed by taking the listed tokens and adding their positions.
    Gradients flow to weight, bias and position.

    Args:
        video: uint8 [B, T, H, W, C], or floating point in [0, 1] (then not divided by 255). Receives no gradient.
        index: int32 or int64 [B, K], token indices (t * h + y) * w + x on the tubelet grid (t, h, w).
        weight: [D, C, pt, ph, pw], the layout of torch.nn.Conv3d.
        bias: [D] or None.
        position: [t * h * w, D], added to each token by its index, or None.
        tubelet: (pt, ph, pw).
        mean: per channel, in units of [0, 1].
        std: per channel, in units of [0, 1].
        backend: see `fastvtp_kernels.dispatch`.

    Returns:
        [B, K, D] in the dtype of `weight`; under torch.autocast in its dtype.

    Raises:
        ValueError: a shape does not fit or (on the CPU) an index is outside the grid.
        TypeError: a dtype is not one of those above.
    """
    tokens = _check("tubelet_embed", video, index, tubelet, mean, std)
    check_floating("tubelet_embed", weight=weight)
    check_shape("tubelet_embed", "weight", weight, "D", video.shape[-1], *tubelet)
    if bias is not None:
        check_shape("tubelet_embed", "bias", bias, weight.shape[0])
    if position is not None:
        check_shape("tubelet_embed", "position", position, tokens, weight.shape[0])
    check_devices("tubelet_embed", video=video, weight=weight, bias=bias, position=position)
    run = implementation("tubelet_embed", backend, video.device)
    return run(video, index, weight, bias, position, tuple(tubelet), mean, std)


def _check(
    op: str,
    video: Tensor,
    index: Tensor,
    tubelet: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> int:
    grid = check_video(op, video, tubelet)
    tokens = grid[0] * grid[1] * grid[2]
    check_index(op, "index", index, tokens, video.shape[0], "K")
    check_devices(op, video=video, index=index)
    check_channels(op, "mean", mean, video.shape[-1])
    check_channels(op, "std", std, video.shape[-1])
    return tokens
