"""Transformer blocks on packed tokens.

Shape legend: N = packed tokens of all sequences, S = sequences, D = width, H = heads, K = head dim.
Every module takes `x_ND` with a `Packing` and knows nothing of batches or padding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastvtp_kernels import varlen_attention, varlen_attention_packed
from fastvtp_kernels.packing import locate_rows


@dataclass(frozen=True)
class Packing:
    """How packed rows divide into sequences.

    cu_seqlens: int32 [S+1], sequence s holds rows cu_seqlens[s] to cu_seqlens[s+1].
    max_seqlen: a bound on the longest sequence, a Python int so that no device value is ever read back.
    key_rows: int64 [Nk], the rows that others may attend to; None: all. The rest (padding, where a released model
        counts it in its means) only asks.
    cu_seqlens_k: int32 [S+1] of `key_rows`; given with them.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    key_rows: Tensor | None = None
    cu_seqlens_k: Tensor | None = None

    @staticmethod
    def uniform(num_sequences: int, length: int, device: torch.device | str | None = None) -> "Packing":
        """`num_sequences` sequences of `length` rows each."""
        return Packing(torch.arange(num_sequences + 1, dtype=torch.int32, device=device) * length, length)


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
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.proj = nn.Linear(width, width)

    def project_qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side: [..., D] -> [..., 3D]."""
        bias = None
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        return nn.functional.linear(x, self.qkv.weight, bias)

    def draw_dropout(self, device: torch.device) -> dict[str, Any]:
        """What an attention op is told of the dropout of its weights; nothing where there is none."""
        if not (self.training and self.dropout):
            return {}
        # drawn on the device: a seed of the host's would be frozen in a CUDA graph
        return {"dropout_p": self.dropout, "seed": torch.randint(2**62, (1,), device=device)}

    def forward(self, x_ND: Tensor, packing: Packing) -> Tensor:
        qkv = self.project_qkv(x_ND)
        qkv_N3HK = qkv.view(x_ND.shape[0], 3, self.num_heads, -1)
        options = self.draw_dropout(x_ND.device)
        if packing.key_rows is None:
            out_NHK = varlen_attention_packed(qkv_N3HK, packing.cu_seqlens, packing.max_seqlen, **options)
        else:
            key_value = take_rows(qkv[:, x_ND.shape[1] :], packing.key_rows)
            key, value = key_value.view(len(key_value), 2, self.num_heads, -1).unbind(1)
            out_NHK = varlen_attention(
                qkv_N3HK[:, 0], key, value, packing.cu_seqlens, packing.max_seqlen,
                cu_seqlens_k=packing.cu_seqlens_k, max_seqlen_k=packing.max_seqlen, **options,
            )  # fmt: skip
        return self.proj(out_NHK.reshape(x_ND.shape))


class CrossAttention(nn.Module):
    """Multi-head attention of packed queries to the packed memory of the same sequence (arXiv:1706.03762).

    hidden: the width of all heads together; None: that of the queries.
    """

    def __init__(self, width: int, num_heads: int, hidden: int | None = None):
        super().__init__()
        self.num_heads, hidden = num_heads, hidden or width
        self.query = nn.Linear(width, hidden)
        self.key_value = nn.Linear(width, 2 * hidden)
        self.proj = nn.Linear(hidden, width)

    def forward(self, x_ND: Tensor, memory_MD: Tensor, packing: Packing, memory_packing: Packing) -> Tensor:
        """x_ND, memory_MD: [N, D], [M, D] with as many sequences each -> [N, D]."""
        query_NHK = self.query(x_ND).view(len(x_ND), self.num_heads, -1)
        key, value = self.key_value(memory_MD).view(len(memory_MD), 2, self.num_heads, -1).unbind(1)
        out_NHK = varlen_attention(
            query_NHK, key, value, packing.cu_seqlens, packing.max_seqlen,
            cu_seqlens_k=memory_packing.cu_seqlens, max_seqlen_k=memory_packing.max_seqlen,
        )  # fmt: skip
        return self.proj(out_NHK.flatten(1))


class Mlp(nn.Module):
    """Linear, activation (exact GELU by default), linear."""

    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor] = nn.functional.gelu):
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x_ND)))


class Residual(nn.Module):
    """What a branch adds to the residual stream: scaled by a learned vector, left out for whole sequences at random.

    layer_scale: initial value of the vector (CaiT, arXiv:2103.17239); 0: none. drop_path: probability that a sequence
    skips the branch in training, the others being scaled up (stochastic depth, arXiv:1603.09382).
    """

    def __init__(self, width: int, layer_scale: float = 0.0, drop_path: float = 0.0):
        super().__init__()
        self.drop_path, self.initial = drop_path, layer_scale
        self.gamma = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale else None

    def forward(self, branch_ND: Tensor, packing: Packing) -> Tensor:
        if self.gamma is not None:
            branch_ND = branch_ND * self.gamma
        if self.training and self.drop_path:
            kept = torch.rand(len(packing.cu_seqlens) - 1, 1, device=branch_ND.device) >= self.drop_path
            sequence, _ = locate_rows(packing.cu_seqlens, len(branch_ND))
            branch_ND = branch_ND * take_rows(kept.to(branch_ND.dtype) / (1 - self.drop_path), sequence)
        return branch_ND


class Block(nn.Module):
    """Pre-norm transformer block (ViT, arXiv:2010.11929)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        qkv_bias: bool = True,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads, qkv_bias)
        self.residual1 = Residual(width, layer_scale, drop_path)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.residual2 = Residual(width, layer_scale, drop_path)

    def forward(self, x_ND: Tensor, packing: Packing) -> Tensor:
        x_ND = x_ND + self.residual1(self.attn(self.norm1(x_ND), packing), packing)
        return x_ND + self.residual2(self.mlp(self.norm2(x_ND)), packing)


class CrossBlock(nn.Module):
    """Pre-norm block whose tokens look at a memory and not at one another (CrossMAE, arXiv:2401.14391, section 3.2)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float = 4.0, hidden: int | None = None):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = CrossAttention(width, num_heads, hidden)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x_ND: Tensor, memory_MD: Tensor, packing: Packing, memory_packing: Packing) -> Tensor:
        x_ND = x_ND + self.attn(self.norm1(x_ND), memory_MD, packing, memory_packing)
        return x_ND + self.mlp(self.norm2(x_ND))


class Transformer(nn.Module):
    """`depth` blocks and, unless `final_norm` is False, a LayerNorm on packed tokens.

    drop_path: of the last block; that of the others rises linearly from 0 (as in VideoMAE).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        qkv_bias: bool = True,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
        final_norm: bool = True,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(
                width, num_heads, mlp_ratio,
                qkv_bias=qkv_bias, layer_scale=layer_scale, drop_path=drop_path * i / max(depth - 1, 1),
            )
            for i in range(depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width, eps=1e-6) if final_norm else nn.Identity()

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


def set_norm_eps(module: nn.Module, eps: float) -> None:
    """Compute every LayerNorm inside `module` with `eps`."""
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = eps


def take_rows(x_ND: Tensor, rows: Tensor) -> Tensor:
    """`x_ND[rows]` with a deterministic backward: [N, D], int64 [M] -> [M, D]; a row may be taken several times.

    Indexing adds such a row's gradients up in whatever order threads reach it; an embedding look-up sorts them first.
    """
    if torch.compiler.is_compiling():
        return _TakeRows.apply(x_ND, rows)  # pyright: ignore[reportReturnType]
    return nn.functional.embedding(rows, x_ND)


@torch.library.custom_op("fastvtp::sum_rows", mutates_args=())
def _sum_rows(gradient: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """The gradient of `take_rows`, as one op: Inductor would take the look-up's own apart into atomic additions."""
    return torch.ops.aten.embedding_dense_backward(gradient, rows, num_rows, -1, False)


@_sum_rows.register_fake
def _(gradient: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    return gradient.new_empty(num_rows, gradient.shape[1])


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.num_rows = x_ND.shape[0]
        return x_ND.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _sum_rows(gradients[0].contiguous(), ctx.saved_tensors[0], ctx.num_rows), None


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
    elif isinstance(module, Attention) and module.q_bias is not None and module.v_bias is not None:
        nn.init.zeros_(module.q_bias)
        nn.init.zeros_(module.v_bias)
    elif isinstance(module, Residual) and module.gamma is not None:
        nn.init.constant_(module.gamma, module.initial)


def init_linear_normal(module: nn.Module) -> None:
    """The initialisation of ViT and BERT, for `nn.Module.apply`: normal matrices of deviation 0.02, zero biases.

    Below 768 inputs, where 0.02 would leave next to nothing of a signal behind two layers, the deviation grows so that
    outputs are as large as there: a contrast of narrow towers otherwise stays at chance.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02 * max(1.0, 768 / module.in_features) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        init_linear_xavier(module)  # norms, attention biases, layer scale: the same
