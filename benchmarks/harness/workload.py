"""Gives the tubelet benchmarks their shapes, and the usual code what it takes in place of uint8 frames."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvtp_kernels import TubeMask, tube_mask

from .case import Options

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Workload:
    """A workload has the shapes of a VideoMAE pretraining step: clips, tubelets, widths of encoder and decoder."""

    name: str
    batch: int
    frames: int = 16
    size: int = 224
    width: int = 768
    decoder_width: int = 384
    tubelet: tuple[int, int, int] = (2, 16, 16)
    mask_ratio: float = 0.9

    @property
    def grid(self) -> tuple[int, int, int]:
        """Return how many tubelets a clip has along time, height and width."""
        frames, height, width = self.tubelet
        return self.frames // frames, self.size // height, self.size // width

    @property
    def tokens(self) -> int:
        """Return how many tubelets, and so tokens, a clip has."""
        return math.prod(self.grid)

    @property
    def values(self) -> int:
        """Return how many pixel values a tubelet has, P."""
        return math.prod(self.tubelet) * 3

    def video(self, device: torch.device) -> Tensor:
        """Return random frames, uint8 [B, T, H, W, 3]."""
        shape = (self.batch, self.frames, self.size, self.size, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    def mask(self, device: torch.device) -> TubeMask:
        """Return a tube mask of the clips, the same one in every run."""
        return tube_mask(self.batch, self.grid, self.mask_ratio, seed=0, device=device)

    def shape(self, **more: int) -> dict[str, int]:
        """Return the sizes that a row names, with what a case adds to them."""
        return {"batch": self.batch, "frames": self.frames, "size": self.size, "tokens": self.tokens, **more}


def workload(options: Options) -> Workload:
    """Return VideoMAE-B at the batch of one H200 on CUDA, of a minute on the CPU; in smoke nine cells in two slots."""
    if options.smoke:
        return Workload("smoke", batch=2, frames=4, size=24, width=32, decoder_width=16, tubelet=(2, 8, 8))
    return Workload("VideoMAE-B", batch=64 if options.device.type == "cuda" else 4)


def channel_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation as float32 [C, 1, 1, 1]: they broadcast over [B, C, T, H, W]."""
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std


def normalized_clip(video: Tensor) -> Tensor:
    """Make of uint8 [B, T, H, W, C] what VideoMAE's loader does: float32 [B, C, T, H, W], (x / 255 - mean) / std."""
    return _normalized(video.permute(0, 4, 1, 2, 3), *channel_constants(video.device))


def normalized_frames(video: Tensor) -> Tensor:
    """Make of uint8 [B, T, H, W, C] what transformers' VideoMAE takes: the same values as float32 [B, T, C, H, W]."""
    mean, std = (values.squeeze(-1) for values in channel_constants(video.device))
    return _normalized(video.permute(0, 1, 4, 2, 3), mean, std)


def _normalized(video: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    clip = video.to(torch.float32, memory_format=torch.contiguous_format)
    return clip.div_(255).sub_(mean).div_(std)


def boolean_mask(masked: Tensor, tokens: int) -> Tensor:
    """Return the listed tokens as bool [B, tokens], True where hidden, which is how VideoMAE's loader has masks."""
    mask = torch.zeros(masked.shape[0], tokens, dtype=torch.bool, device=masked.device)
    return mask.scatter_(1, masked.long(), True)


def patchify(clip: Tensor, tubelet: tuple[int, int, int]) -> Tensor:
    """Cut [B, C, T, H, W] into tubelets [B, tokens, pt * ph * pw, C], as einops' rearrange would copy it."""
    pt, ph, pw = tubelet
    batch, channels, frames, height, width = clip.shape
    parts = clip.reshape(batch, channels, frames // pt, pt, height // ph, ph, width // pw, pw)
    tokens = frames // pt * (height // ph) * (width // pw)
    return parts.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(batch, tokens, pt * ph * pw, channels)


def engine_loss(prediction: Tensor, clip: Tensor, hidden: Tensor, tubelet: tuple[int, int, int]) -> Tensor:
    """Return the loss [] of VideoMAE's pretraining loop.

    The prediction [B, Km, P] is held against those tubelets of the normalised clip [B, C, T, H, W] that `hidden`, bool
    [B, tokens], marks.
    """
    mean, std = channel_constants(clip.device)
    # The named intermediates, and no others, stay in memory until the loss is there: as in the released loop.
    with torch.no_grad():
        unit_range = clip * std + mean
        patches = patchify(unit_range, tubelet)
        deviation = patches.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6
        normalized = (patches - patches.mean(dim=-2, keepdim=True)) / deviation
        target = normalized.flatten(2)[hidden].reshape(prediction.shape)
    # Under torch.autocast the loss is computed in float32.
    return F.mse_loss(prediction.float(), target)
