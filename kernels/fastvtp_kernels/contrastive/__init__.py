"""Contrastive losses and hard negatives."""

from .op import HardNegatives, contrastive_loss, hard_negatives, sigmoid_loss

__all__ = ["HardNegatives", "contrastive_loss", "hard_negatives", "sigmoid_loss"]
