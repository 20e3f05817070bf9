"""Video-text matching (VTM): does this text belong to this video?"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def random_mismatch(batch_size: int, *, seed: int, step: int) -> np.ndarray:
    """For each sample another one of the batch, uniformly: int64 [B] with result[i] != i (SimVTP).

    Made on the host from (seed, step) alone, so that the packing that depends on it costs no device read.
    """
    if batch_size < 2:
        raise ValueError(f"matching needs another video in the batch: batch_size must be at least 2, got {batch_size}")
    rng = np.random.default_rng(
        (seed, step, 0x56544D)
    )  # a stream of its own, apart from the loader's (seed, epoch, index)
    return (np.arange(batch_size) + rng.integers(1, batch_size, batch_size)) % batch_size


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
