"""Heads that are trained on the tokens of a frozen video tower.

Shape legend: B = clips, K = layers whose tokens are read, L = tokens of a clip, D = width, C = outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from fastvtp.modules.checks import (
    check_choice,
    check_positive,
    check_share,
)
from fastvtp.modules.layers import CrossBlock, init_linear_xavier
from fastvtp.modules.packing import Packing
from fastvtp.modules.pooler import AttentionPooler


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """A probe's sizes; the defaults are VideoGLUE's (arXiv:2307.03166)."""

    width: int
    """Width of the tokens."""
    num_outputs: int
    kind: str = "attentive"
    """"attentive", "linear" or "mlap"; see the classes."""
    num_layers: int = 1
    """Layers whose tokens come in; "attentive" and "linear" read the last alone."""
    num_heads: int = 12
    head_dim: int = 64
    """Width of each head, whatever the width of the tokens."""
    dropout: float = 0.5
    """Before the linear layer."""

    def __post_init__(self) -> None:
        check_positive(self, "width", "num_outputs", "num_layers", "num_heads", "head_dim")
        check_share(self, "dropout")
        check_choice(self, "kind", tuple(PROBES))


class Probe(nn.Module):
    """Reduces the tokens of a clip to one vector, by `pool`, and that to logits by dropout and a linear layer.

    config: a `ProbeConfig`. Weights are drawn by `init_weights`, not by the constructor.
    """

    def __init__(self, config: ProbeConfig):
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, config.num_outputs)

    def init_weights(self) -> None:
        """Draw Xavier-uniform matrices, zero biases and normal tokens; uses torch's global generator."""
        self.apply(init_linear_xavier)

    def pool(self, features_BKLD: Tensor) -> Tensor:
        """Reduce the tokens of clips, [B, K, L, D], to a vector each, [B, D]."""
        raise NotImplementedError

    def forward(self, features_BKLD: Tensor) -> Tensor:
        """Compute the logits [B, C] of tokens [B, K, L, D], of any floating dtype.

        Raises ValueError for another K or D.
        """
        expected = (self.config.num_layers, self.config.width)
        if features_BKLD.ndim != 4 or (features_BKLD.shape[1], features_BKLD.shape[3]) != expected:
            raise ValueError(f"features must be [B, {expected[0]}, L, {expected[1]}], got {list(features_BKLD.shape)}")
        return self.head(self.dropout(self.pool(features_BKLD.to(self.head.weight.dtype))))


class LinearProbe(Probe):
    """Takes the mean of the last layer's tokens."""

    def pool(self, features_BKLD: Tensor) -> Tensor:
        return features_BKLD[:, -1].mean(dim=1)


class AttentiveProbe(Probe):
    """LayerNorm, then one learned token that attends to all tokens of the last layer: VideoGLUE's attention pooling,
    VideoPrism's "MAP" (arXiv:2402.13217, appendix E.1)."""

    def __init__(self, config: ProbeConfig):
        super().__init__(config)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.pooler = AttentionPooler(config.width, config.num_heads, config.num_heads * config.head_dim, plain=True)

    def init_weights(self) -> None:
        super().init_weights()
        self.pooler.init_weights()

    def pool(self, features_BKLD: Tensor) -> Tensor:
        return self.pooler(self.norm(features_BKLD[:, -1]))[:, 0]


class MultiLayerAttentiveProbe(Probe):
    """A learned token that looks at one layer after the other, through a pre-norm block for each: VideoGLUE's "MLAP".

    VideoPrism uses four cross-attention layers; which layers of the tower they read is not published.
    """

    def __init__(self, config: ProbeConfig):
        super().__init__(config)
        hidden = config.num_heads * config.head_dim
        self.token = nn.Parameter(torch.empty(1, config.width))
        self.norms = nn.ModuleList(nn.LayerNorm(config.width, eps=1e-6) for _ in range(config.num_layers))
        self.blocks = nn.ModuleList(
            CrossBlock(config.width, config.num_heads, hidden=hidden) for _ in range(config.num_layers)
        )
        self.last_norm = nn.LayerNorm(config.width, eps=1e-6)

    def init_weights(self) -> None:
        super().init_weights()
        nn.init.normal_(self.token, std=0.02)

    def pool(self, features_BKLD: Tensor) -> Tensor:
        clips, _, length, _ = features_BKLD.shape
        one, all_tokens = (Packing.uniform(clips, size, features_BKLD.device) for size in (1, length))
        token_BD = self.token.expand(clips, -1)
        for norm, block, memory_BLD in zip(self.norms, self.blocks, features_BKLD.unbind(1), strict=True):
            token_BD = block(token_BD, norm(memory_BLD).flatten(0, 1), one, all_tokens)
        return self.last_norm(token_BD)


PROBES: dict[str, type[Probe]] = {
    "attentive": AttentiveProbe,
    "linear": LinearProbe,
    "mlap": MultiLayerAttentiveProbe,
}


def build_probe(config: ProbeConfig) -> Probe:
    """Make a freshly initialised probe, from torch's global generator."""
    probe = PROBES[config.kind](config)
    probe.init_weights()
    return probe


def probe_loss(*, multi_label: bool, label_smoothing: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    """Make the loss of logits [B, C] against targets [B, C] of zeros and ones, a mean, [].

    One class a clip: cross-entropy, `label_smoothing` of the target being spread over all classes (arXiv:1512.00567).
    multi_label: a sigmoid for each class, whose targets move `label_smoothing` of the way to a half.
    """

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        # in float32: the loss of a bfloat16 logit is off by more than a step changes it
        logits, targets = logits.float(), targets.float()
        if multi_label:
            return binary_cross_entropy_with_logits(logits, targets * (1 - label_smoothing) + label_smoothing / 2)
        return cross_entropy(logits, targets, label_smoothing=label_smoothing)

    return loss
