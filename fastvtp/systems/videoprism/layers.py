"""Layers of VideoPrism (arXiv:2402.13217, and the released encoder): blocks whose attention caps its logits.

Shape legend: N = packed rows, D = width, H = heads, K = width of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from fastvtp.modules.layers import Mlp
from fastvtp.modules.packing import Packing
from fastvtp.modules.precision import wide
from fastvtp.modules.rows import take_rows
from fastvtp_kernels import axial_attention_packed, varlen_attention, varlen_attention_packed

NORM_POLICIES = ("pre", "primer_hybrid")


@dataclass(frozen=True)
class TimeAxis:
    """Says that packed rows are a grid [num_clips, num_frames, places], in which each place attends along time, by
    strides."""

    num_clips: int
    num_frames: int


@dataclass(frozen=True)
class Padding:
    """Says which rows stand for nothing; they are treated as the released encoder treats those of padded frames.

    real: bool [N], False at padding, to which the feed-forward branch adds nothing. even: bool [N], True at rows whose
    keys are all padding and which therefore look at all of them evenly; None: there are no such rows.
    """

    real: Tensor
    even: Tensor | None = None


class CappedAttention(nn.Module):
    """Self-attention with logits c * tanh(logits / c), c being `softcap`; 0: as they are. Unlike without a cap, the
    bias of the keys does not cancel."""

    def __init__(self, width: int, num_heads: int, softcap: float):
        super().__init__()
        self.num_heads, self.softcap = num_heads, softcap
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x_ND: Tensor, layout: Packing | TimeAxis, *, causal: bool = False, even: Tensor | None = None
    ) -> Tensor:
        """Attend within the sequences of `layout`: [N, D] -> [N, D]. causal: rows look at themselves and at those
        before them. even: bool [N], see `Padding`."""
        qkv_N3HK = self.qkv(x_ND).view(len(x_ND), 3, self.num_heads, -1)
        options = {"softcap": self.softcap, "causal": causal}
        if isinstance(layout, TimeAxis):
            grid = qkv_N3HK.view(layout.num_clips, layout.num_frames, -1, *qkv_N3HK.shape[1:])
            out = axial_attention_packed(grid, **options)
        elif layout.key_rows is None and even is None:
            out = varlen_attention_packed(qkv_N3HK, layout.cu_seqlens, layout.max_seqlen, **options)
        else:
            query, key, value = qkv_N3HK.unbind(1)
            if even is not None:
                query = query.masked_fill(even[:, None, None], 0)
            if layout.key_rows is not None:
                pair = take_rows(qkv_N3HK[:, 1:].flatten(1), layout.key_rows)
                key, value = pair.view(len(pair), 2, self.num_heads, -1).unbind(1)
            out = varlen_attention(
                query,
                key,
                value,
                layout.cu_seqlens,
                layout.max_seqlen,
                cu_seqlens_k=layout.cu_seqlens_k,
                max_seqlen_k=None if layout.cu_seqlens_k is None else layout.max_seqlen,
                **options,
            )
        return self.proj(out.reshape(x_ND.shape))


class PrismBlock(nn.Module):
    """Pre-norm transformer block; "primer_hybrid" also normalises what each branch gives (the giant's text tower)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        softcap: float,
        *,
        activation: Callable[[Tensor], Tensor] = nn.functional.gelu,
        norm_policy: str = "pre",
    ):
        super().__init__()
        branch_norm = norm_policy == "primer_hybrid"
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = CappedAttention(width, num_heads, softcap)
        self.branch_norm1 = nn.LayerNorm(width, eps=1e-6) if branch_norm else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden, activation)
        self.branch_norm2 = nn.LayerNorm(width, eps=1e-6) if branch_norm else nn.Identity()

    def forward(
        self, x_ND: Tensor, layout: Packing | TimeAxis, *, causal: bool = False, padding: Padding | None = None
    ) -> Tensor:
        """[N, D] -> [N, D]; options as `CappedAttention`. padding: rows that stand for nothing; None: there are
        none."""
        even = None if padding is None else padding.even
        x_ND = x_ND + self.branch_norm1(self.attn(self.norm1(x_ND), layout, causal=causal, even=even))
        branch_ND = self.mlp(self.norm2(x_ND))
        if padding is not None:
            branch_ND = branch_ND * padding.real[:, None]
        return x_ND + self.branch_norm2(branch_ND)


class PrismTransformer(nn.Module):
    """`depth` blocks on packed rows and, unless `final_norm` is False, a LayerNorm behind them.

    hidden: width of the MLPs. softcap: see `CappedAttention`. activation: "gelu" (exact, vision) or "relu" (text).
    norm_policy: see `PrismBlock`.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        *,
        hidden: int,
        softcap: float,
        activation: Literal["gelu", "relu"] = "gelu",
        norm_policy: str = "pre",
        final_norm: bool = True,
    ):
        super().__init__()
        function = relu if activation == "relu" else nn.functional.gelu
        self.blocks = nn.ModuleList(
            PrismBlock(width, num_heads, hidden, softcap, activation=function, norm_policy=norm_policy)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6) if final_norm else nn.Identity()

    def forward(
        self, x_ND: Tensor, layout: Packing | TimeAxis, *, causal: bool = False, padding: Padding | None = None
    ) -> Tensor:
        """Run all blocks: [N, D] -> [N, D]; options as `PrismBlock`."""
        for block in self.blocks:
            x_ND = block(x_ND, layout, causal=causal, padding=padding)
        return self.norm(x_ND)


def unit_length(x: Tensor) -> Tensor:
    """Scale vectors to unit length, x / sqrt(sum(x^2) + 1e-12) along the last axis, in float32 (float64 of float64); a
    zero vector stays zero."""
    x = wide(x)
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-12)
