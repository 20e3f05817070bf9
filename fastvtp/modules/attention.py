"""Attention on packed tokens, of all rows or of those that ask.

Shape legend: N = packed rows, M = distinct rows that they begin as, R = rows that ask, D = width, H = heads, K = head
dim.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastvtp.modules.linear import Linear, linear
from fastvtp.modules.packing import Packing
from fastvtp.modules.rows import composed, take_rows
from fastvtp_kernels import varlen_attention, varlen_attention_packed


@dataclass(frozen=True)
class Asking:
    """Rows whose results are wanted: the others are looked at, and do not ask. A last layer need not compute what no
    loss reads: its queries, its projection and its MLP are those of these rows.

    rows: int64 [R], sequence after sequence. packing: how these rows divide into the same sequences; a sequence may
    have none."""

    rows: Tensor
    packing: Packing

    @staticmethod
    def first(packing: Packing) -> "Asking":
        """The first row of every sequence of `packing`."""
        return Asking._single(packing.cu_seqlens[:-1].long())

    @staticmethod
    def last(packing: Packing) -> "Asking":
        """The last row of every sequence of `packing`."""
        return Asking._single(packing.cu_seqlens[1:].long() - 1)

    @staticmethod
    def _single(rows: Tensor) -> "Asking":
        return Asking(rows, Packing.uniform(len(rows), 1, rows.device))


class Attention(nn.Module):
    """Multi-head self-attention inside each packed sequence.

    The key bias is left out, as in BEiT and VideoMAE: it shifts all logits of a query alike and cancels in the
    softmax.
    """

    def __init__(self, width: int, num_heads: int, qkv_bias: bool = True, dropout: float = 0.0):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.proj = Linear(width, width)

    def project_qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side: [..., D] -> [..., 3D]."""
        bias = None
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        return linear(x, self.qkv.weight, bias)

    def forward(
        self, x_ND: Tensor, packing: Packing, asking: Asking | None = None, source_rows: Tensor | None = None
    ) -> Tensor:
        """[N, D] -> [N, D], or [R, D] of the rows that ask, without the other queries.

        source_rows: int64 [N]; then x_ND is [M, D], and packed row n is x_ND[source_rows[n]]. A row that stands in
        several sequences is projected once."""
        options: dict[str, Any] = {}
        if self.training and self.dropout:
            # drawn on the device: a seed of the host's would be frozen in a CUDA graph
            options = {"dropout_p": self.dropout, "seed": torch.randint(2**62, (1,), device=x_ND.device)}
        if asking is None and packing.key_rows is None:
            qkv_N3HK = take_rows(self.project_qkv(x_ND), source_rows).unflatten(1, (3, self.num_heads, -1))
            out = varlen_attention_packed(qkv_N3HK, packing.cu_seqlens, packing.max_seqlen, **options)
            return self.proj(out.flatten(1))
        asks = packing if asking is None else asking.packing
        query_weight, key_value_weight = self.qkv.weight.split([x_ND.shape[1], 2 * x_ND.shape[1]])
        bias = None if self.v_bias is None else torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        query_RD = _projected(x_ND, query_weight, self.q_bias, asking and asking.rows, source_rows)
        key_value_ND = _projected(x_ND, key_value_weight, bias, packing.key_rows, source_rows)
        query = query_RD.unflatten(1, (self.num_heads, -1))
        key, value = key_value_ND.unflatten(1, (2, self.num_heads, -1)).unbind(1)
        out = varlen_attention(
            query, key, value, asks.cu_seqlens, asks.max_seqlen, max_seqlen_k=packing.max_seqlen,
            cu_seqlens_k=packing.cu_seqlens if packing.cu_seqlens_k is None else packing.cu_seqlens_k, **options,
        )  # fmt: skip
        return self.proj(out.flatten(1))


def _projected(
    x_ND: Tensor, weight: Tensor, bias: Tensor | None, wanted: Tensor | None, source_rows: Tensor | None
) -> Tensor:
    """The wanted packed rows (None: all), projected: the wanted ones, or each source once where those are fewer."""
    rows = composed(source_rows, wanted)
    if source_rows is None or rows is None or len(rows) <= len(x_ND):
        return linear(take_rows(x_ND, rows), weight, bias)
    return take_rows(linear(x_ND, weight, bias), rows)


class CrossAttention(nn.Module):
    """Multi-head attention of packed queries to the packed memory of the same sequence (arXiv:1706.03762).

    hidden: the width of all heads together; None: that of the queries.
    """

    def __init__(self, width: int, num_heads: int, hidden: int | None = None):
        super().__init__()
        self.num_heads, hidden = num_heads, hidden or width
        self.query = Linear(width, hidden)
        self.key_value = Linear(width, 2 * hidden)
        self.proj = Linear(hidden, width)

    def forward(self, x_ND: Tensor, memory_MD: Tensor, packing: Packing, memory_packing: Packing) -> Tensor:
        """x_ND, memory_MD: [N, D], [M, D] with as many sequences each -> [N, D]."""
        query_NHK = self.query(x_ND).view(len(x_ND), self.num_heads, -1)
        key, value = self.key_value(memory_MD).view(len(memory_MD), 2, self.num_heads, -1).unbind(1)
        out_NHK = varlen_attention(
            query_NHK, key, value, packing.cu_seqlens, packing.max_seqlen,
            cu_seqlens_k=memory_packing.cu_seqlens, max_seqlen_k=memory_packing.max_seqlen,
        )  # fmt: skip
        return self.proj(out_NHK.flatten(1))
