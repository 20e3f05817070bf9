"""Layers of VideoPrism (arXiv:2402.13217, and the released encoder): attention with capped logits, poolers, positions.

Shape legend: N = packed rows, D = width, H = heads, K = head dim, B = clips, T = frames, L = tokens of a clip,
Q = learned queries.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu, softplus

from fastvtp.models.layers import Mlp
from fastvtp.models.linear import Linear
from fastvtp.models.packing import Packing
from fastvtp.models.rows import take_rows
from fastvtp_kernels import axial_attention_packed, varlen_attention, varlen_attention_packed

NORM_POLICIES = ("pre", "primer_hybrid")
_LOG2_E = 1.442695041  # 1 / softplus(0): a scale of zeros scales by one


@dataclass(frozen=True)
class TimeAxis:
    """Rows that are a grid [num_clips, num_frames, places]: each place attends along time, by strides."""

    num_clips: int
    num_frames: int


@dataclass(frozen=True)
class Padding:
    """Rows that stand for nothing, as the released encoder treats those of padded frames.

    real: bool [N]; the feed-forward branch adds nothing to other rows. even: bool [N], rows whose keys are all padding
    and which therefore look at all of them evenly; None: there are none.
    """

    real: Tensor
    even: Tensor | None = None


class CappedAttention(nn.Module):
    """Self-attention with logits c * tanh(logits / c); unlike without the cap, the key bias does not cancel."""

    def __init__(self, width: int, num_heads: int, softcap: float):
        super().__init__()
        self.num_heads, self.softcap = num_heads, softcap
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(
        self, x_ND: Tensor, layout: Packing | TimeAxis, *, causal: bool = False, even: Tensor | None = None
    ) -> Tensor:
        """x_ND: [N, D] -> [N, D]. causal: rows look at themselves and back. even: bool [N], see `Padding`."""
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
                query, key, value, layout.cu_seqlens, layout.max_seqlen, cu_seqlens_k=layout.cu_seqlens_k,
                max_seqlen_k=None if layout.cu_seqlens_k is None else layout.max_seqlen, **options,
            )  # fmt: skip
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
        even = None if padding is None else padding.even
        x_ND = x_ND + self.branch_norm1(self.attn(self.norm1(x_ND), layout, causal=causal, even=even))
        branch_ND = self.mlp(self.norm2(x_ND))
        if padding is not None:
            branch_ND = branch_ND * padding.real[:, None]
        return x_ND + self.branch_norm2(branch_ND)


class PrismTransformer(nn.Module):
    """`depth` blocks on packed rows and, unless `final_norm` is False, a LayerNorm.

    activation: "gelu" (exact, vision) or "relu" (text).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        hidden: int,
        softcap: float,
        *,
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
        for block in self.blocks:
            x_ND = block(x_ND, layout, causal=causal, padding=padding)
        return self.norm(x_ND)


class AttentionPooler(nn.Module):
    """Multi-head attention pooling: learned queries look at all tokens, then LayerNorm; logits are not capped.

    The queries do not depend on the input, so that both projections can be moved to the other side of the attention:
    the logits of head h are x (W_k[h]^T q[h]), its output W_v[h] (p x) + b_v. What is computed per token is one product
    with H*Q vectors, and no keys or values of width `hidden` (four times D in the released video-text model) exist.

    plain: neither a learned scale of each head's dimensions nor the LayerNorm, as other systems pool.
    """

    def __init__(self, width: int, num_heads: int, hidden: int, num_queries: int = 1, *, plain: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.query, self.key, self.value = (nn.Linear(width, hidden) for _ in range(3))
        self.per_dim_scale = None if plain else nn.Parameter(torch.empty(hidden // num_heads))
        self.proj = nn.Linear(hidden, width)
        self.norm = nn.Identity() if plain else nn.LayerNorm(width, eps=1e-6)

    def init_weights(self) -> None:
        """Of the parameters that are no layer's."""
        nn.init.normal_(self.queries, std=0.02)
        if self.per_dim_scale is not None:
            nn.init.zeros_(self.per_dim_scale)

    def forward(self, x_BLD: Tensor, real: Tensor | None = None) -> Tensor:
        """Tokens [B, L, D] -> [B, Q, D]. real: bool [B, L], the tokens that are looked at; None: all."""
        heads, (num_queries, width) = self.num_heads, self.queries.shape
        query_QHK = scale_query(self.query(self.queries).view(num_queries, heads, -1), self.per_dim_scale)
        key_HKD = self.key.weight.view(heads, -1, width)
        probe = torch.einsum("qhk,hkd->qhd", query_QHK, key_HKD).flatten(0, 1)
        # equal for all tokens, it cancels in the softmax; data parallel training stops at parameters without gradients
        shift = (query_QHK * self.key.bias.view(heads, -1)).sum(dim=-1).view(-1, 1)
        logits = torch.matmul(probe, x_BLD.mT).float() + shift  # [B, Q*H, L]
        if real is not None:
            logits = logits.masked_fill(~real[:, None], -math.inf)
        pooled = torch.matmul(logits.softmax(dim=-1).to(x_BLD.dtype), x_BLD)
        value_HKD = self.value.weight.view(heads, -1, width)
        out = torch.einsum("bqhd,hkd->bqhk", pooled.unflatten(1, (num_queries, heads)), value_HKD).flatten(2)
        return self.norm(self.proj(out + self.value.bias))


def scale_query(query: Tensor, per_dim_scale: Tensor | None) -> Tensor:
    """[..., K] / sqrt(K), each dimension by a learned scale [K] of its own, whose zero is one; None: plainly."""
    scaled = query / math.sqrt(query.shape[-1])
    return scaled if per_dim_scale is None else scaled * (_LOG2_E * softplus(per_dim_scale))


def sinusoid_positions(num_positions: int, width: int) -> Tensor:
    """The text tower's positions: float32 [num_positions, width], sines in the first half, cosines in the second.

    angle(p, i) = p * 10000^(-i / (n - 1)) for i < n = width // 2: the last timescale is 10000 itself. An odd width ends
    in a zero.
    """
    count = width // 2
    rate = torch.exp(-torch.arange(count, dtype=torch.float64) * math.log(10000) / max(count - 1, 1))
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * rate
    return nn.functional.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, width % 2)).float()


def resize_positions(table: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """A table over a grid, [before[0] * before[1], D], for another grid: bilinear, antialiased where it shrinks
    (`jax.image.resize`)."""
    if before == after:
        return table
    grid = table.T.reshape(1, -1, *before).float()
    resized = interpolate(grid, size=after, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].flatten(1).T.to(table.dtype)


def unit_length(x: Tensor) -> Tensor:
    """x / sqrt(sum(x^2) + 1e-12) along the last axis, in float32; a zero vector stays zero."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-12)
