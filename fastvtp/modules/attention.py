"""Attention on packed tokens.

Shape legend: N = packed rows, M = rows of the input that they begin as, R = query rows, D = width, H = heads, K = width
of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastvtp.modules.packing import Packing
from fastvtp.modules.rows import Pick, Rows, take_rows
from fastvtp_kernels import varlen_attention, varlen_attention_packed
from fastvtp_kernels.symbolic import holds


class Attention(nn.Module):
    """Multi-head self-attention within each packed sequence.

    qkv_bias: learn biases of queries and values. That of the keys is left out, as in BEiT and VideoMAE: it shifts all
    logits of a query alike and cancels in the softmax. dropout: the probability that an attention weight is dropped in
    training.
    """

    def __init__(self, width: int, num_heads: int, qkv_bias: bool = True, dropout: float = 0.0):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.proj = nn.Linear(width, width)

    def project_qkv(self, x: Tensor) -> Tensor:
        """Project tokens to queries, keys and values side by side: [..., D] -> [..., 3D]."""
        bias = None
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        return linear(x, self.qkv.weight, bias)

    def forward(self, x_MD: Tensor, rows: Rows | Packing) -> Tensor:
        """Attend within each sequence: [M, D] -> [R, D], both [N, D] where `rows` picks nothing."""
        rows = Rows.of(rows)
        packing, results = rows.packing, rows.results
        options: dict[str, Any] = {}
        if self.training and self.dropout:
            # drawn on the device: a seed of the host's would be frozen in a CUDA graph
            options = {"dropout_p": self.dropout, "seed": torch.randint(2**62, (1,), device=x_MD.device)}
        if rows.queries is None and (packing.key_rows is None or packing.key_lengths is not None):
            # Keys and values of padding are projected too: one product and one gradient cost less than two.
            qkv_N3HK = take_rows(self.project_qkv(x_MD), rows.sources).unflatten(1, (3, self.num_heads, -1))
            offsets, longest = packing.cu_seqlens, packing.max_seqlen
            out = varlen_attention_packed(qkv_N3HK, offsets, longest, key_lengths=packing.key_lengths, **options)
            return self.proj(out.flatten(1))
        query_weight, key_value_weight = self.qkv.weight.split([x_MD.shape[1], 2 * x_MD.shape[1]])
        bias = None if self.v_bias is None else torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        query_rows = rows.source_of(None if rows.queries is None else rows.queries.rows)
        query_RD = _project_rows(x_MD, query_rows, query_weight, self.q_bias)
        key_value_ND = _project_rows(x_MD, rows.source_of(packing.key_rows), key_value_weight, bias)
        key, value = key_value_ND.unflatten(1, (2, self.num_heads, -1)).unbind(1)
        out = varlen_attention(
            query_RD.unflatten(1, (self.num_heads, -1)),
            key,
            value,
            results.cu_seqlens,
            results.max_seqlen,
            cu_seqlens_k=packing.cu_seqlens if packing.cu_seqlens_k is None else packing.cu_seqlens_k,
            max_seqlen_k=packing.max_seqlen,
            **options,
        )
        return self.proj(out.flatten(1))


def _project_rows(x_MD: Tensor, rows: Pick | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `x_MD[rows]` times a weight, [M, D] -> [P, O]; where more rows are picked than there are, each is
    multiplied once and picked afterwards. rows: P of them; None: all."""
    if rows is None or holds(len(rows) <= len(x_MD)):
        return linear(take_rows(x_MD, rows), weight, bias)
    return take_rows(linear(x_MD, weight, bias), rows)


class CrossAttention(nn.Module):
    """Multi-head attention of packed queries to the packed memory of the same sequence (arXiv:1706.03762).

    hidden: the width of all heads together; None: `width`, that of queries and memory.
    """

    def __init__(self, width: int, num_heads: int, hidden: int | None = None):
        super().__init__()
        self.num_heads, hidden = num_heads, hidden or width
        self.query = nn.Linear(width, hidden)
        self.key_value = nn.Linear(width, 2 * hidden)
        self.proj = nn.Linear(hidden, width)

    def forward(self, x_ND: Tensor, memory_MD: Tensor, packing: Packing, memory_packing: Packing) -> Tensor:
        """Let each row, [N, D], look at the memory of its sequence, [M, D]: -> [N, D].

        packing, memory_packing: how rows and memory divide into equally many sequences.
        """
        query_NHK = self.query(x_ND).view(len(x_ND), self.num_heads, -1)
        key, value = self.key_value(memory_MD).view(len(memory_MD), 2, self.num_heads, -1).unbind(1)
        out_NHK = varlen_attention(
            query_NHK,
            key,
            value,
            packing.cu_seqlens,
            packing.max_seqlen,
            cu_seqlens_k=memory_packing.cu_seqlens,
            max_seqlen_k=memory_packing.max_seqlen,
        )
        return self.proj(out_NHK.flatten(1))
