"""The light decoder that turns visible features into the pixels of masked tubelets.

Shape legend: B = clips, Kv / Kp = visible / predicted tokens of a clip, N = packed tokens, M = those of a memory,
D = width, P = values of a tubelet.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastvtp.modules.layers import (
    CrossBlock,
    Transformer,
    init_linear_xavier,
)
from fastvtp.modules.packing import Packing
from fastvtp.modules.positions import Grid, OnGrid
from fastvtp.modules.rows import Pick, QueryRows, Rows, Takers
from fastvtp_kernels import assemble_tokens

DECODERS = ("joint", "cross")


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of a `VideoDecoder` and the kind of its blocks.

    kind: "joint" puts visible and predicted tokens into one sequence (VideoMAE); "cross" has predicted tokens look at
    visible ones and at nothing else (CrossMAE), so that its cost is linear in what is predicted. qkv_bias, layer_scale:
    of the "joint" blocks, see `Block`.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    kind: str = "joint"
    qkv_bias: bool = True
    layer_scale: float = 0.0


class CrossTransformer(nn.Module):
    """`depth` cross-attending blocks and a final LayerNorm; tokens look at the memory of their own sequence alone."""

    def __init__(self, width: int, depth: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.blocks = nn.ModuleList(CrossBlock(width, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x_ND: Tensor, memory_MD: Tensor, packing: Packing, memory_packing: Packing) -> Tensor:
        """[N, D], looking at a memory [M, D] that is packed into equally many sequences, -> [N, D]."""
        for block in self.blocks:
            x_ND = block(x_ND, memory_MD, packing, memory_packing)
        return self.norm(x_ND)


class VideoDecoder(OnGrid):
    """Visible features and mask tokens -> predicted values of the predicted tubelets.

    The last block and the head compute predicted tokens alone: nobody reads what becomes of the visible ones.

    encoder_width: of the visible features. grid: tubelets of a clip, each with a position, made of those of
    `table_grid`, see `OnGrid`. values: P.
    """

    def __init__(
        self, sizes: DecoderSizes, *, encoder_width: int, grid: Grid, values: int, table_grid: Grid | None = None
    ):
        super().__init__(sizes.width, grid, table_grid)
        self.kind, width = sizes.kind, sizes.width
        self.project = nn.Linear(encoder_width, width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(width))
        blocks = width, sizes.depth, sizes.num_heads, sizes.mlp_ratio
        if sizes.kind == "joint":
            self.transformer = Transformer(*blocks, qkv_bias=sizes.qkv_bias, layer_scale=sizes.layer_scale)
        else:
            self.transformer = CrossTransformer(*blocks)
        self.head = nn.Linear(width, values)

    def init_weights(self) -> None:
        """Initialise the weights as VideoMAE's, with the mask token of deviation 0.02, from torch's global
        generator."""
        self.apply(init_linear_xavier)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.fill_positions()

    def forward(self, visible: Tensor, visible_index: Tensor, predicted_index: Tensor) -> Tensor:
        """Predict tubelets from visible features, [B, Kv, encoder_width]: -> [B, Kp, P].

        visible_index, predicted_index: int32 [B, Kv] and [B, Kp], the places of both in the clip.
        """
        # under autocast the residual stream stays float32, as in the encoder
        x = self.project(visible).to(self.mask_token.dtype)
        decode = self._joint if self.kind == "joint" else self._cross
        return self.head(decode(x, visible_index, predicted_index))

    def _joint(self, x: Tensor, visible_index: Tensor, predicted_index: Tensor) -> Tensor:
        (batch, visible), predicted = visible_index.shape, predicted_index.shape[1]
        tokens = visible + predicted
        rows = torch.arange(batch * tokens, device=x.device).view(batch, tokens)
        queries = QueryRows(rows[:, visible:].flatten(), Packing.uniform(batch, predicted, x.device))
        packing = Packing.uniform(batch, tokens, x.device)
        if predicted_index.numel() > len(self.positions):
            # a mask token begins alike in every clip: one row per place for all of them
            placed = x + nn.functional.embedding(visible_index, self.positions)
            pool = torch.cat([placed.flatten(0, 1), self.mask_token + self.positions])
            own = torch.arange(batch * visible, device=x.device).view(batch, visible)
            sources = torch.cat([own, batch * visible + predicted_index.long()], dim=1).flatten()
            takers = _takers(rows, visible, predicted_index, len(self.positions))
            x_ND = self.transformer(pool, Rows(packing, queries, Pick(sources, takers)))
        else:
            x = assemble_tokens(x, self.mask_token, self.positions, visible_index, predicted_index)
            x_ND = self.transformer(x.flatten(0, 1), Rows(packing, queries))
        return x_ND.view(batch, predicted, -1)

    def _cross(self, x: Tensor, visible_index: Tensor, predicted_index: Tensor) -> Tensor:
        memory = x + self.positions[visible_index.long()]
        queries = self.mask_token + self.positions[predicted_index.long()]
        x_ND = self.transformer(
            queries.flatten(0, 1),
            memory.flatten(0, 1),
            Packing.uniform(*queries.shape[:2], device=x.device),
            Packing.uniform(*x.shape[:2], device=x.device),
        )
        return x_ND.view_as(queries)


def _takers(rows: Tensor, visible: int, predicted_index: Tensor, places: int) -> Takers:
    """List who takes each row of a pool of visible tubelets and, behind them, a mask token at each of `places`.

    rows: int64 [B, Kv + Kp], the numbers of the packed rows, of which the first Kv take visible tubelets one after
    the other. predicted_index: int32 [B, Kp], the places of the others, which differ within a clip: of a place there is
    at most one taker in each.
    """
    batch = len(rows)
    of_place = rows.new_full((batch, places), -1).scatter_(1, predicted_index.long(), rows[:, visible:])
    own = torch.arange(batch * visible, device=rows.device)
    starts = torch.cat([own, batch * visible + batch * torch.arange(places + 1, device=rows.device)])
    return Takers(torch.cat([rows[:, :visible].flatten(), of_place.T.flatten()]), starts.int())
