"""VideoPrism's second stage (arXiv:2402.13217, section 2.3.2): masked clips learn a frozen teacher's features.

Shape legend: B = clips, T = frames, S = patches of a frame, L = T*S tokens of a clip, Kv / Km = visible / masked tokens
of a clip, D = width, E = width of the decoders.

The teacher, the first stage's video tower with its pooler, sees the intact clip; the student, an encoder like the
teacher's, sees the visible tokens alone. The local decoder makes all of the teacher's tokens from them, which come to
it in an order that it has to find out; the global decoder makes the teacher's pooled vector.

Notable choices:
- Masked tokens enter nowhere but into the local decoder, as copies of one mask token.
- What the paper leaves open is a field of `PrismStudentConfig` or said in a class, each marked [gap].
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from fastvtp.modules.checks import (
    check_choice,
    check_heads,
    check_positive,
    check_share,
)
from fastvtp.modules.layers import init_linear_normal
from fastvtp.modules.one_buffer import on_device
from fastvtp.modules.packing import Packing
from fastvtp.modules.pooler import AttentionPooler
from fastvtp.modules.positions import GridPositionsConfig, OnGrid
from fastvtp.modules.stacks import Stack
from fastvtp.systems.videoprism.encoder import VideoPrismConfig, VideoPrismEncoder
from fastvtp.systems.videoprism.layers import PrismTransformer
from fastvtp.systems.videoprism.losses import cosine_distance, shuffled_order
from fastvtp.systems.videoprism.video_text import POOLER_WIDTHS
from fastvtp.systems.videoprism.visible import VisibleTokens, lay_out_visible
from fastvtp_kernels import BlockShapes, assemble_tokens, block_tube_mask, tube_mask

MASKS, ORDERS, PROJECTORS = ("block_tube", "tube"), ("sample", "batch"), ("linear", "mlp")


@dataclass(frozen=True, kw_only=True)
class PrismTeacherConfig(VideoPrismConfig):
    """Sizes of the teacher, a first stage's video tower."""

    auxiliary_depth: int = 0
    """Number of blocks between its encoder and its pooler: none in the paper, 2 in the released video-text models."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auxiliary_depth < 0:
            raise ValueError(f"auxiliary_depth must not be negative, got {self.auxiliary_depth}")


@dataclass(frozen=True, kw_only=True)
class PrismStudentConfig(PrismTeacherConfig, GridPositionsConfig):
    """Sizes of teacher and student, which are alike, masks and losses; the defaults are the paper's at size base."""

    num_frames: int = 8
    positions: str = "interpolate"
    """How the local decoder's fixed positions come to another size, see `GridPositionsConfig`; the encoder's tables are
    resized."""
    mask: str = "block_tube"
    """How tokens are hidden: "block_tube", in BEVT's blocks, each over a run of frames, or "tube", in all frames at
    places that are drawn one by one."""
    mask_ratio: float = 0.65
    """Share of a clip's tokens that the student does not see, the same number of every clip. [gap]: BEVT leaves the
    number to chance; how `fastvtp_kernels.block_tube_mask` makes it exact, its docstring says."""
    mask_min_cells: int = 16
    """Least number of patches of a block within a frame."""
    mask_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Least and greatest height / width of a block."""
    mask_run: tuple[float, float] = (0.5, 0.75)
    """Least and greatest share of the frames that a block lasts."""
    shuffle_tokens: bool = True
    """Hand the decoder its tokens in random order, or else each at its own place."""
    shuffle_per: str = "sample"
    """Whether an order is drawn for each "sample", or one for the "batch" [gap]."""
    decoder_width: int = 512
    decoder_depth: int = 4
    """Number of blocks of each decoder."""
    decoder_num_heads: int = 8
    """Attention heads of each decoder [gap]."""
    decoder_hidden: int = 2048
    projector: str = "linear"
    """From the encoder's width to the decoders': "linear", or "mlp" (with a hidden layer of the decoders' width); the
    paper's text and its appendix differ."""
    token_weight: float = 1.0
    """Weight of the local loss; at 0 its decoder does not exist."""
    global_weight: float = 1.0
    """Weight of the global loss; at 0 its decoder does not exist."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positions()
        check_choice(self, "mask", MASKS)
        check_choice(self, "shuffle_per", ORDERS)
        check_choice(self, "projector", PROJECTORS)
        check_share(self, "mask_ratio")
        if round(self.mask_ratio * math.prod(self.grid)) >= math.prod(self.grid):
            raise ValueError(f"mask_ratio {self.mask_ratio} leaves none of {math.prod(self.grid)} tokens visible")
        check_positive(self, "mask_min_cells", "decoder_width", "decoder_num_heads", "decoder_hidden")
        check_heads(self, "decoder_width", "decoder_num_heads")
        for name in ("decoder_depth", "token_weight", "global_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        if not self.token_weight and not self.global_weight:
            raise ValueError("token_weight and global_weight are both 0: one of them must be positive")
        if not 0 < self.mask_aspect[0] <= self.mask_aspect[1]:
            raise ValueError(f"mask_aspect must be 0 < least <= greatest, got {self.mask_aspect}")
        if not 0 < self.mask_run[0] <= self.mask_run[1] <= 1:
            raise ValueError(f"mask_run must be 0 < least <= greatest <= 1, got {self.mask_run}")

    @property
    def tubelet(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels that make up one token."""
        return 1, self.patch_size, self.patch_size

    @property
    def teacher(self) -> PrismTeacherConfig:
        """The part of the settings that is the teacher's."""
        return PrismTeacherConfig(**{field.name: getattr(self, field.name) for field in fields(PrismTeacherConfig)})

    def decoder_stack(self) -> PrismTransformer:
        """Return blocks of the decoders' sizes and a LayerNorm, their weights not yet drawn."""
        return PrismTransformer(
            self.decoder_width,
            self.decoder_depth,
            self.decoder_num_heads,
            hidden=self.decoder_hidden,
            softcap=self.softcap,
        )

    def decoder_projector(self) -> nn.Module:
        """Return the projection of features to the decoders' width, [..., D] -> [..., E], its weights not yet drawn."""
        first = nn.Linear(self.width, self.decoder_width)
        if self.projector == "linear":
            return first
        return nn.Sequential(first, nn.GELU(), nn.Linear(self.decoder_width, self.decoder_width))


class PrismTeacher(nn.Module):
    """A first stage's video tower: an encoder, blocks over all tokens where it has some, and a pooler."""

    def __init__(self, config: PrismTeacherConfig):
        super().__init__()
        self.config = config
        self.video_encoder = VideoPrismEncoder(config)
        self.auxiliary = config.encoder_stack(config.auxiliary_depth, final_norm=False)
        self.pooler = AttentionPooler(config.width, config.num_heads, POOLER_WIDTHS * config.width)

    def init_weights(self) -> None:
        """Initialise the weights as the encoder's, from torch's global generator."""
        for part in (self.auxiliary, self.pooler):
            part.apply(init_linear_normal)
        for part in (self.video_encoder, self.pooler):
            part.init_weights()

    def forward(self, video: Tensor, *, pooled: bool = True) -> tuple[Tensor, Tensor | None]:
        """Encode clips, uint8 [B, T, H, W, 3] -> the encoder's tokens [B, L, D], and what the pooler makes of them, [B,
        D], or None where `pooled` is False."""
        x_BLD = self.video_encoder(video)
        if not pooled:
            return x_BLD, None
        packing = Packing.uniform(*x_BLD.shape[:2], device=x_BLD.device)
        joint_BLD = self.auxiliary(x_BLD.flatten(0, 1), packing).view_as(x_BLD)
        return x_BLD, self.pooler(joint_BLD)[:, 0]


class LocalDecoder(OnGrid):
    """Makes the features of all places from visible tokens and copies of a mask token, which come in another order.

    Positions are fixed sines and cosines of the place, the mask token is of the decoder's width [gap].
    """

    def __init__(self, config: PrismStudentConfig):
        super().__init__(config.decoder_width, config.grid, config.table_grid)
        self.project = config.decoder_projector()
        self.mask_token = nn.Parameter(torch.empty(config.decoder_width))
        self.transformer = config.decoder_stack()
        self.head = nn.Linear(config.decoder_width, config.width)

    def init_weights(self) -> None:
        """Initialise the weights as the encoder's, from torch's global generator."""
        self.apply(init_linear_normal)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.fill_positions()

    def forward(self, visible_BKD: Tensor, *, visible: Tensor, masked: Tensor, order: Tensor) -> Tensor:
        """Make the features of all places, [B, L, D], from those of the visible tokens, [B, Kv, D].

        visible, masked: int32 [B, Kv] and [B, Km], the places of both. order: int64 [L] or [B, L]; place i is handed
        number order[i] of the visible tokens with the masked ones behind them.
        """
        # under autocast the residual stream stays float32, as in the encoder
        x_BKE = self.project(visible_BKD).to(self.mask_token.dtype)
        x_BLE = assemble_tokens(x_BKE, self.mask_token, self.positions, visible, masked, permutation=order)
        x_NE = self.transformer(x_BLE.flatten(0, 1), Packing.uniform(*x_BLE.shape[:2], device=x_BLE.device))
        return self.head(x_NE).view(*x_BLE.shape[:2], -1)


class GlobalDecoder(nn.Module):
    """Makes the feature of the clip from its visible tokens, without positions and in no order.

    Attention pooling at the decoder's width, then a linear layer [gap].
    """

    def __init__(self, config: PrismStudentConfig):
        super().__init__()
        self.project = config.decoder_projector()
        self.transformer = config.decoder_stack()
        self.pooler = AttentionPooler(config.decoder_width, config.decoder_num_heads, config.decoder_width)
        self.head = nn.Linear(config.decoder_width, config.width)

    def init_weights(self) -> None:
        """Initialise the weights as the encoder's, from torch's global generator."""
        self.apply(init_linear_normal)
        self.pooler.init_weights()

    def forward(self, visible_BKD: Tensor) -> Tensor:
        """Make one vector of each clip's visible tokens: [B, Kv, D] -> [B, D]."""
        x_BKE = self.project(visible_BKD).to(self.pooler.queries.dtype)
        x_NE = self.transformer(x_BKE.flatten(0, 1), Packing.uniform(*x_BKE.shape[:2], device=x_BKE.device))
        return self.head(self.pooler(x_NE.view_as(x_BKE))[:, 0])


@dataclass(frozen=True)
class PrismStudentPlan:
    """The integers of one step.

    visible: the tokens that the student sees. masked: int32 [B, Km], the others. order: int64 [B, L] or [L], in which
    the local decoder gets both, see `LocalDecoder.forward`.
    """

    visible: VisibleTokens
    masked: Tensor
    order: Tensor


@dataclass(frozen=True)
class PrismStudentOutput:
    """What `PrismStudent.forward` gives. loss: [], the weighted sum. terms: unweighted losses by name, [] each,
    detached. tokens: [B, Kv, D], the student's, with their graph."""

    loss: Tensor
    terms: dict[str, Tensor]
    tokens: Tensor


class PrismStudent(nn.Module):
    """The encoder that is trained, with its decoders and its frozen teacher, which is part of checkpoints."""

    def __init__(self, config: PrismStudentConfig):
        super().__init__()
        self.config = config
        self.encoder = VideoPrismEncoder(config)
        self.local_decoder = LocalDecoder(config) if config.token_weight else None
        self.global_decoder = GlobalDecoder(config) if config.global_weight else None
        self.teacher = PrismTeacher(config.teacher).requires_grad_(False)

    def init_weights(self) -> None:
        """Initialise the weights as the encoder's, from torch's global generator."""
        for part in (self.encoder, self.local_decoder, self.global_decoder, self.teacher):
            if part is not None:
                part.init_weights()

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def stacks(self) -> list[Stack]:
        """Tell how deep the parameters of the encoder stand, see `Stack`; the decoders stand above."""
        return [self.encoder.stack().inside("encoder")]

    def train(self, mode: bool = True) -> "PrismStudent":
        """Set the mode as of any module, except that the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def start_from_teacher(self) -> None:
        """Copy the teacher's encoder into the student."""
        self.encoder.load_state_dict(self.teacher.video_encoder.state_dict())

    def plan(
        self, sample_ids: Tensor, *, seed: int, step: int, device: torch.device | str | None = None
    ) -> PrismStudentPlan:
        """Draw the masks and orders of a step on the host, from (seed, step, sample id). sample_ids: int64 [B] on the
        CPU.

        Returns the plan on `device`, the model's unless another is given.
        """
        config, draw = self.config, {"seed": seed, "step": step}
        settings = {"sample_ids": sample_ids, **draw}
        if config.mask == "tube":
            mask = tube_mask(len(sample_ids), config.grid, config.mask_ratio, **settings)
        else:
            shapes = BlockShapes(config.mask_min_cells, config.mask_aspect, config.mask_run)
            mask = block_tube_mask(len(sample_ids), config.grid, config.mask_ratio, shapes=shapes, **settings)
        length = mask.visible.shape[1] + mask.masked.shape[1]
        if not config.shuffle_tokens:
            order = torch.cat([mask.visible, mask.masked], dim=1).argsort(dim=1)
        elif config.shuffle_per == "sample":
            order = shuffled_order(sample_ids, length, **draw)
        else:
            order = shuffled_order(torch.zeros(1, dtype=torch.int64), length, **draw)[0]
        plan = PrismStudentPlan(lay_out_visible(mask.visible, config.grid), mask.masked, order)
        return on_device(plan, device or self.device)

    def forward(self, video: Tensor, plan: PrismStudentPlan) -> PrismStudentOutput:
        """Compute the losses of a batch of clips, uint8 [B, T, H, W, 3] of the config's size, with what `plan` drew for
        it.

        Raises ValueError for clips of another size.
        """
        config = self.config
        if config.grid_of(video) != config.grid:
            raise ValueError(
                f"clips must make {config.grid} tokens as num_frames and image_size say, got {config.grid_of(video)}"
            )
        with torch.no_grad():
            tokens_BLD, pooled_BD = self.teacher(video, pooled=self.global_decoder is not None)
        x_BKD = self.encoder(video, visible=plan.visible)
        losses: dict[str, tuple[float, Tensor]] = {}
        if self.local_decoder is not None:
            made = self.local_decoder(x_BKD, visible=plan.visible.index, masked=plan.masked, order=plan.order)
            losses["loss/token"] = config.token_weight, cosine_distance(made, tokens_BLD)
        if self.global_decoder is not None and pooled_BD is not None:
            losses["loss/global"] = config.global_weight, cosine_distance(self.global_decoder(x_BKD), pooled_BD)
        loss = torch.stack([weight * value for weight, value in losses.values()]).sum()
        return PrismStudentOutput(loss, {name: value.detach() for name, (_, value) in losses.items()}, x_BKD)
