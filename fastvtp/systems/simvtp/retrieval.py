"""The retrieval model that a pretrained SimVTP is fine-tuned as: a video tower and a text tower."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fastvtp.modules.bert import TextConfig, TextEmbeddings
from fastvtp.modules.contrast import Contrast, ContrastConfig
from fastvtp.modules.layers import Transformer, init_linear_xavier
from fastvtp.modules.packing import join_packings
from fastvtp.modules.precision import in_float32
from fastvtp.modules.rest_of_step import ALONE, Collected, RestOfStep, Wanted
from fastvtp.modules.rows import segment_mean
from fastvtp.modules.stacks import Stack
from fastvtp.systems.videomae.model import VideoEncoderConfig


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig(VideoEncoderConfig, TextConfig, ContrastConfig):
    """Sizes of both towers, which are equal, and the contrast. The defaults are the released SimVTP's."""

    shared_encoder: bool = False
    """One transformer for both modalities, as in pretraining, in one packed call; else two copies (as released)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_text()
        self.check_contrast()


@dataclass(frozen=True)
class DualEncoderOutput:
    """What `DualEncoder.forward` gives. loss: []. terms: loss and temperature by name, [] each, detached. text, video:
    float32 [B, D or projection_dim], the features that were contrasted, not scaled to unit length, with their graph."""

    loss: Tensor
    terms: dict[str, Tensor]
    text: Tensor
    video: Tensor


class DualEncoder(nn.Module):
    """Makes one vector of each whole clip and of each caption: the mean of the encoded tokens, a LayerNorm, and a
    projection if there is one.

    `text_encoder` is None where the config shares the transformer; `video_encoder` then reads both.
    """

    averages_unit_views = False
    """Retrieval averages a clip's views as `embed_video` gives them."""

    def __init__(self, config: DualEncoderConfig):
        super().__init__()
        self.config = config
        self.video_embeddings = config.video_embeddings()
        self.text_embeddings = TextEmbeddings(config, config.width)
        self.video_encoder = config.transformer(final_norm=False)
        self.text_encoder = None if config.shared_encoder else config.transformer(final_norm=False)
        self.video_norm = nn.LayerNorm(config.width, eps=config.head_norm_eps)
        self.text_norm = nn.LayerNorm(config.width, eps=config.head_norm_eps)
        self.contrast = Contrast(config, config.width)

    def init_weights(self) -> None:
        """Initialise the weights as VideoMAE's, from torch's global generator."""
        for module in (self.video_encoder, self.text_encoder, self.video_norm, self.text_norm):
            if module is not None:
                module.apply(init_linear_xavier)
        for module in (self.contrast, self.video_embeddings, self.text_embeddings):
            module.init_weights()

    @property
    def device(self) -> torch.device:
        return self.video_embeddings.weight.device

    def stacks(self) -> list[Stack]:
        """Tell how deep the parameters stand, of clips and of texts, see `Stack`."""
        depth = len(self.video_encoder.blocks)
        if self.text_encoder is None:
            return [Stack(("video_embeddings", "text_embeddings")).under("video_encoder.blocks", depth)]
        return [Stack((f"{part}_embeddings",)).under(f"{part}_encoder.blocks", depth) for part in ("video", "text")]

    def forward(
        self,
        video: Tensor,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        *,
        sample_ids: Tensor | None = None,
        rest: RestOfStep = ALONE,
    ) -> DualEncoderOutput:
        """Contrast the clips of a batch with their captions.

        video: uint8 [B, T, H, W, 3]. input_ids: int64 [N], divided into captions by cu_seqlens int32 [B+1].
        max_seqlen: a bound on the longest caption.
        sample_ids: int64 [B]; equal ones are the same clip and no negatives of each other. rest: of the step that the
        batch is a part of.
        """
        text, clips = self._features(video, input_ids, cu_seqlens, max_seqlen)
        loss = self.contrast(text, clips, sample_ids, rest)
        terms = {"loss/contrastive": loss.detach(), "temperature": 1 / self.contrast.logit_scale().detach()}
        return DualEncoderOutput(loss, terms, text, clips)

    @torch.no_grad()
    def collect(
        self, video: Tensor, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int, *, wanted: Wanted
    ) -> Collected:
        """Tell beforehand what the loss of a step needs of this micro-batch: its features, where they are wanted.
        Arguments as `forward`."""
        if not wanted.compared:
            return Collected()
        return Collected(compared=self.contrast.compared(*self._features(video, input_ids, cu_seqlens, max_seqlen)))

    def _features(self, video: Tensor, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, Tensor]:
        """Return what the contrast compares, texts and clips, [B, D or projection_dim] each. Arguments as `forward`."""
        if self.text_encoder is None:
            return self._embed_together(video, input_ids, cu_seqlens, max_seqlen)
        return self.embed_text(input_ids, cu_seqlens, max_seqlen), self.embed_video(video)

    def embed_video(self, video: Tensor) -> Tensor:
        """Compute one vector for each whole clip, not scaled: uint8 [B, T, H, W, 3] -> float32 [B, D or
        projection_dim]."""
        x_ND, packing = self.video_embeddings.embed_clips(video)
        means = segment_mean(self.video_encoder(x_ND, packing), packing.cu_seqlens)
        return in_float32(self.contrast.video_projection, in_float32(self.video_norm, means))

    def embed_text(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Compute one vector for each text, not scaled: int64 [N], int32 [B+1] -> float32 [B, D or projection_dim].

        max_seqlen: a bound on the longest text. Raises ValueError where that is more than the model has positions for.
        """
        x_ND, packing = self.text_embeddings.embed_texts(input_ids, cu_seqlens, max_seqlen)
        encoder: Transformer = self.text_encoder or self.video_encoder
        means = segment_mean(encoder(x_ND, packing), packing.cu_seqlens)
        return in_float32(self.contrast.text_projection, in_float32(self.text_norm, means))

    def encode_video(self, video: Tensor) -> Tensor:
        """Compute `embed_video` at unit length."""
        return normalize(self.embed_video(video), dim=-1)

    def encode_text(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Compute `embed_text` at unit length."""
        return normalize(self.embed_text(input_ids, cu_seqlens, max_seqlen), dim=-1)

    def _embed_together(
        self, video: Tensor, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int
    ) -> tuple[Tensor, Tensor]:
        """Return what `embed_text` and `embed_video` give, of one call of the shared encoder. Arguments as
        `forward`."""
        clips, clip_packing = self.video_embeddings.embed_clips(video)
        texts, text_packing = self.text_embeddings.embed_texts(input_ids, cu_seqlens, max_seqlen)
        packing = join_packings(clip_packing, text_packing, len(clips))
        x_ND = self.video_encoder(torch.cat([clips, texts.to(clips.dtype)]), packing)
        video_means, text_means = segment_mean(x_ND, packing.cu_seqlens).split([len(video), len(cu_seqlens) - 1])
        return (
            in_float32(self.contrast.text_projection, in_float32(self.text_norm, text_means)),
            in_float32(self.contrast.video_projection, in_float32(self.video_norm, video_means)),
        )
