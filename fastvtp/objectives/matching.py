"""Video-text matching (VTM): does this text belong to this video?"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

_STREAM = 0x56544D  # keeps these numbers apart from the loader's, which are keyed by (seed, epoch, index)


def random_mismatch(sample_ids: np.ndarray, *, seed: int, step: int) -> np.ndarray:
    """For each sample another clip of the batch, uniformly: int64 [B], sample_ids[result[i]] != sample_ids[i] (SimVTP).

    sample_ids: int64 [B], equal where the same clip stands in the batch twice. A sample with no other clip beside it
    gets itself; `matching_loss` leaves it out. Made on the host from (seed, step), so that the packing that depends on
    it costs no device read.
    """
    different = sample_ids[:, None] != sample_ids[None, :]
    choices = different.sum(axis=1)
    rng = np.random.default_rng((seed, step, _STREAM))
    chosen = (rng.random(len(choices)) * choices).astype(np.int64)  # the how-many-eth of them
    mismatch = (different.cumsum(axis=1) > chosen[:, None]).argmax(axis=1)
    return np.where(choices > 0, mismatch, np.arange(len(choices)))


def matching_labels(is_mismatch: Tensor) -> Tensor:
    """Labels of B matched and B mismatched pairs, int64 [2B]: 1, then 0 or, where `is_mismatch` [B] is False, -100."""
    mismatched = torch.where(is_mismatch, 0, -100)
    return torch.cat([torch.ones_like(mismatched), mismatched])


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of two-way logits [2B, 2] over the pairs whose label, int64 [2B], is not -100."""
    return cross_entropy(logits.float(), labels, ignore_index=-100)


def matching_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the labelled pairs that are judged rightly, float32 []."""
    return (logits.argmax(-1) == labels).sum() / (labels != -100).sum()
