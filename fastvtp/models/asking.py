"""Self-attention of which only some rows' results are wanted: the other rows are looked at, and do not ask.

Shape legend: N = packed rows, R = rows that ask, D = width, H = heads, K = head dim.
A last layer need not compute what no loss reads: its queries, its projection and its MLP are those of R rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastvtp.models.layers import Attention, Packing, take_rows
from fastvtp_kernels import varlen_attention


@dataclass(frozen=True)
class Asking:
    """rows: int64 [R], sequence after sequence. packing: how these rows divide into the same sequences; a sequence may
    have none."""

    rows: Tensor
    packing: Packing

    @staticmethod
    def first(packing: Packing) -> "Asking":
        """The first row of every sequence of `packing`."""
        starts = packing.cu_seqlens[:-1].long()
        return Asking(starts, Packing.uniform(len(starts), 1, starts.device))


def attend_from(attention: Attention, x_ND: Tensor, packing: Packing, asking: Asking) -> Tensor:
    """`attention(x_ND, packing)[asking.rows]` without the other queries: [N, D] -> [R, D]."""
    width = x_ND.shape[1]
    query_weight, key_value_weight = attention.qkv.weight.split([width, 2 * width])
    bias = None if attention.v_bias is None else torch.cat([torch.zeros_like(attention.v_bias), attention.v_bias])
    query = linear(take_rows(x_ND, asking.rows), query_weight, attention.q_bias)
    key, value = linear(x_ND, key_value_weight, bias).unflatten(1, (2, attention.num_heads, -1)).unbind(1)
    out_RHK = varlen_attention(
        query.unflatten(1, (attention.num_heads, -1)), key, value, asking.packing.cu_seqlens, asking.packing.max_seqlen,
        cu_seqlens_k=packing.cu_seqlens, max_seqlen_k=packing.max_seqlen, **attention.draw_dropout(x_ND.device),
    )  # fmt: skip
    return attention.proj(out_RHK.flatten(1))
