"""Texts with their padding through VideoPrism's text tower, which itself packs them.

Shape legend: n = texts, L = padded tokens, N = n * L rows, D = width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastvtp.errors import UserError
from fastvtp.modules.packing import Packing
from fastvtp.systems.videoprism.layers import (
    CappedAttention,
    Padding,
    PrismTransformer,
)
from fastvtp.systems.videoprism.video_text import PrismText
from tests.parity.systems.prism_folder import Part


@dataclass(frozen=True)
class PaddedRows:
    """Rows [N] of equally long sequences. real: bool [n, L], whose first rows are not padding."""

    real: Tensor

    def packed(self) -> Packing:
        """The real rows alone."""
        lengths = self.real.sum(dim=1)
        cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
        return Packing(cu_seqlens, int(lengths.max()))


class PaddedAttention(nn.Module):
    """A model's attention on padded rows: all look at real ones. With a causal mask the released code hides every key
    from padded rows, which then look at all evenly, later rows and padding included."""

    def __init__(self, attn: CappedAttention, rows: PaddedRows):
        super().__init__()
        self.attn, self.rows = attn, rows

    def forward(self, x_ND: Tensor, _: Packing, *, causal: bool = False, even: None = None) -> Tensor:
        real, packing = self.rows.real.flatten(), self.rows.packed()
        whole = Packing.uniform(len(self.rows.real), self.rows.real.shape[1])
        if not causal:
            keys = {"key_rows": real.nonzero()[:, 0], "cu_seqlens_k": packing.cu_seqlens}
            return self.attn(x_ND, replace(whole, **keys))
        out_ND = self.attn(x_ND, whole, even=~real)
        out_ND[real] = self.attn(x_ND[real], packing, causal=True)
        return out_ND


@contextmanager
def padded(transformer: PrismTransformer, rows: PaddedRows) -> Iterator[PrismTransformer]:
    """A transformer that takes padded rows while the context is open."""
    blocks: list[Any] = list(transformer.blocks)
    for block in blocks:
        block.attn = PaddedAttention(block.attn, rows)
    try:
        yield transformer
    finally:
        for block in blocks:
            block.attn = block.attn.attn


class Texts:
    """The texts of a case: ids int64 [n, L], real bool [n, L], and without their padding as models take them."""

    def __init__(self, part: Part, case: str):
        self.ids = part.given(case, "text_token_ids").long()
        self.real = part.given(case, "text_paddings") == 0
        if self.ids.shape != self.real.shape or (self.real.long().diff(dim=1) > 0).any():
            raise UserError(f"{part.path}: {case}text_paddings must be {list(self.ids.shape)}, ones behind each text")
        packing = PaddedRows(self.real).packed()
        self.packed = self.ids[self.real], packing.cu_seqlens, packing.max_seqlen

    def features(self, tower: PrismText) -> Tensor:
        """Behind the last norm, padded rows and the class token behind them included: [n, L + 1, D]."""
        count, length = self.ids.shape
        tokens = tower.embed(self.ids.flatten(), torch.arange(length).repeat(count)).view(count, length, -1)
        cls = (tower.cls_token * tower.cls_token.numel() ** 0.5).expand(count, 1, -1)
        rows = PaddedRows(torch.cat([self.real, torch.ones(count, 1, dtype=torch.bool)], dim=1))
        padding = Padding(rows.real.flatten())
        x_ND = torch.cat([tokens, cls], dim=1).flatten(0, 1)
        with padded(tower.transformer, rows) as transformer:
            out_ND = transformer(x_ND, rows.packed(), causal=True, padding=padding)
        return out_ND.view(count, length + 1, -1)
