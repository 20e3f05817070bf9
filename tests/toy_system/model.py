"""A model of colours: a clip is the mean of its pixels, a caption the mean of its words, and both meet in a contrast.

Shape legend: B = clips, N = tokens of all captions, D = width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fastvtp.modules.rest_of_step import ALONE, Collected, Compared, RestOfStep
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

    def compared(self, video: Tensor, input_ids: Tensor, cu_seqlens: Tensor) -> Compared:
        """What the contrast compares: texts and clips, [B, D] each, and the inverse temperature."""
        scale = torch.tensor(self.config.logit_scale, device=video.device)
        return Compared(self.encode_text(input_ids, cu_seqlens, 0), self.embed_video(video), scale)

    def forward(
        self, video: Tensor, input_ids: Tensor, cu_seqlens: Tensor, sample_ids: Tensor, rest: RestOfStep = ALONE
    ) -> Tensor:
        """The contrast of clips with their captions, []. rest: of the step that the batch is a part of."""
        return rest.contrast(self.compared(video, input_ids, cu_seqlens), sample_ids)

    @torch.no_grad()
    def collect(self, video: Tensor, input_ids: Tensor, cu_seqlens: Tensor) -> Collected:
        """What the other micro-batches of a step compare themselves with."""
        return Collected(compared=self.compared(video, input_ids, cu_seqlens))
