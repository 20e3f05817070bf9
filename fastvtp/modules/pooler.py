"""Pooling by attention: learned queries that look at all tokens of a clip.

Shape legend: B = clips, L = tokens of a clip, D = width, Q = learned queries, H = heads, K = width of a head.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from fastvtp.modules.precision import wide

_LOG2_E = 1.442695041  # 1 / softplus(0): a scale of zeros scales by one


class AttentionPooler(nn.Module):
    """Multi-head attention pooling: learned queries look at all tokens, without a cap on the logits, and a LayerNorm.

    hidden: the width of all heads together. num_queries: Q, vectors that a clip is pooled to. plain: neither a learned
    scale of each head's dimensions nor the LayerNorm, as other systems than VideoPrism pool.

    The queries do not depend on the input, so that both projections can be moved to the other side of the attention:
    the logits of head h are x (W_k[h]^T q[h]), its output W_v[h] (p x) + b_v. What is computed per token is one product
    with H*Q vectors, and no keys or values of width `hidden` (four times D in the released video-text model) exist.
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
        """Draw the parameters that belong to no layer: queries and scales; uses torch's global generator."""
        nn.init.normal_(self.queries, std=0.02)
        if self.per_dim_scale is not None:
            nn.init.zeros_(self.per_dim_scale)

    def forward(self, x_BLD: Tensor, real: Tensor | None = None) -> Tensor:
        """Pool the tokens of each clip: [B, L, D] -> [B, Q, D]. real: bool [B, L], the tokens to look at; None: all."""
        heads, (num_queries, width) = self.num_heads, self.queries.shape
        query_QHK = scale_query(self.query(self.queries).view(num_queries, heads, -1), self.per_dim_scale)
        key_HKD = self.key.weight.view(heads, -1, width)
        probe = torch.einsum("qhk,hkd->qhd", query_QHK, key_HKD).flatten(0, 1)
        # equal for all tokens, it cancels in the softmax; data parallel training stops at parameters without gradients
        shift = (query_QHK * self.key.bias.view(heads, -1)).sum(dim=-1).view(-1, 1)
        logits = wide(torch.matmul(probe, x_BLD.mT)) + shift  # [B, Q*H, L]
        if real is not None:
            logits = logits.masked_fill(~real[:, None], -math.inf)
        pooled = torch.matmul(logits.softmax(dim=-1).to(x_BLD.dtype), x_BLD)
        value_HKD = self.value.weight.view(heads, -1, width)
        out = torch.einsum("bqhd,hkd->bqhk", pooled.unflatten(1, (num_queries, heads)), value_HKD).flatten(2)
        return self.norm(self.proj(out + self.value.bias))


def scale_query(query: Tensor, per_dim_scale: Tensor | None) -> Tensor:
    """Divide queries by the square root of their width: [..., K] -> [..., K].

    per_dim_scale: [K], a learned scale of each dimension, softplus(x) / softplus(0), of which 0 changes nothing; None:
    without.
    """
    scaled = query / math.sqrt(query.shape[-1])
    return scaled if per_dim_scale is None else scaled * (_LOG2_E * softplus(per_dim_scale))
