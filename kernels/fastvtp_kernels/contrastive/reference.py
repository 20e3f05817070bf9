"""Contrastive losses and hard negatives in plain PyTorch: the specification.

These hold the B x B logits in memory, which a fused kernel need not.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import philox
from ..precision import compute_dtype


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b.T [B, B], in float32 (float64 for float64)."""
    dtype = compute_dtype(a.dtype)
    return a.to(dtype) @ b.to(dtype).T


def contrastive_loss(
    a: Tensor, b: Tensor, logit_scale: Tensor | float, positives: Tensor | None, label_smoothing: float
) -> Tensor:
    """Compute the symmetric InfoNCE [] of features [B, D]: the mean of the cross-entropies of rows and of columns.

    Rows with equal `positives` int [B] share the target evenly; None: row i belongs to row i alone.
    """
    logits = logit_scale * similarity(a, b)
    if positives is None:
        target = torch.arange(len(a), device=a.device)
    else:
        target = (positives[:, None] == positives).to(logits.dtype)
        target = target / target.sum(dim=1, keepdim=True)
    return (
        F.cross_entropy(logits, target, label_smoothing=label_smoothing)
        + F.cross_entropy(logits.T, target, label_smoothing=label_smoothing)
    ) / 2


def sigmoid_loss(a: Tensor, b: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float) -> Tensor:
    """Compute SigLIP's loss [] of features [B, D]: -sum over all pairs of log sigmoid(±logit) / B, plus for i = j
    alone."""
    logits = logit_scale * similarity(a, b) + logit_bias
    sign = 2 * torch.eye(len(a), dtype=logits.dtype, device=a.device) - 1
    return -F.logsigmoid(sign * logits).sum() / len(a)


def sample_rows(logits: Tensor, excluded: Tensor, uniform: Tensor) -> Tensor:
    """Draw a column for each row, int64 [B], from the softmax of its logits [B, B] without the excluded columns.

    By inverse CDF at `uniform` [B] in [0, 1); -1 where all columns are excluded.
    """
    logits = logits.double().masked_fill(excluded, float("-inf"))
    largest = logits.amax(dim=1, keepdim=True)
    has_candidate = largest > float("-inf")
    weights = torch.exp(logits - largest.masked_fill(~has_candidate, 0))
    cumulative = weights.cumsum(dim=1)
    # right=True takes the first column whose sum exceeds the threshold: never one of weight zero.
    chosen = torch.searchsorted(cumulative, uniform.double()[:, None] * cumulative[:, -1:], right=True)
    return chosen.masked_fill(~has_candidate, -1).squeeze(1)


def hard_negatives(
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor | float,
    draw: Sequence[int],
    on_device: Tensor | None,
    groups: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return b_for_a and a_for_b, int64 [B]: a wrong partner for each row, drawn from the softmax of its logits.

    Rows with equal `groups` int [B] are never drawn for one another; None: no row for itself. `draw` and `on_device`
    are what `philox.for_kernels` returns.
    """
    key, time = philox.from_kernels(draw, on_device)
    logits = logit_scale * similarity(a, b)
    row = torch.arange(len(a), device=a.device)
    identity = row if groups is None else groups
    excluded = identity[:, None] == identity
    words = philox.random_words(philox.HARD_NEGATIVES, key, (row, time, 0, 0))
    b_for_a = sample_rows(logits, excluded, philox.uniform(words[0], words[2]))
    a_for_b = sample_rows(logits.T.contiguous(), excluded, philox.uniform(words[1], words[3]))
    return b_for_a, a_for_b
