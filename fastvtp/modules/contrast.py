"""The contrastive head: projections of both modalities and the temperature of their similarities."""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastvtp.modules.checks import check_choice, check_positive
from fastvtp.modules.layers import init_linear_xavier
from fastvtp.modules.losses import video_text_contrast


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """Settings of a `Contrast`; the defaults are the released SimVTP's."""

    contrastive_directions: str = "sum"
    """"sum" or "mean" of text-to-video and video-to-text."""
    gather_negatives: bool = False
    """Contrast with the clips of all ranks."""
    projection_dim: int | None = None
    """Width that both modalities are projected to; None: none."""
    temperature: float = 0.05
    learnable_temperature: bool = False

    def check_contrast(self) -> None:
        """Raises ValueError with one line."""
        check_positive(self, "temperature")
        check_choice(self, "contrastive_directions", ("mean", "sum"))
        if self.projection_dim is not None and self.projection_dim < 1:
            raise ValueError(f"projection_dim must be positive, or none, got {self.projection_dim}")


class Contrast(nn.Module):
    """Projections, temperature and loss of a video-text contrast (CLIP, arXiv:2103.00020)."""

    log_logit_scale: Tensor

    def __init__(self, config: ContrastConfig, width: int):
        super().__init__()
        self.config = config
        if config.projection_dim is None:
            self.video_projection = self.text_projection = nn.Identity()
        else:
            self.video_projection = nn.Linear(width, config.projection_dim, bias=False)
            self.text_projection = nn.Linear(width, config.projection_dim, bias=False)
        log_scale = torch.empty(())
        if config.learnable_temperature:
            self.log_logit_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_logit_scale", log_scale, persistent=False)

    def init_weights(self) -> None:
        self.apply(init_linear_xavier)
        with torch.no_grad():
            self.log_logit_scale.fill_(-math.log(self.config.temperature))

    def logit_scale(self) -> Tensor:
        """The inverse temperature [], at most 100 as in CLIP."""
        return self.log_logit_scale.exp().clamp(max=100.0)

    def forward(self, text: Tensor, video: Tensor, sample_ids: Tensor | None = None) -> Tensor:
        """InfoNCE of projected features: text, video [B, projection_dim or D], row i belongs to row i -> [].

        sample_ids: int64 [B]; rows with equal ids are the same clip and no negatives of each other.
        """
        return video_text_contrast(
            text,
            video,
            self.logit_scale(),
            sample_ids=sample_ids,
            directions=self.config.contrastive_directions,
            group=world_group(self.config.gather_negatives),
        )


def world_group(gather: bool) -> dist.ProcessGroup | None:
    """All ranks, where there are several and `gather` says so."""
    return dist.group.WORLD if gather and dist.is_available() and dist.is_initialized() else None
