"""Transformer blocks on packed tokens.

Shape legend: N = packed tokens of all sequences, S = sequences, D = width, H = heads, K = head dim.
Every module takes `x_ND` with a `Packing` and knows nothing of batches or padding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastvtp_kernels import varlen_attention_packed


@dataclass(frozen=True)
class Packing:
    """How packed rows divide into sequences.

    cu_seqlens: int32 [S+1], sequence s holds rows cu_seqlens[s] to cu_seqlens[s+1].
    max_seqlen: a bound on the longest sequence, a Python int so that no device value is ever read back.
    """

    cu_seqlens: Tensor
    max_seqlen: int

    @staticmethod
    def uniform(num_sequences: int, length: int, device: torch.device | str | None = None) -> "Packing":
        """`num_sequences` sequences of `length` rows each."""
        return Packing(torch.arange(num_sequences + 1, dtype=torch.int32, device=device) * length, length)


class Attention(nn.Module):
    """Multi-head self-attention inside each packed sequence.

    The key bias is left out, as in BEiT and VideoMAE: it shifts all logits of a query alike and cancels in the
    softmax.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x_ND: Tensor, packing: Packing) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = nn.functional.linear(x_ND, self.qkv.weight, bias)
        qkv_N3HK = qkv.view(x_ND.shape[0], 3, self.num_heads, -1)
        out_NHK = varlen_attention_packed(qkv_N3HK, packing.cu_seqlens, packing.max_seqlen)
        return self.proj(out_NHK.reshape(x_ND.shape))


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x_ND)))


class Block(nn.Module):
    """Pre-norm transformer block (ViT, arXiv:2010.11929)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x_ND: Tensor, packing: Packing) -> Tensor:
        x_ND = x_ND + self.attn(self.norm1(x_ND), packing)
        return x_ND + self.mlp(self.norm2(x_ND))


class Transformer(nn.Module):
    """`depth` blocks and a final LayerNorm on packed tokens."""

    def __init__(self, width: int, depth: int, num_heads: int, mlp_ratio: float = 4.0):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x_ND: Tensor, packing: Packing) -> Tensor:
        for block in self.blocks:
            x_ND = block(x_ND, packing)
        return self.norm(x_ND)


def sincos_positions(num_positions: int, width: int) -> Tensor:
    """Fixed 1-D sin-cos table over the flat token index -> float32 [num_positions, width].

    angle(p, j) = p / 10000^(2*floor(j/2)/width); sine on even columns, cosine on odd ones (VideoMAE, SimVTP). Computed
    in float64: at p = 1567 the float32 angle is already off by 1e-4.
    """
    exponent = 2 * (torch.arange(width, dtype=torch.float64) // 2) / width
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] / 10000.0**exponent
    table = torch.empty_like(angle)
    table[:, 0::2], table[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
    return table.float()


def take_rows(x_ND: Tensor, rows: Tensor) -> Tensor:
    """`x_ND[rows]` with a deterministic backward: [N, D], int64 [M] -> [M, D]; a row may be taken several times.

    Indexing adds such a row's gradients up in whatever order threads reach it; an embedding look-up sorts them first.
    """
    return nn.functional.embedding(rows, x_ND)


def segment_mean(x_ND: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Mean of the rows of each sequence: [N, D] -> float32 [S, D], zero for an empty sequence."""
    lengths = cu_seqlens.diff().long()
    # unsafe: skips the check of the lengths, which would read them back from the device
    total = torch.segment_reduce(x_ND.float(), "sum", lengths=lengths, axis=0, unsafe=True, initial=0.0)
    return total / lengths.clamp(min=1)[:, None]


def init_linear_xavier(module: nn.Module) -> None:
    """The initialisation of VideoMAE, for `nn.Module.apply`: Xavier-uniform matrices, zero biases, unit norms."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Attention):
        nn.init.zeros_(module.q_bias)
        nn.init.zeros_(module.v_bias)
