"""Video-text matching (VTM): does this text belong to this video?"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fastvtp.errors import UserError

_STREAM = 0x56544D  # keeps these numbers apart from the loader's, which are keyed by (seed, epoch, index)


def random_mismatch(sample_ids: np.ndarray, *, seed: int, step: int) -> np.ndarray:
    """For each sample another one of the batch, uniformly: int64 [B], sample_ids[result[i]] != sample_ids[i] (SimVTP).

    sample_ids: int64 [B], equal where the same clip stands in the batch twice. Made on the host from (seed, step), so
    that the packing that depends on it costs no device read. Raises UserError where a sample has no other beside it.
    """
    different = sample_ids[:, None] != sample_ids[None, :]
    choices = different.sum(axis=1)
    if len(choices) == 0 or choices.min() == 0:
        raise UserError(f"matching needs at least 2 different clips in a batch, got ids {sample_ids.tolist()}")
    rng = np.random.default_rng((seed, step, _STREAM))
    chosen = (rng.random(len(choices)) * choices).astype(np.int64)  # the how-many-eth of them
    return (different.cumsum(axis=1) > chosen[:, None]).argmax(axis=1)


def matching_loss(matched_logits: Tensor, mismatched_logits: Tensor) -> Tensor:
    """Cross-entropy of two-way logits [B, 2] each; class 1 means matched. Mean over all 2B pairs."""
    logits = torch.cat([matched_logits, mismatched_logits]).float()
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(matched_logits)] = 1
    return cross_entropy(logits, labels)


def matching_accuracy(matched_logits: Tensor, mismatched_logits: Tensor) -> Tensor:
    """Share of the 2B pairs judged rightly, float32 []."""
    right = torch.cat([matched_logits.argmax(-1) == 1, mismatched_logits.argmax(-1) == 0])
    return right.float().mean()
