"""Augmentation of a whole training batch, where clips are mixed and targets softened; single clips: `ClipAugmentation`.

B = clips, T = frames.
"""

from __future__ import annotations

import torch

from fastvtp.data.sampling import step_rng
from fastvtp.errors import UserError


def mixup(
    video: torch.Tensor, targets: torch.Tensor, alpha: float, *, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend each clip, and its target, with the one at the opposite place of the batch (mixup, arXiv 1710.09412).

    The whole batch shares one weight, drawn from Beta(alpha, alpha) as a function of (seed, step) alone; the partner is
    timm's, the batch reversed.

    Args:
        video: uint8 `[B, T, H, W, 3]`.
        targets: float32 `[B, classes]`, see `soft_targets`.
        alpha: positive; the larger, the more even the blend.

    Returns:
        uint8 `[B, T, H, W, 3]`, rounded, and float32 `[B, classes]`, on the devices of the arguments, which stay as
        they are.

    Raises:
        UserError: `alpha` is not positive, or a dtype or shape is another.
    """
    if alpha <= 0:
        raise UserError(f"mixup: alpha must be positive, got {alpha}")
    if video.dtype != torch.uint8 or video.dim() != 5:
        raise UserError(f"mixup: video: expected uint8 [B, T, H, W, 3], got {video.dtype} {list(video.shape)}")
    if not targets.is_floating_point() or targets.dim() != 2 or len(targets) != len(video):
        expected = f"float [{len(video)}, classes]"
        raise UserError(f"mixup: targets: expected {expected}, got {targets.dtype} {list(targets.shape)}")
    share = float(step_rng(seed, step).beta(alpha, alpha))
    mixed = video.float().mul_(share).add_(video.flip(0), alpha=1 - share)  # one float copy: clips are large
    return mixed.round_().to(torch.uint8), share * targets + (1 - share) * targets.flip(0)


def soft_targets(labels: torch.Tensor, num_classes: int, smoothing: float = 0.0) -> torch.Tensor:
    """Make the class probabilities to aim at: one-hot, of which the share `smoothing` is spread evenly over all
    classes.

    Args:
        labels: int64 `[B]`, from 0 to `num_classes` - 1.
        smoothing: from 0 to below 1 (label smoothing, arXiv 1512.00567).

    Returns:
        float32 `[B, num_classes]`; each row sums to 1.

    Raises:
        UserError: `smoothing` out of range, or labels that are not int64 `[B]`.
    """
    if not 0 <= smoothing < 1:
        raise UserError(f"soft_targets: smoothing: expected 0 <= smoothing < 1, got {smoothing}")
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise UserError(f"soft_targets: labels: expected int64 [B], got {labels.dtype} {list(labels.shape)}")
    targets = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - smoothing + smoothing / num_classes)
