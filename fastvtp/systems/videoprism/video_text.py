"""VideoPrism's video-text model: the encoder under a few joint blocks and a pooler, and a causal text tower.

Shape legend: B = clips, T = frames, S = patches of a frame, N = packed text tokens, D = width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastvtp.modules.checks import (
    check_choice,
    check_positive,
    check_share,
)
from fastvtp.modules.contrast import Contrast, ContrastConfig
from fastvtp.modules.layers import init_linear_normal
from fastvtp.modules.one_buffer import on_device
from fastvtp.modules.packing import Packing
from fastvtp.modules.pooler import AttentionPooler
from fastvtp.modules.positions import sinusoid_positions
from fastvtp.modules.rest_of_step import ALONE, Collected, RestOfStep, Wanted
from fastvtp.modules.rows import take_rows
from fastvtp.modules.stacks import Stack
from fastvtp.systems.videoprism.encoder import VideoPrismConfig, VideoPrismEncoder
from fastvtp.systems.videoprism.layers import (
    NORM_POLICIES,
    PrismTransformer,
    unit_length,
)
from fastvtp.systems.videoprism.visible import VisibleTokens, lay_out_visible
from fastvtp_kernels import tube_mask
from fastvtp_kernels.packing import locate_rows
from fastvtp_kernels.symbolic import holds

POOLER_WIDTHS = 4
"""Width of the pooler's hidden layer, in multiples of D, as released."""


@dataclass(frozen=True, kw_only=True)
class VideoTextPrismConfig(VideoPrismConfig, ContrastConfig):
    """Sizes of both towers; the defaults are those of the released LvT-base. The contrast's fields are for training:
    released checkpoints have no temperature and no projection."""

    auxiliary_depth: int = 2
    """Number of blocks over all tokens of a clip, between the encoder and the pooler; the paper's first stage has
    none."""
    vocab_size: int = 32000
    max_text_length: int = 64
    text_depth: int = 12
    text_norm: str = "pre"
    """Where a block normalises: "pre", before its branches, or "primer_hybrid", also behind them (the giant)."""
    contrastive_directions: str = "mean"
    gather_negatives: bool = True
    temperature: float = 0.07
    """Initial value where it is learned, as recipes have it; released checkpoints hold none, their demo divides by
    0.01, and the paper does not say."""
    frozen_video: bool = False
    """Train the text tower and the pooler alone (LiT, arXiv:2111.07991), as the released LvT models were."""
    token_drop: float = 0.5
    """Share of a frame's places that pretraining drops, the same in all frames; also under `frozen_video`, of which the
    paper does not say [gap]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_contrast()
        check_positive(self, "vocab_size", "max_text_length")
        check_choice(self, "text_norm", NORM_POLICIES)
        check_share(self, "token_drop")  # which leaves at least one place: the share is rounded down
        for name in ("auxiliary_depth", "text_depth"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class PrismText(nn.Module):
    """Causal text tower, whose class token stands behind the text and has no position (CoCa's unimodal text tower,
    arXiv:2205.01917). Packed texts carry no padding, which the class token would not see anyway."""

    positions: Tensor

    def __init__(self, config: VideoTextPrismConfig):
        super().__init__()
        width = config.width
        self.token_embeddings = nn.Embedding(config.vocab_size, width)
        self.cls_token = nn.Parameter(torch.empty(width))
        self.transformer = PrismTransformer(
            width,
            config.text_depth,
            config.num_heads,
            hidden=4 * width,
            softcap=config.softcap,
            activation="relu",
            norm_policy=config.text_norm,
        )
        self.register_buffer("positions", torch.empty(config.max_text_length, width), persistent=False)

    def init_weights(self) -> None:
        """Initialise the weights as the encoder's, from torch's global generator."""
        self.apply(init_linear_normal)
        # embeddings are multiplied by sqrt(D), and positions are of the order of one
        nn.init.normal_(self.token_embeddings.weight, std=self.token_embeddings.embedding_dim**-0.5)
        nn.init.normal_(self.cls_token, std=self.cls_token.numel() ** -0.5)
        self.positions.copy_(sinusoid_positions(*self.positions.shape))

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Embed tokens by their ids and their positions in their texts: int64 [N] each -> [N, D]."""
        return self.token_embeddings(input_ids) * self.cls_token.numel() ** 0.5 + self.positions[positions]

    def forward(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Read packed texts, int64 [N] divided by cu_seqlens int32 [B+1], -> their class tokens [B, D].

        max_seqlen: a bound on the longest text. Raises ValueError where that is more than `max_text_length`.
        """
        if holds(max_seqlen > len(self.positions)):
            raise ValueError(f"texts have up to {max_seqlen} tokens, max_text_length is {len(self.positions)}")
        texts = len(cu_seqlens) - 1
        _, position = locate_rows(cu_seqlens, len(input_ids))
        cls = self.cls_token * self.cls_token.numel() ** 0.5
        pool = torch.cat([self.embed(input_ids, position), cls.expand(texts, -1)])
        with_cls = cu_seqlens + torch.arange(texts + 1, dtype=torch.int32, device=cu_seqlens.device)
        sequence, position = locate_rows(with_cls, len(input_ids) + texts)
        is_cls = position == cu_seqlens.diff().long()[sequence]
        rows = torch.where(is_cls, len(input_ids) + sequence, cu_seqlens[:-1].long()[sequence] + position)
        x_ND = self.transformer(take_rows(pool, rows), Packing(with_cls, max_seqlen + 1), causal=True)
        return take_rows(x_ND, with_cls[1:].long() - 1)


@dataclass(frozen=True)
class VideoTextPrismOutput:
    """What `VideoTextPrism.forward` gives. loss: []. terms: loss and temperature by name, [] each, detached. text,
    video: float32 [B, D or projection_dim], the features of unit length that were contrasted, with their graph."""

    loss: Tensor
    terms: dict[str, Tensor]
    text: Tensor
    video: Tensor


class VideoTextPrism(nn.Module):
    """Makes one vector of each clip and text; `forward` is the first stage's contrast (paper, section 2.3.1)."""

    averages_unit_views = True
    """Retrieval averages a clip's views after they are scaled to unit length."""

    def __init__(self, config: VideoTextPrismConfig):
        super().__init__()
        self.config = config
        self.video_encoder = VideoPrismEncoder(config)
        self.auxiliary = config.encoder_stack(config.auxiliary_depth, final_norm=False)
        self.pooler = AttentionPooler(config.width, config.num_heads, POOLER_WIDTHS * config.width)
        self.text_encoder = PrismText(config)
        self.contrast = Contrast(config, config.width)
        if config.frozen_video:
            self.video_encoder.requires_grad_(False)
            self.auxiliary.requires_grad_(False)

    def init_weights(self) -> None:
        """Initialise the weights as the encoder's, from torch's global generator."""
        for part in (self.auxiliary, self.pooler):
            part.apply(init_linear_normal)
        for part in (self.video_encoder, self.pooler, self.text_encoder, self.contrast):
            part.init_weights()

    @property
    def device(self) -> torch.device:
        return self.video_encoder.device

    def stacks(self) -> list[Stack]:
        """Tell how deep the parameters stand, of clips and of texts, see `Stack`."""
        joint, text = self.auxiliary.blocks, self.text_encoder.transformer.blocks
        clips = self.video_encoder.stack(blocks_above=len(joint) > 0).inside("video_encoder")
        words = Stack(("text_encoder.token_embeddings", "text_encoder.cls_token"))
        return [
            clips.under("auxiliary.blocks", len(joint)),
            words.under("text_encoder.transformer.blocks", len(text)),
        ]

    def train(self, mode: bool = True) -> "VideoTextPrism":
        """Set the mode as of any module, except that a frozen video tower stays in evaluation mode."""
        super().train(mode)
        if self.config.frozen_video:
            self.video_encoder.eval()
            self.auxiliary.eval()
        return self

    def plan(
        self, video: Tensor, sample_ids: Tensor, *, seed: int, step: int, device: torch.device | str | None = None
    ) -> VisibleTokens | None:
        """Return the tokens that a step of pretraining keeps, drawn on the host from (seed, step, sample id); None:
        all.

        video: [B, T, H, W, 3], for its shape. sample_ids: int64 [B] on the CPU.
        """
        if not self.config.token_drop:
            return None
        grid = self.config.grid_of(video)
        mask = tube_mask(len(video), grid, self.config.token_drop, seed=seed, step=step, sample_ids=sample_ids)
        return on_device(lay_out_visible(mask.visible, grid), device or self.device)

    def video_tokens(
        self, video: Tensor, frame_paddings: Tensor | None = None, *, visible: VisibleTokens | None = None
    ) -> Tensor:
        """Make the tokens that the pooler looks at: uint8 [B, T, H, W, 3] -> [B, T*S or K, D].

        Options as `VideoPrismEncoder.forward`; the blocks on top of the encoder and the pooler do not know of padded
        frames (as released).
        """
        x_BLD = self.video_encoder(video, frame_paddings, visible=visible)
        packing = Packing.uniform(*x_BLD.shape[:2], device=x_BLD.device)
        return self.auxiliary(x_BLD.flatten(0, 1), packing).view_as(x_BLD)

    def forward(
        self,
        video: Tensor,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        *,
        sample_ids: Tensor | None = None,
        visible: VisibleTokens | None = None,
        rest: RestOfStep = ALONE,
    ) -> VideoTextPrismOutput:
        """Contrast the clips of a batch with their packed texts.

        video: uint8 [B, T, H, W, 3]. input_ids: int64 [N], cu_seqlens: int32 [B+1], max_seqlen: the texts. sample_ids:
        int64 [B]; equal ones are the same clip and no negatives of each other. visible: the tokens that are kept, from
        `video_encoder.plan`; None: all. rest: of the step that the batch is a part of.
        """
        text = self.encode_text(input_ids, cu_seqlens, max_seqlen)
        clips = self.encode_video(video, visible=visible)
        loss = self.contrast(text, clips, sample_ids, rest)
        terms = {"loss/contrastive": loss.detach(), "temperature": 1 / self.contrast.logit_scale().detach()}
        return VideoTextPrismOutput(loss, terms, text, clips)

    @torch.no_grad()
    def collect(
        self,
        video: Tensor,
        input_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        *,
        wanted: Wanted,
        visible: VisibleTokens | None = None,
    ) -> Collected:
        """Tell beforehand what the loss of a step needs of this micro-batch: its features, where they are wanted.
        Arguments as `forward`."""
        if not wanted.compared:
            return Collected()
        text = self.encode_text(input_ids, cu_seqlens, max_seqlen)
        return Collected(compared=self.contrast.compared(text, self.encode_video(video, visible=visible)))

    def pool_video(
        self, video: Tensor, frame_paddings: Tensor | None = None, *, visible: VisibleTokens | None = None
    ) -> Tensor:
        """Pool the tokens of each clip, before any projection: uint8 [B, T, H, W, 3] -> [B, D]. Options as
        `video_tokens`."""
        return self.pooler(self.video_tokens(video, frame_paddings, visible=visible))[:, 0]

    def embed_video(
        self, video: Tensor, frame_paddings: Tensor | None = None, *, visible: VisibleTokens | None = None
    ) -> Tensor:
        """Compute one vector for each clip, not scaled: uint8 [B, T, H, W, 3] -> [B, D or projection_dim]. Options as
        `video_tokens`."""
        return self.contrast.video_projection(self.pool_video(video, frame_paddings, visible=visible))

    def encode_video(
        self, video: Tensor, frame_paddings: Tensor | None = None, *, visible: VisibleTokens | None = None
    ) -> Tensor:
        """Compute `embed_video` at unit length, float32."""
        return unit_length(self.embed_video(video, frame_paddings, visible=visible))

    def encode_frames(self, video: Tensor) -> Tensor:
        """Compute `encode_video` with every frame pooled by itself: uint8 [B, T, H, W, 3] -> float32 [B, T, D or
        projection_dim], each of unit length."""
        tokens = self.video_tokens(video).unflatten(1, (video.shape[1], -1))
        pooled = self.pooler(tokens.flatten(0, 1)).view(*tokens.shape[:2], -1)
        return unit_length(self.contrast.video_projection(pooled))

    def embed_text(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Compute one vector for each text, not scaled: int64 [N], int32 [B+1] -> [B, D or projection_dim].

        max_seqlen: a bound on the longest text. Raises ValueError where that is more than `max_text_length`.
        """
        return self.contrast.text_projection(self.text_encoder(input_ids, cu_seqlens, max_seqlen))

    def encode_text(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
        """Compute `embed_text` at unit length, float32."""
        return unit_length(self.embed_text(input_ids, cu_seqlens, max_seqlen))
