"""The contrastive head: projections of both modalities and the temperature of their similarities.

Shape legend: B = pairs of a text and a clip, D = width of the features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastvtp.modules.bounds import within_bounds
from fastvtp.modules.checks import check_choice, check_positive
from fastvtp.modules.layers import init_linear_xavier
from fastvtp.modules.losses import CONTRAST_PRECISIONS
from fastvtp.modules.precision import wide
from fastvtp.modules.rest_of_step import ALONE, Compared, RestOfStep

_LARGEST_SCALE = 100.0


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """Settings of a `Contrast`; the defaults are the released SimVTP's."""

    contrastive_directions: str = "sum"
    """The loss is the "sum" or the "mean" of those from text to video and from video to text."""
    contrast_precision: str = "auto"
    """How kernels multiply the features, which are float32, also where hard negatives are drawn: "float32" without
    tensor cores, "bf16x3" with them as three products of bfloat16, by which a logit at a temperature of 0.01 is wrong
    by up to 2e-4; "auto": the latter for more than 2048 pairs."""
    gather_negatives: bool = False
    """Contrast each text with the clips of the whole batch of a step, and the other way round, or with those of its
    micro-batch alone; `contrast_scope` of a run has the last word."""
    projection_dim: int | None = None
    """Width that both modalities are projected to; None: there are no projections."""
    temperature: float = 0.05
    """Initial value where it is learned."""
    learnable_temperature: bool = False
    """Learn the temperature, which then is at least 0.01 (CLIP, arXiv:2103.00020)."""

    def check_contrast(self) -> None:
        """Check these fields; raises ValueError with one line for the first that cannot be."""
        check_positive(self, "temperature")
        if self.learnable_temperature and self.temperature < 1 / _LARGEST_SCALE:
            raise ValueError(f"temperature must be at least 0.01 where it is learned, got {self.temperature}")
        check_choice(self, "contrastive_directions", ("mean", "sum"))
        check_choice(self, "contrast_precision", tuple(CONTRAST_PRECISIONS))
        if self.projection_dim is not None and self.projection_dim < 1:
            raise ValueError(f"projection_dim must be positive, or none, got {self.projection_dim}")


class Contrast(nn.Module):
    """Projections, temperature and loss of a video-text contrast (CLIP, arXiv:2103.00020).

    width: D, of the features before the projections, which are the caller's to apply.
    """

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
            self.parameter_bounds = {"log_logit_scale": (-math.inf, math.log(_LARGEST_SCALE))}
        else:
            self.register_buffer("log_logit_scale", log_scale, persistent=False)

    def init_weights(self) -> None:
        """Draw the projections and set the temperature to the config's; uses torch's global generator."""
        self.apply(init_linear_xavier)
        with torch.no_grad():
            self.log_logit_scale.fill_(-math.log(self.config.temperature))

    def logit_scale(self) -> Tensor:
        """Return the inverse temperature [], float32 (float64 of float64): where it is learned at most 100 as in CLIP,
        with a gradient there too."""
        return wide(within_bounds(self, "log_logit_scale")).exp()

    def compared(self, text: Tensor, video: Tensor) -> Compared:
        """Return projected features, [B, projection_dim or D] each, of which rows i belong together, with the
        temperature and the directions that they are compared with."""
        config = self.config
        return Compared(text, video, self.logit_scale(), config.contrastive_directions, config.contrast_precision)

    def forward(
        self, text: Tensor, video: Tensor, sample_ids: Tensor | None = None, rest: RestOfStep = ALONE
    ) -> Tensor:
        """Compute InfoNCE of projected features, [B, projection_dim or D] each, of which rows i belong together: a loss
        [].

        sample_ids: int64 [B]; rows with equal ids are the same clip and no negatives of each other. rest: of the step.
        """
        return rest.contrast(self.compared(text, video), sample_ids)
