"""TimeSformer with divided space-time attention (arXiv:2102.05095), as ALPRO uses it (arXiv:2112.09583).

Shape legend: B = clips, T = frames, S = patches of a frame, D = width.
Tokens lie frame after frame, [B, T, S, D], the order in which patches are embedded. Time attends through strides of
that layout, space through its frames; nothing is transposed. The released code keeps (patch, frame) order instead,
which is the same set of tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastvtp.modules.attention import Attention
from fastvtp.modules.checks import (
    SQUARE_FRAMES,
    check_choice,
    check_heads,
    check_positive,
    check_share,
)
from fastvtp.modules.layers import Mlp, init_linear_normal, rising_drop_path
from fastvtp.modules.packing import Packing
from fastvtp.modules.pixels import CLIP_MEAN, CLIP_STD
from fastvtp.modules.rows import QueryRows, Rows
from fastvtp.modules.stacks import Stack
from fastvtp.settings import check_types
from fastvtp_kernels import axial_attention_packed, tubelet_embed


@dataclass(frozen=True, kw_only=True)
class TimeSformerConfig:
    """Sizes of clips and of the tower that reads them; the defaults are ALPRO's (ViT-B/16)."""

    num_frames: int = 4
    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    """Probability that a branch of the last block is skipped; it rises linearly from 0 at the first."""
    hidden_patches: str = "grey"
    """What stands where `shown` hides a patch: "grey", zero after normalisation, or "black", zero before it, which is
    what the prompter of the released training sees around a crop: its loader blanks the crop's surroundings first and
    normalises then."""

    def __post_init__(self) -> None:
        check_types(self, image_size=SQUARE_FRAMES)
        check_positive(self, "num_frames", "image_size", "patch_size", "width", "num_heads", "mlp_ratio")
        check_heads(self, "width", "num_heads")
        check_share(self, "drop_path")
        check_choice(self, "hidden_patches", ("grey", "black"))
        if self.depth < 0:
            raise ValueError(f"depth must not be negative, got {self.depth}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def grid(self) -> tuple[int, int]:
        """Numbers of patches of a frame along (height, width)."""
        return self.image_size // self.patch_size, self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """The number of patches of a frame."""
        return self.grid[0] * self.grid[1]


class DividedBlock(nn.Module):
    """Attention along time, attention within each frame, MLP (TimeSformer, section 3.3).

    The class token sits out the first; in the second it stands in every frame, and what it collects there is averaged.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.temporal_norm = nn.LayerNorm(width, eps=1e-6)
        self.temporal_attn = Attention(width, num_heads)
        self.temporal_fc = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = drop_path

    def forward(self, tokens_BND: Tensor, num_frames: int, class_only: bool = False) -> Tensor:
        """[B, 1 + T*S, D], the class token first, -> the same. class_only: compute the class token alone, [B, 1, D]."""
        x_BTSD = tokens_BND[:, 1:].unflatten(1, (num_frames, -1))
        x_BTSD = x_BTSD + self._along_time(x_BTSD)
        cls_B1D, x_BTSD = self._within_frames(tokens_BND[:, :1], x_BTSD, class_only)
        tokens_BND = torch.cat([cls_B1D, x_BTSD.flatten(1, 2)], dim=1)
        return tokens_BND + self._drop(self.mlp(self.norm2(tokens_BND)), tokens_BND.shape[:1])

    def _along_time(self, x_BTSD: Tensor) -> Tensor:
        """Return what attention along time adds to the patches: [B, T, S, D] -> [B, T, S, D]."""
        qkv = self.temporal_attn.project_qkv(self.temporal_norm(x_BTSD))
        out = axial_attention_packed(qkv.unflatten(-1, (3, self.temporal_attn.num_heads, -1)))
        # Two linear layers in a row are one; the product of their weights costs less than that of the rows with both.
        first, second = self.temporal_attn.proj, self.temporal_fc
        out = linear(out.flatten(-2), second.weight @ first.weight, second.weight @ first.bias)
        batch, _, patches, _ = x_BTSD.shape
        return self._drop(out, (batch, 1, patches)) + second.bias

    def _within_frames(self, cls_B1D: Tensor, x_BTSD: Tensor, class_only: bool) -> tuple[Tensor, Tensor]:
        """Return class token and patches behind the attention of each frame; class_only: without patches, [B, T, 0,
        D]."""
        batch, frames, patches, width = x_BTSD.shape
        framed = torch.cat([cls_B1D[:, None].expand(-1, frames, -1, -1), x_BTSD], dim=2)
        packing = Packing.uniform(batch * frames, patches + 1, x_BTSD.device)
        rows = Rows(packing, QueryRows.first(packing) if class_only else None)
        out = self.attn(self.norm1(framed).view(-1, width), rows)
        out = self._drop(out.view(batch, frames, -1, width), (batch, frames))
        cls_B1D = cls_B1D + out[:, :, 0].mean(dim=1, keepdim=True)
        return cls_B1D, x_BTSD[:, :, : out.shape[2] - 1] + out[:, :, 1:]

    def _drop(self, branch: Tensor, leading: tuple[int, ...]) -> Tensor:
        """Leave a branch out for whole sequences at random, one draw for each entry of the shape `leading`."""
        if not (self.training and self.drop_path):
            return branch
        shape = (*leading, *(1,) * (branch.ndim - len(leading)))
        kept = torch.rand(shape, device=branch.device) >= self.drop_path
        return branch * kept.to(branch.dtype) / (1 - self.drop_path)


class TimeSformer(nn.Module):
    """Makes of a clip's frames a class token and patches, which are averaged over time."""

    def __init__(self, config: TimeSformerConfig):
        super().__init__()
        self.config = config
        patch = config.patch_size
        self.weight = nn.Parameter(torch.empty(config.width, 3, 1, patch, patch))  # Conv3d layout, one frame deep
        self.bias = nn.Parameter(torch.empty(config.width))
        self.cls_token = nn.Parameter(torch.empty(config.width))
        self.cls_position = nn.Parameter(torch.empty(config.width))
        self.patch_positions = nn.Parameter(torch.empty(config.num_patches, config.width))
        self.time_positions = nn.Parameter(torch.empty(config.num_frames, config.width))
        self.blocks = nn.ModuleList(
            DividedBlock(config.width, config.num_heads, config.mlp_ratio, drop_path)
            for drop_path in rising_drop_path(config.drop_path, config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def init_weights(self) -> None:
        """Initialise the weights as ViT's; the projection after temporal attention begins at 0, so that time plays no
        part yet."""
        self.apply(init_linear_normal)
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.time_positions)
        for table in (self.cls_token, self.cls_position, self.patch_positions):
            nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, DividedBlock):
                nn.init.zeros_(module.temporal_fc.weight)

    def stack(self) -> Stack:
        """Tell how deep the parameters stand."""
        own = ("weight", "bias", "cls_token", "cls_position", "patch_positions", "time_positions")
        return Stack(own).under("blocks", len(self.blocks))

    def embed(self, video: Tensor, shown: Tensor | None = None) -> Tensor:
        """Embed patches and put the class token before them: uint8 [B, T, H, W, 3] -> [B, 1 + T*S, D].

        T is the config's, or 1 for images. shown: bool [B, S]; the other patches of every frame are taken as mid grey
        or black, as the config's `hidden_patches` says. Raises ValueError for clips of another size.
        """
        config = self.config
        frames, size = video.shape[1], config.image_size
        if video.ndim != 5 or frames not in (1, config.num_frames) or tuple(video.shape[2:]) != (size, size, 3):
            raise ValueError(f"video must be [B, {config.num_frames} or 1, {size}, {size}, 3], got {list(video.shape)}")
        index = torch.arange(frames * config.num_patches, dtype=torch.int32, device=video.device)
        positions = (self.time_positions[:frames, None] + self.patch_positions).flatten(0, 1)
        x_BND = tubelet_embed(
            video,
            index.expand(len(video), -1),
            self.weight,
            self.bias,
            tubelet=(1, config.patch_size, config.patch_size),
            mean=CLIP_MEAN,
            std=CLIP_STD,
        )
        # Not by the op, which would look for the gradient of each position: here it is a sum over clips.
        x_BND = x_BND + positions.to(x_BND.dtype)
        if shown is not None:
            hidden = (self._embedded_blank() + positions).to(x_BND.dtype)
            x_BND = torch.where(shown.repeat(1, frames)[..., None], x_BND, hidden)
        cls = (self.cls_token + self.cls_position).to(x_BND.dtype)
        return torch.cat([cls.expand(len(video), 1, -1), x_BND], dim=1)

    def _embedded_blank(self) -> Tensor:
        """Return what a hidden patch is embedded as, without its position: [D]."""
        if self.config.hidden_patches == "grey":
            return self.bias
        channels = zip(self.weight.unbind(dim=1), CLIP_MEAN, CLIP_STD, strict=True)
        return self.bias - sum(weight.sum(dim=(1, 2, 3)) * (mean / std) for weight, mean, std in channels)

    def forward(self, video: Tensor, shown: Tensor | None = None, *, class_only: bool = False) -> Tensor:
        """Read clips, uint8 [B, T, H, W, 3] -> [B, 1 + S, D], the class token first. Arguments as `embed`; class_only:
        compute the class token alone, [B, 1, D]."""
        tokens_BND = self.embed(video, shown)
        for number, block in enumerate(self.blocks, 1):
            tokens_BND = block(tokens_BND, video.shape[1], class_only and number == len(self.blocks))
        if class_only:
            return self.norm(tokens_BND[:, :1])
        tokens_BND = self.norm(tokens_BND)
        patches = tokens_BND[:, 1:].unflatten(1, (video.shape[1], -1)).mean(dim=1)
        return torch.cat([tokens_BND[:, :1], patches], dim=1)
