"""VideoPrism's factorised encoder (arXiv:2402.13217), as released: space within each frame, then time at each place.

Shape legend: B = clips, T = frames, S = patches of a frame, K = listed tokens of a clip, N = packed tokens, D = width.
Tokens lie frame after frame, [B, T, S, D].

Notable choices:
- Tokens that are not listed are never embedded, attended or normalised, in either stage: the packed rows of a frame, or
  of a place, are its listed tokens. Where every frame lists the same places (tubes), time attends through strides.
- Frames are read as uint8; pixels are in [0, 1] and not normalised further.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastvtp.modules.checks import (
    SQUARE_FRAMES,
    check_choice,
    check_heads,
    check_positive,
    check_share,
)
from fastvtp.modules.layers import init_linear_normal
from fastvtp.modules.one_buffer import on_device
from fastvtp.modules.packing import Packing, offsets
from fastvtp.modules.pooler import AttentionPooler
from fastvtp.modules.positions import resize_positions
from fastvtp.modules.precision import in_float32
from fastvtp.modules.rows import Pick, take_rows
from fastvtp.modules.stacks import Stack
from fastvtp.settings import check_types
from fastvtp.systems.videoprism.layers import (
    Padding,
    PrismTransformer,
    TimeAxis,
)
from fastvtp.systems.videoprism.visible import VisibleTokens, lay_out_visible
from fastvtp_kernels import tubelet_embed

logger = logging.getLogger(__name__)

_MEAN, _STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class VideoPrismConfig:
    """Sizes of clips and of the encoder; the defaults are the released base's.

    num_frames and image_size are those of the position tables: clips of other sizes have the tables resized, which is
    named in a warning once for each size, unless the encoder is compiled.
    """

    num_frames: int = 16
    image_size: int = 288
    patch_size: int = 18
    width: int = 768
    depth: int = 12
    """Number of blocks within frames."""
    temporal_depth: int = 4
    """Number of blocks along time, above those within frames."""
    num_heads: int = 12
    mlp_hidden: int = 3072
    softcap: float = 50.0
    """Logits are softcap * tanh(logits / softcap); 0: as they are."""
    few_frames: str = "resize"
    """Clips with fewer frames than the table of times: "resize" it (the released code), or "crop" it to its first rows
    (the paper, for images)."""

    def __post_init__(self) -> None:
        self.check_encoder()

    def check_encoder(self) -> None:
        """Check these fields; raises ValueError with one line for the first that cannot be."""
        check_types(self, image_size=SQUARE_FRAMES)
        check_positive(self, "num_frames", "image_size", "patch_size", "width", "num_heads", "mlp_hidden")
        check_heads(self, "width", "num_heads")
        check_choice(self, "few_frames", ("resize", "crop"))
        for name in ("depth", "temporal_depth", "softcap"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def frame_grid(self) -> tuple[int, int]:
        """Numbers of patches along (height, width) of a frame of the position table's size."""
        return self.image_size // self.patch_size, self.image_size // self.patch_size

    @property
    def grid(self) -> tuple[int, int, int]:
        """Numbers of tokens along (time, height, width) of a clip of the position tables' size."""
        return self.num_frames, *self.frame_grid

    def grid_of(self, video: Tensor) -> tuple[int, int, int]:
        """Return numbers of tokens along (time, height, width) of clips [B, T, H, W, 3]; raises ValueError where they
        do not fit."""
        height, width = video.shape[2:4] if video.ndim == 5 else (0, 0)
        patch = self.patch_size
        if video.ndim != 5 or video.shape[4] != 3 or not height or height % patch or width % patch:
            raise ValueError(f"video must be [B, T, height, width, 3], multiples of {patch}, got {list(video.shape)}")
        return video.shape[1], height // patch, width // patch

    def encoder_stack(self, depth: int, *, final_norm: bool = True) -> PrismTransformer:
        """Return `depth` blocks of the encoder's sizes, their weights not yet drawn. final_norm: end in a LayerNorm."""
        return PrismTransformer(
            self.width,
            depth,
            self.num_heads,
            hidden=self.mlp_hidden,
            softcap=self.softcap,
            final_norm=final_norm,
        )


class VideoPrismEncoder(nn.Module):
    """Makes tokens of clips, without a class token and without pooling them."""

    def __init__(self, config: VideoPrismConfig):
        super().__init__()
        self.config = config
        patch = config.patch_size
        self.weight = nn.Parameter(torch.empty(config.width, 3, 1, patch, patch))  # Conv3d layout, one frame deep
        self.bias = nn.Parameter(torch.empty(config.width))
        self.spatial_positions = nn.Parameter(torch.empty(config.frame_grid[0] * config.frame_grid[1], config.width))
        self.temporal_positions = nn.Parameter(torch.empty(config.num_frames, config.width))
        self.spatial = config.encoder_stack(config.depth)
        self.temporal = config.encoder_stack(config.temporal_depth)
        self._named_grids: set[tuple[int, int, int]] = {config.grid}

    def init_weights(self) -> None:
        """Initialise the weights as ViT's, the paper names none, from torch's global generator."""
        self.apply(init_linear_normal)
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)
        for table in (self.spatial_positions, self.temporal_positions):
            nn.init.trunc_normal_(table, std=0.02)

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def stack(self, *, blocks_above: bool = False) -> Stack:
        """Tell how deep the parameters stand: the blocks within frames, then those along time. The tables of positions
        count as embeddings, both of them. blocks_above: whether the last LayerNorm has further blocks above it."""
        stack = Stack(("weight", "bias", "spatial_positions", "temporal_positions"))
        stack = stack.under("spatial.blocks", len(self.spatial.blocks)).closed_by("spatial.norm")
        stack = stack.under("temporal.blocks", len(self.temporal.blocks))
        return stack.closed_by("temporal.norm") if blocks_above else stack

    def stacks(self) -> list[Stack]:
        """Tell how deep the parameters stand, see `Stack`."""
        return [self.stack()]

    def plan(self, index: Tensor, grid: tuple[int, int, int] | None = None) -> VisibleTokens:
        """Pack the listed tokens, int32 [B, K] on the host, of clips with this grid (None: the config's); the result is
        on the model's device. Errors as `lay_out_visible`."""
        return on_device(lay_out_visible(index, grid or self.config.grid), self.device)

    def forward(
        self, video: Tensor, frame_paddings: Tensor | None = None, *, visible: VisibleTokens | None = None
    ) -> Tensor:
        """Encode clips, uint8 or floating in [0, 1], [B, T, H, W, 3] -> [B, T*S, D], or [B, K, D] of `visible`.

        frame_paddings: bool [B, T], frames that stand for nothing (on the CPU, or it is waited for). visible: from
        `plan`. Raises ValueError where the clip's sides are no multiples of the patch, or both options are given.
        """
        return self.layer_tokens(video, (), frame_paddings, visible=visible)[-1]

    def layer_tokens(
        self,
        video: Tensor,
        layers: Sequence[int],
        frame_paddings: Tensor | None = None,
        *,
        visible: VisibleTokens | None = None,
    ) -> list[Tensor]:
        """Return the tokens behind some blocks, before any LayerNorm, and last what the encoder gives, each [B, T*S or
        K, D].

        layers: numbers of the blocks, counted from 0 through both stages. Other arguments and errors as `forward`;
        raises ValueError for a block that does not exist.
        """
        total = len(self.spatial.blocks) + len(self.temporal.blocks)
        if unknown := [layer for layer in layers if not 0 <= layer < total]:
            raise ValueError(f"layers must be in 0 to {total - 1}, got {unknown}")
        if frame_paddings is not None and visible is not None:
            raise ValueError("frame_paddings and visible tokens cannot be given together")
        grid = self.config.grid_of(video)
        self._name_resized(grid)
        batch, frames = video.shape[:2]
        if visible is None:
            packing = Packing.uniform(batch * frames, grid[1] * grid[2], video.device)
            index = torch.arange(frames * grid[1] * grid[2], dtype=torch.int32, device=video.device)
            visible = VisibleTokens(index.expand(batch, -1), packing, TimeAxis(batch, frames))
        spatial, temporal = visible.spatial, visible.temporal
        padding = in_time = None
        if frame_paddings is not None:
            visible, padding, in_time = _pad_frames(frame_paddings, visible, grid)
            temporal = visible.temporal
        kept: list[Tensor] = []

        def run(stack: PrismTransformer, x: Tensor, layout: Packing | TimeAxis, pad: Padding | None, first: int):
            for number, block in enumerate(stack.blocks, start=first):
                x = block(x, layout, padding=pad)
                if number in layers:
                    in_order = x if first == 0 or visible.by_frame is None else take_rows(x, visible.by_frame)
                    kept.append(in_order.view(batch, -1, x.shape[-1]))
            return stack.norm(x)

        x_ND = run(self.spatial, self._embed(video, visible, grid), spatial, padding, 0)
        x_ND = x_ND + self._times(visible, grid, x_ND.dtype)
        if visible.by_place is not None:
            x_ND = take_rows(x_ND, visible.by_place)
        x_ND = run(self.temporal, x_ND, temporal, in_time, len(self.spatial.blocks))
        if visible.by_frame is not None:
            x_ND = take_rows(x_ND, visible.by_frame)
        return [*kept, x_ND.view(batch, -1, x_ND.shape[-1])]

    def _name_resized(self, grid: tuple[int, int, int]) -> None:
        """Warn, once for each grid, of position tables that are resized or cut for it."""
        if torch.compiler.is_compiling() or grid in self._named_grids:
            return
        self._named_grids.add(grid)
        (frames, *places), (own_frames, *own) = grid, self.config.grid
        cut = self.config.few_frames == "crop" and frames < own_frames
        times = (
            f"the first {frames} of {own_frames} rows" if cut else f"{own_frames} rows to {frames}, antialiased linear"
        )
        said = [f"temporal_positions: {times}"] if frames != own_frames else []
        if places != own:
            said += ["spatial_positions: {} x {} rows to {} x {}, antialiased bilinear".format(*own, *places)]
        logger.warning("clips of %d x %d x %d tokens: %s", *grid, "; ".join(said))

    def _embed(self, video: Tensor, visible: VisibleTokens, grid: tuple[int, int, int]) -> Tensor:
        """Embed the listed patches and add the positions of their places: -> [B*K, D]."""
        config, index = self.config, visible.index
        places = resize_positions(self.spatial_positions, config.frame_grid, grid[1:])
        patch, positions = config.patch_size, places.repeat(grid[0], 1)
        if visible.of_token is None:
            placed = positions.repeat(len(index), 1)
        else:
            placed = take_rows(positions, Pick(index.flatten().long(), visible.of_token))
        if video.requires_grad:  # the op knows no gradient of frames, which maps of salience ask for
            patches = video.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).transpose(3, 4)  # [B, T, h, w, p, p, 3]
            patches = patches.flatten(4).flatten(1, 3)
            listed = torch.take_along_dim(patches, index[..., None].long(), dim=1).flatten(0, 1)
            weight = self.weight[:, :, 0].permute(0, 2, 3, 1).flatten(1)
            return linear(listed.to(weight.dtype), weight, self.bias) + placed
        x_BKD = tubelet_embed(
            video,
            index.contiguous(),
            self.weight,
            self.bias,
            tubelet=(1, patch, patch),
            mean=_MEAN,
            std=_STD,
        )
        # Not by the op, which would look for the gradient of each position.
        x_ND = x_BKD.flatten(0, 1)
        return x_ND + placed.to(x_ND.dtype)

    def _times(self, visible: VisibleTokens, grid: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
        """Return the position in time of each listed token, [B*K, D]."""
        frames, own = grid[0], self.config.num_frames
        if self.config.few_frames == "crop" and frames <= own:
            table = self.temporal_positions[:frames]
        else:
            table = resize_positions(self.temporal_positions, (1, own), (1, frames))
        table = table.to(dtype)
        if visible.of_frame is None:
            return table.repeat_interleave(grid[1] * grid[2], dim=0).repeat(len(visible.index), 1)
        frame = visible.index.flatten().long() // (grid[1] * grid[2])
        return take_rows(table, Pick(frame, visible.of_frame))


def _pad_frames(
    frame_paddings: Tensor, visible: VisibleTokens, grid: tuple[int, int, int]
) -> tuple[VisibleTokens, Padding, Padding]:
    """Lay out whole clips with padded frames, bool [B, T]: how they attend along time, and which of their rows are
    padding within frames and, in the order of places, along time.

    Within a padded frame all keys are padding, and the softmax over equal logits is even; along time padded frames
    are attended to by none, unless a whole clip is padded.
    """
    frames, places = grid[0], grid[1] * grid[2]
    if frame_paddings.shape != (len(visible.index), frames):
        raise ValueError(f"frame_paddings must be [{len(visible.index)}, {frames}], got {list(frame_paddings.shape)}")
    device = visible.index.device
    padded = frame_paddings.bool().cpu()
    nothing = padded.all(dim=1)
    # rows of place-major order: clip, place, frame
    keys = (~padded | nothing[:, None])[:, None].expand(-1, places, -1)
    rows = torch.arange(padded.numel() * places).view(len(padded), frames, places)
    by_place = rows.transpose(1, 2).flatten()
    along_time = replace(
        Packing.uniform(len(padded) * places, frames),
        key_rows=keys.flatten().nonzero()[:, 0],
        cu_seqlens_k=offsets(keys.sum(dim=-1).flatten().numpy()),
    )
    layout = VisibleTokens(visible.index, visible.spatial, along_time, by_place, by_place.argsort())
    in_frame = padded.flatten().repeat_interleave(places)
    even = nothing.repeat_interleave(places * frames)
    within, along = Padding(~in_frame, in_frame), Padding(~in_frame[by_place], even if nothing.any() else None)
    return on_device(layout, device), on_device(within, device), on_device(along, device)


@dataclass(frozen=True, kw_only=True)
class PrismClassifierConfig(VideoPrismConfig):
    """The encoder's sizes and the number of classes."""

    num_classes: int = 400
    pooler_hidden: int = 0
    """Width of the pooler's hidden layer; 0: that of the tokens, as released. transformers has that of the MLPs."""
    head_dropout: float = 0.0
    """Share of the pooled vector that training drops before the linear layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_classes")
        check_share(self, "head_dropout")
        if self.pooler_hidden < 0 or self.pooler_hidden % self.num_heads:
            raise ValueError(
                f"pooler_hidden must be a multiple of num_heads {self.num_heads}, got {self.pooler_hidden}"
            )


class PrismClassifier(nn.Module):
    """Classifies clips by the encoder's tokens, pooled by attention, and a linear layer; no trained head was
    released."""

    def __init__(self, config: PrismClassifierConfig):
        super().__init__()
        self.config = config
        self.encoder = VideoPrismEncoder(config)
        self.pooler = AttentionPooler(config.width, config.num_heads, config.pooler_hidden or config.width)
        self.dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(config.width, config.num_classes)

    def init_weights(self) -> None:
        """Initialise the weights as the encoder's, from torch's global generator."""
        self.encoder.init_weights()
        self.pooler.apply(init_linear_normal)
        self.pooler.init_weights()
        self.head.apply(init_linear_normal)

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def stacks(self) -> list[Stack]:
        """Tell how deep the parameters stand, see `Stack`."""
        return [self.encoder.stack().inside("encoder")]

    def forward(self, video: Tensor, frame_paddings: Tensor | None = None) -> Tensor:
        """Judge every class of each clip: uint8 [B, T, H, W, 3] -> float32 logits [B, num_classes]. frame_paddings:
        see `VideoPrismEncoder.forward`."""
        pooled = self.dropout(self.pooler(self.encoder(video, frame_paddings))[:, 0])
        # in full precision: the loss of a bfloat16 logit is off by more than a step changes it
        with torch.autocast(pooled.device.type, enabled=False):
            return in_float32(self.head, pooled)
