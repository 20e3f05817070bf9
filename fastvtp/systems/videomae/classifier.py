"""Video classification with a pretrained video tower (VideoMAE's fine-tuning).

Shape legend: B = clips, D = width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastvtp.modules.checks import check_positive, check_share
from fastvtp.modules.layers import init_linear_xavier
from fastvtp.modules.precision import in_float32, wide
from fastvtp.modules.rows import segment_mean
from fastvtp.modules.stacks import Stack
from fastvtp.systems.videomae.model import VideoEncoderConfig


@dataclass(frozen=True, kw_only=True)
class VideoClassifierConfig(VideoEncoderConfig):
    """Sizes of the video tower, and the head on it."""

    num_classes: int = 400
    head_dropout: float = 0.0
    head_init_scale: float = 1e-3
    """Factor on the head's initial weights: near-uniform predictions at first (VideoMAE)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_classes", "head_init_scale")
        check_share(self, "head_dropout")


class VideoClassifier(nn.Module):
    """Classifies clips as VideoMAE is fine-tuned: an encoder reads all tubelets, whose normalised mean a linear head
    judges."""

    def __init__(self, config: VideoClassifierConfig):
        super().__init__()
        self.config = config
        self.video_embeddings = config.video_embeddings()
        self.encoder = config.transformer(final_norm=False)
        self.norm = nn.LayerNorm(config.width, eps=config.head_norm_eps)
        self.dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(config.width, config.num_classes)

    def init_weights(self) -> None:
        """Initialise the weights as VideoMAE's, from torch's global generator."""
        for module in (self.encoder, self.norm):
            module.apply(init_linear_xavier)
        self.video_embeddings.init_weights()
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(self.config.head_init_scale)

    @property
    def device(self) -> torch.device:
        return self.video_embeddings.weight.device

    def stacks(self) -> list[Stack]:
        """Tell how deep the parameters stand, see `Stack`."""
        return [Stack(("video_embeddings",)).under("encoder.blocks", len(self.encoder.blocks))]

    def features(self, video: Tensor) -> Tensor:
        """Return the normalised mean token of each clip, which the head reads: uint8 [B, T, H, W, 3] -> float32 [B,
        D]."""
        x_ND, packing = self.video_embeddings.embed_clips(video)
        return in_float32(self.norm, segment_mean(self.encoder(x_ND, packing), packing.cu_seqlens))

    def forward(self, video: Tensor) -> Tensor:
        """Judge every class of each clip: uint8 [B, T, H, W, 3] -> logits [B, num_classes]."""
        features = self.features(video)
        # in float32: the loss of a bfloat16 logit is off by more than a step changes it
        with torch.autocast(features.device.type, enabled=False):
            return in_float32(self.head, self.dropout(wide(features)))
