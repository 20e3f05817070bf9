"""Transformer blocks on packed tokens.

Shape legend: N = packed tokens of all sequences, M = those of a memory or of a source, R = query rows, D = width.
Every module takes packed rows with a `Rows`, or with a `Packing` where it picks none, and knows nothing of batches or
padding.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastvtp.modules.attention import Attention, CrossAttention
from fastvtp.modules.packing import Packing
from fastvtp.modules.rows import Rows, take_rows
from fastvtp_kernels.packing import locate_rows


class Mlp(nn.Module):
    """A linear layer to `hidden` values, an activation (exact GELU by default), and a linear layer back."""

    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor] = nn.functional.gelu):
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Transform each row by itself: [..., D] -> [..., D]."""
        return self.fc2(self.activation(self.fc1(x_ND)))


class Residual(nn.Module):
    """Makes of a branch's result what is added to the residual stream: it is scaled by a learned vector, and left out
    for whole sequences at random.

    layer_scale: the initial value of the vector (CaiT, arXiv:2103.17239); 0: there is none. drop_path: the probability
    that a sequence skips the branch in training, the others being scaled up (stochastic depth, arXiv:1603.09382).
    """

    def __init__(self, width: int, layer_scale: float = 0.0, drop_path: float = 0.0):
        super().__init__()
        self.drop_path, self.initial = drop_path, layer_scale
        self.gamma = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale else None

    def forward(self, branch_ND: Tensor, packing: Packing) -> Tensor:
        """[N, D] -> [N, D]; `packing` says which rows are skipped together."""
        if self.gamma is not None:
            branch_ND = branch_ND * self.gamma
        if self.training and self.drop_path:
            sequences = packing.cu_seqlens.shape[0] - 1
            kept = torch.rand(sequences, 1, device=branch_ND.device) >= self.drop_path
            # rows behind the last sequence, which nobody reads, do as it does
            sequence = locate_rows(packing.cu_seqlens, len(branch_ND))[0].clamp(max=sequences - 1)
            branch_ND = branch_ND * (kept.to(branch_ND.dtype) / (1 - self.drop_path)).index_select(0, sequence)
        return branch_ND


class Block(nn.Module):
    """Pre-norm transformer block (ViT, arXiv:2010.11929). layer_scale, drop_path: see `Residual`."""

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

    def forward(self, x_MD: Tensor, rows: Rows | Packing) -> Tensor:
        """[M, D] -> [R, D], both [N, D] where `rows` picks nothing."""
        rows = Rows.of(rows)
        x_RD = self.residual1(self.attn(self.norm1(x_MD), rows), rows.results) + rows.residual(x_MD)
        return x_RD + self.residual2(self.mlp(self.norm2(x_RD)), rows.results)


class CrossBlock(nn.Module):
    """Pre-norm block whose tokens look at a memory and not at one another (CrossMAE, arXiv:2401.14391, section 3.2).

    hidden: the width of all heads together; None: `width`.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float = 4.0, hidden: int | None = None):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = CrossAttention(width, num_heads, hidden)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x_ND: Tensor, memory_MD: Tensor, packing: Packing, memory_packing: Packing) -> Tensor:
        """[N, D], looking at a memory [M, D] that is packed into equally many sequences, -> [N, D]."""
        x_ND = x_ND + self.attn(self.norm1(x_ND), memory_MD, packing, memory_packing)
        return x_ND + self.mlp(self.norm2(x_ND))


def run_blocks(blocks: nn.ModuleList, x_MD: Tensor, rows: Rows | Packing) -> Tensor:
    """Run blocks one after another: [M, D] -> [R, D], both [N, D] where `rows` picks nothing.

    The first block reads the sources, the last returns the query rows, and those between have all packed rows. Sources
    are laid out before the first block where they are no fewer than the packed rows: nothing is then computed twice.
    """
    rows = Rows.of(rows)
    if rows.sources is not None and (len(rows.sources) <= len(x_MD) or not blocks):
        x_MD, rows = take_rows(x_MD, rows.sources), replace(rows, sources=None)
    if not blocks:
        return rows.residual(x_MD)
    for number, block in enumerate(blocks, 1):
        first, last = number == 1, number == len(blocks)
        x_MD = block(x_MD, Rows(rows.packing, rows.queries if last else None, rows.sources if first else None))
    return x_MD


class Transformer(nn.Module):
    """`depth` blocks on packed tokens and, unless `final_norm` is False, a LayerNorm behind them.

    drop_path: the probability that a sequence skips a branch of the last block; it rises linearly from 0 at the first
    (as in VideoMAE).
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
            Block(width, num_heads, mlp_ratio, qkv_bias=qkv_bias, layer_scale=layer_scale, drop_path=share)
            for share in rising_drop_path(drop_path, depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6) if final_norm else nn.Identity()

    def forward(self, x_MD: Tensor, rows: Rows | Packing) -> Tensor:
        """[M, D] -> [R, D], both [N, D] where `rows` picks nothing.

        The last block computes no rows but the queries. Until the first attention mixes them, rows with one source are
        alike, and are computed once.
        """
        return self.norm(run_blocks(self.blocks, x_MD, rows))


def rising_drop_path(last: float, depth: int) -> list[float]:
    """Return the probability that a sequence skips a branch, for each of `depth` blocks: linearly from 0 to `last`."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def set_norm_eps(module: nn.Module, eps: float) -> None:
    """Make every LayerNorm inside `module` add `eps` to the variance that it divides by."""
    for norm in module.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = eps


def init_linear_xavier(module: nn.Module) -> None:
    """Initialise a module as VideoMAE does, for `nn.Module.apply`: Xavier-uniform matrices, zero biases, unit norms."""
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
    """Initialise a module as ViT and BERT do, for `nn.Module.apply`: normal matrices of deviation 0.02, zero biases.

    Below 768 inputs, where 0.02 would leave next to nothing of a signal behind two layers, the deviation grows so that
    outputs are as large as there: a contrast of narrow towers otherwise stays at chance.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02 * max(1.0, 768 / module.in_features) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        init_linear_xavier(module)  # norms, attention biases, layer scale: the same
