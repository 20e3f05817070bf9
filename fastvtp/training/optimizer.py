"""AdamW with the usual parameter groups, and the warm-up + cosine schedule."""

import math

import torch
from torch import nn

from fastvtp.training.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; vectors and scalars (biases, norms, mask token, temperature) are not decayed."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def learning_rate_at(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Rate of step 0 <= step < total_steps: linear from 0 to the peak (both ends included), then half a cosine.

    The same sequence as VideoMAE's and SimVTP's `cosine_scheduler`.
    """
    warmup = min(config.warmup_steps, total_steps)
    if step < warmup:
        return config.learning_rate * (step / (warmup - 1) if warmup > 1 else 0.0)
    progress = (step - warmup) / (total_steps - warmup)
    amplitude = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + 0.5 * amplitude * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
