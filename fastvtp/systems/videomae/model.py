"""VideoMAE: a video tower pretrained by reconstructing the nine tokens of ten that it never sees (arXiv:2203.12602).

Shape legend: B = clips, K = listed tokens of a clip, Kv / Km / Kp = visible / masked / predicted ones, D = width,
P = values of a tubelet (pt*ph*pw*C).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fastvtp.modules.checks import (
    SQUARE_FRAMES,
    check_choice,
    check_heads,
    check_positive,
    check_share,
)
from fastvtp.modules.layers import (
    Transformer,
    init_linear_xavier,
    set_norm_eps,
)
from fastvtp.modules.one_buffer import on_device
from fastvtp.modules.packing import Packing
from fastvtp.modules.pixels import IMAGENET_MEAN, IMAGENET_STD
from fastvtp.modules.positions import Grid, GridPositionsConfig, OnGrid
from fastvtp.modules.stacks import Stack
from fastvtp.settings import check_types
from fastvtp.systems.videomae.decoder import DECODERS, DecoderSizes, VideoDecoder
from fastvtp_kernels import TubeMask, masked_pixel_loss, running_cell_mask, tube_mask, tubelet_embed


@dataclass(frozen=True, kw_only=True)
class VideoEncoderConfig(GridPositionsConfig):
    """Sizes of clips and of the transformer that reads them; the defaults are ViT-B's."""

    num_frames: int = 16
    image_size: int = 224
    tubelet: tuple[int, int, int] = (2, 16, 16)
    """Frames, rows and columns of pixels that make up one token."""
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    """Biases of queries and values; keys never have one."""
    layer_scale: float = 0.0
    """Initial value of the learned scale of each residual branch; 0: branches are not scaled."""
    drop_path: float = 0.0
    """Probability that a sequence skips a branch of the last block; it rises linearly from 0 at the first."""
    norm_eps: float = 1e-6
    """What the transformers' LayerNorms add to a variance; transformers (the library) has 1e-12."""
    head_norm_eps: float = 1e-6
    """What LayerNorms right before heads add to a variance; transformers has 1e-5."""

    def __post_init__(self) -> None:
        check_types(self, image_size=SQUARE_FRAMES, trained_image_size=f"{SQUARE_FRAMES}, or none")
        check_positive(self, "width", "num_heads", "mlp_ratio", "norm_eps", "head_norm_eps")
        check_heads(self, "width", "num_heads")
        if len(self.tubelet) != 3 or min(self.tubelet) < 1:
            raise ValueError(f"tubelet must be three positive sizes (time, height, width), got {self.tubelet}")
        if self.depth < 0:
            raise ValueError(f"depth must not be negative, got {self.depth}")
        for name, size, tile in (
            ("num_frames", self.num_frames, self.tubelet[0]),
            ("image_size", self.image_size, self.tubelet[1]),
            ("image_size", self.image_size, self.tubelet[2]),
        ):
            if size < 1 or size % tile:
                raise ValueError(f"{name} {size} is not a multiple of the tubelet's {tile}")
        self.check_positions()
        check_share(self, "drop_path")
        if not (math.isfinite(self.layer_scale) and self.layer_scale >= 0):
            raise ValueError(f"layer_scale must be finite and not negative, got {self.layer_scale}")

    @property
    def grid(self) -> Grid:
        """Numbers of tubelets along (time, height, width)."""
        pt, ph, pw = self.tubelet
        return self.num_frames // pt, self.image_size // ph, self.image_size // pw

    @property
    def num_tokens(self) -> int:
        """The number of tubelets of a clip."""
        return math.prod(self.grid)

    def video_embeddings(self) -> "VideoEmbeddings":
        """Return an embedding of tubelets of these sizes, its weights not yet drawn."""
        return VideoEmbeddings(self.grid, self.tubelet, self.width, self.table_grid)

    def transformer(self, *, final_norm: bool = True) -> Transformer:
        """Return an encoder of these sizes, its weights not yet drawn. final_norm: end in a LayerNorm."""
        encoder = Transformer(
            self.width,
            self.depth,
            self.num_heads,
            self.mlp_ratio,
            qkv_bias=self.qkv_bias,
            layer_scale=self.layer_scale,
            drop_path=self.drop_path,
            final_norm=final_norm,
        )
        set_norm_eps(encoder, self.norm_eps)
        return encoder


@dataclass(frozen=True, kw_only=True)
class VideoMAEConfig(VideoEncoderConfig):
    """Masking, decoder and target beside the encoder's sizes.

    decoder="joint", prediction="all" is VideoMAE; "joint" with "running_cell" at 0.5 is VideoMAE v2's dual masking
    (arXiv:2303.16727); "cross" with "random" at 0.25 is CrossMAE's (arXiv:2401.14391), without its learned mixture of
    encoder layers.
    """

    video_mask_ratio: float = 0.9
    encoder_norm: bool = True
    """Put a LayerNorm behind the encoder's last block."""
    decoder: str = "joint"
    """Whether visible and predicted tokens attend to one another ("joint"), or predicted tokens look at visible ones
    alone ("cross")."""
    decoder_width: int = 384
    decoder_depth: int = 4
    decoder_num_heads: int = 6
    prediction: str = "all"
    """Which masked tokens are decoded and scored: "all", or `prediction_ratio` of them by "running_cell", "random"."""
    prediction_ratio: float = 0.5
    """Share of the masked tokens that is predicted, where `prediction` is not "all"."""
    normalize_target: bool = True
    """Predict pixels less their mean over their standard deviation, within each tubelet and channel, and not plain ones
    in [0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "decoder_width", "decoder_num_heads")
        check_heads(self, "decoder_width", "decoder_num_heads")
        check_choice(self, "decoder", DECODERS)
        check_choice(self, "prediction", ("all", "running_cell", "random"))
        if self.decoder_depth < 0:
            raise ValueError(f"decoder_depth must not be negative, got {self.decoder_depth}")
        check_share(self, "video_mask_ratio")
        if int(self.video_mask_ratio * self.grid[1] * self.grid[2]) < 1:
            raise ValueError(
                f"video_mask_ratio {self.video_mask_ratio} hides none of the {self.grid[1]} x {self.grid[2]} cells of "
                "a frame, which leaves nothing to reconstruct"
            )
        if not 0 < self.prediction_ratio <= 1:
            raise ValueError(f"prediction_ratio must be in (0, 1], got {self.prediction_ratio}")

    def draw_masks(self, sample_ids: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Draw the visible and the predicted tokens of each clip, int32 [B, Kv] and [B, Kp], from (seed, step, sample
        id). sample_ids: int64 [B], on the CPU."""
        draw = {"seed": seed, "step": step, "sample_ids": sample_ids}
        tubes: TubeMask = tube_mask(len(sample_ids), self.grid, self.video_mask_ratio, **draw)
        if self.prediction == "all":
            return tubes.visible, tubes.masked
        # a cell of one place has no pattern: what is left is a uniform draw
        cell = (2, 2) if self.prediction == "running_cell" else (1, 1)
        decoded = running_cell_mask(
            len(sample_ids), self.grid, 1 - self.prediction_ratio, cell=cell, among=tubes.masked, **draw
        )
        return tubes.visible, decoded.visible

    @property
    def target_normalization(self) -> Literal["patch_channel"] | None:
        """The argument `normalize` of `fastvtp_kernels.masked_pixel_loss` that `normalize_target` stands for."""
        return "patch_channel" if self.normalize_target else None

    def video_decoder(self) -> VideoDecoder:
        """Return a decoder of these sizes, its weights not yet drawn."""
        sizes = DecoderSizes(
            self.decoder_width,
            self.decoder_depth,
            self.decoder_num_heads,
            self.mlp_ratio,
            kind=self.decoder,
            qkv_bias=self.qkv_bias,
            layer_scale=self.layer_scale,
        )
        values = 3 * math.prod(self.tubelet)
        decoder = VideoDecoder(
            sizes, encoder_width=self.width, grid=self.grid, table_grid=self.table_grid, values=values
        )
        set_norm_eps(decoder, self.norm_eps)
        set_norm_eps(decoder.transformer.norm, self.head_norm_eps)
        return decoder


@dataclass(frozen=True)
class VideoMAEPlan:
    """The tokens of a step that the encoder sees and the decoder predicts: visible int32 [B, Kv], predicted int32 [B,
    Kp]."""

    visible: Tensor
    predicted: Tensor


@dataclass(frozen=True)
class VideoMAEOutput:
    """What `VideoMAE.forward` gives. loss: []. terms: the loss by name, [], detached. pixel_prediction: [B, Kp, P],
    with its graph."""

    loss: Tensor
    terms: dict[str, Tensor]
    pixel_prediction: Tensor


class VideoEmbeddings(OnGrid):
    """Embeds the listed tubelets of clips and adds fixed positions; tubelets that are not listed are never read."""

    def __init__(self, grid: Grid, tubelet: tuple[int, int, int], width: int, table_grid: Grid | None = None):
        super().__init__(width, grid, table_grid)
        self.tubelet, self.num_tokens = tubelet, math.prod(grid)
        self.weight = nn.Parameter(torch.empty(width, 3, *tubelet))  # Conv3d layout
        self.bias = nn.Parameter(torch.empty(width))

    def init_weights(self) -> None:
        """Initialise the weights as VideoMAE's, from torch's global generator."""
        nn.init.xavier_uniform_(self.weight.view(self.weight.shape[0], -1))
        nn.init.zeros_(self.bias)
        self.fill_positions()

    def forward(self, video: Tensor, index: Tensor | None = None) -> Tensor:
        """Embed the tubelets that `index` lists, int32 [B, K]; None: all. uint8 [B, T, H, W, 3] -> [B, K, D].

        Raises ValueError for clips of another size than the config's.
        """
        expected = tuple(cells * size for cells, size in zip(self.grid, self.tubelet, strict=True))
        if tuple(video.shape[1:4]) != expected:
            raise ValueError(f"video must be [B, {', '.join(map(str, expected))}, 3], got {list(video.shape)}")
        if index is None:
            index = torch.arange(self.num_tokens, dtype=torch.int32, device=video.device).expand(len(video), -1)
        return tubelet_embed(
            video,
            index,
            self.weight,
            self.bias,
            self.positions,
            tubelet=self.tubelet,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )

    def embed_clips(self, video: Tensor, index: Tensor | None = None) -> tuple[Tensor, Packing]:
        """Compute what `forward` gives as packed rows [B*K, D], with their packing, in which each clip is a
        sequence."""
        x_BKD = self(video, index)
        return x_BKD.flatten(0, 1), Packing.uniform(*x_BKD.shape[:2], device=video.device)


class VideoMAE(nn.Module):
    """Encoder of the visible tubelets, decoder of the masked ones.

    config: a `VideoMAEConfig`. Weights are drawn by `init_weights`, not by the constructor.
    """

    def __init__(self, config: VideoMAEConfig):
        super().__init__()
        self.config = config
        self.video_embeddings = config.video_embeddings()
        self.encoder = config.transformer(final_norm=config.encoder_norm)
        self.decoder = config.video_decoder()

    def init_weights(self) -> None:
        """Initialise the weights as VideoMAE's, from torch's global generator."""
        self.encoder.apply(init_linear_xavier)
        self.video_embeddings.init_weights()
        self.decoder.init_weights()

    @property
    def device(self) -> torch.device:
        return self.video_embeddings.weight.device

    def stacks(self) -> list[Stack]:
        """Tell how deep the parameters stand, see `Stack`."""
        return [Stack(("video_embeddings",)).under("encoder.blocks", len(self.encoder.blocks))]

    def plan(
        self, sample_ids: Tensor, *, seed: int, step: int, device: torch.device | str | None = None
    ) -> VideoMAEPlan:
        """Draw the masks of a step from (seed, step, sample id). sample_ids: int64 [B], on the CPU. Returns the plan on
        `device`, the model's unless another is given."""
        visible, predicted = self.config.draw_masks(sample_ids, seed=seed, step=step)
        return on_device(VideoMAEPlan(visible, predicted), device or self.device)

    def forward(self, video: Tensor, plan: VideoMAEPlan) -> VideoMAEOutput:
        """Compute the reconstruction loss of a batch of clips, uint8 [B, T, H, W, 3], with what `plan` drew for it."""
        prediction = self.decoder(self.video_tokens(video, plan.visible), plan.visible, plan.predicted)
        loss = masked_pixel_loss(
            prediction,
            video,
            plan.predicted,
            tubelet=self.config.tubelet,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            normalize=self.config.target_normalization,
        )
        return VideoMAEOutput(loss, {"loss/pixel": loss.detach()}, prediction)

    def video_tokens(self, video: Tensor, index: Tensor | None = None) -> Tensor:
        """Encode the listed tubelets alone: uint8 [B, T, H, W, 3], int32 [B, K] -> [B, K, D]; None lists all."""
        x_ND, packing = self.video_embeddings.embed_clips(video, index)
        return self.encoder(x_ND, packing).view(len(video), packing.max_seqlen, self.config.width)
