"""VideoMAE's video tower: tubelet embedding and the light reconstruction decoder (arXiv:2203.12602).

Shape legend: B = clips, K = listed tokens of a clip, D = width, P = values of a tubelet (pt*ph*pw*C).
"""

import math

import torch
from torch import Tensor, nn

from fastvtp.models.layers import Packing, Transformer, init_linear_xavier, sincos_positions
from fastvtp_kernels import assemble_tokens, tubelet_embed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class VideoEmbeddings(nn.Module):
    """Tubelet embedding of the listed tokens plus fixed positions; tubelets that are not listed are never read."""

    positions: Tensor

    def __init__(self, grid: tuple[int, int, int], tubelet: tuple[int, int, int], width: int):
        super().__init__()
        self.tubelet, self.grid, self.num_tokens = tubelet, grid, math.prod(grid)
        self.weight = nn.Parameter(torch.empty(width, 3, *tubelet))  # Conv3d layout
        self.bias = nn.Parameter(torch.empty(width))
        self.register_buffer("positions", torch.empty(self.num_tokens, width), persistent=False)

    def init_weights(self) -> None:
        nn.init.xavier_uniform_(self.weight.view(self.weight.shape[0], -1))
        nn.init.zeros_(self.bias)
        self.positions.copy_(sincos_positions(*self.positions.shape))

    def forward(self, video: Tensor, index: Tensor) -> Tensor:
        """video: uint8 [B, T, H, W, 3], index: int32 [B, K] -> [B, K, D]."""
        expected = tuple(cells * size for cells, size in zip(self.grid, self.tubelet, strict=True))
        if tuple(video.shape[1:4]) != expected:
            raise ValueError(f"video must be [B, {', '.join(map(str, expected))}, 3], got {list(video.shape)}")
        return tubelet_embed(
            video, index, self.weight, self.bias, self.positions,
            tubelet=self.tubelet, mean=IMAGENET_MEAN, std=IMAGENET_STD,
        )  # fmt: skip


class VideoDecoder(nn.Module):
    """Visible features and mask tokens -> predicted values of the masked tubelets.

    The head sees masked tokens alone: nobody asks for the visible ones.
    """

    positions: Tensor

    def __init__(
        self, encoder_width: int, num_tokens: int, width: int, depth: int, num_heads: int, mlp_ratio: float, values: int
    ):
        super().__init__()
        self.project = nn.Linear(encoder_width, width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.transformer = Transformer(width, depth, num_heads, mlp_ratio)
        self.head = nn.Linear(width, values)
        self.register_buffer("positions", torch.empty(num_tokens, width), persistent=False)

    def init_weights(self) -> None:
        self.apply(init_linear_xavier)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.positions.copy_(sincos_positions(*self.positions.shape))

    def forward(self, visible: Tensor, visible_index: Tensor, masked_index: Tensor) -> Tensor:
        """visible: [B, Kv, D_encoder], indices: int32 [B, Kv], [B, Km] -> prediction [B, Km, P]."""
        # under autocast the residual stream stays float32, as in the encoder
        x = self.project(visible).to(self.mask_token.dtype)
        x = assemble_tokens(x, self.mask_token, self.positions, visible_index, masked_index)
        batch, tokens, width = x.shape
        x_ND = self.transformer(x.reshape(-1, width), Packing.uniform(batch, tokens, x.device))
        return self.head(x_ND.view(batch, tokens, width)[:, visible_index.shape[1] :])
