"""A model of colours: a clip is the mean of its pixels, a caption the mean of its words, and both meet in a contrast.

Shape legend: B = clips, N = tokens of all captions, D = width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fastvtp.modules.losses import video_text_contrast
from fastvtp.modules.rows import segment_mean


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Sizes of a `Toy`; the names of the first four are those that every engine reads."""

    num_frames: int = 4
    image_size: int = 32
    max_text_length: int = 16
    vocab_size: int = 30522
    width: int = 16
    logit_scale: float = 10.0


class Toy(nn.Module):
    """What an engine asks of a model: `init_weights`, `device`, a forward pass, and the embeddings that scores need."""

    averages_unit_views = False

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.config = config
        self.video_projection = nn.Linear(3, config.width)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width)

    def init_weights(self) -> None:
        """Draw all weights from torch's global generator: a model is built without memory first."""
        nn.init.normal_(self.video_projection.weight)
        nn.init.zeros_(self.video_projection.bias)
        nn.init.normal_(self.word_embeddings.weight)

    @property
    def device(self) -> torch.device:
        return self.video_projection.weight.device

    def embed_video(self, video: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] -> [B, D], raw."""
        return self.video_projection(video.float().mean(dim=(1, 2, 3)) / 255 - 0.5)

    def encode_video(self, video: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] -> [B, D] of unit length."""
        return normalize(self.embed_video(video), dim=-1)

    def encode_text(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """int64 [N] -> [B, D] of unit length, the mean over each caption."""
        return normalize(segment_mean(self.word_embeddings(input_ids), cu_seqlens), dim=-1)

    def forward(self, video: Tensor, input_ids: Tensor, cu_seqlens: Tensor, sample_ids: Tensor) -> Tensor:
        """The contrast of clips with their captions, []."""
        text = self.encode_text(input_ids, cu_seqlens, 0)
        scale = torch.tensor(self.config.logit_scale, device=video.device)
        return video_text_contrast(text, self.embed_video(video), scale, sample_ids=sample_ids)
