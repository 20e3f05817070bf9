"""AdamW or Adafactor with the usual parameter groups, rates that fall with depth, and the schedules."""

import math
import re

import torch
from torch import nn

from fastvtp.errors import ConfigError
from fastvtp.training.config import OptimizerConfig

_BLOCK = re.compile(r"((?:video_|text_|fusion_)?encoder)\.(?:blocks|layers)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:video|text)_embeddings\.|video_encoder\.(?:weight|bias|cls_token|\w+_positions?)$")


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Return the factor on the learning rate of each parameter by name: decay^(depth + 1 - layer).

    Layer 0 holds the embeddings, layer i + 1 block i of the encoder (of each, where there are two; ALPRO's fusing
    layers go on where those of text end), layer depth + 1 all else: final norms, decoder, heads. Layers go by the names
    that parameters of the whole model have. The released SimVTP looks for "blocks." at the start of names that start
    with "video_encoder." and "text_encoder.", so that its layer_decay of 0.75 gives every parameter the top rate; here
    a decay that finds no block is an error.

    Raises ConfigError where `decay` is not 1 and the model has no encoder blocks.
    """
    names = [name for name, _ in model.named_parameters()]
    found = {name: (match[1], int(match[2])) for name in names if (match := _BLOCK.match(name))}
    read_alone = 1 + max((block for tower, block in found.values() if tower == "text_encoder"), default=-1)
    blocks = {name: block + read_alone * (tower == "fusion_encoder") for name, (tower, block) in found.items()}
    if decay != 1 and not blocks:
        raise ConfigError(f"layer_decay {decay}: {type(model).__name__} has no encoder blocks whose rates could differ")
    depth = max(blocks.values(), default=-1) + 1

    def layer(name: str) -> int:
        if name in blocks:
            return blocks[name] + 1
        return 0 if _EMBEDDING.match(name) else depth + 1

    return {name: decay ** (depth + 1 - layer(name)) for name in names}


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the configured optimizer of what `model` trains; vectors and scalars (biases, norms, mask token,
    temperature) are not decayed.

    A group's "scale" is its factor on the rate, see `layer_scales`.
    """
    scales = layer_scales(model, config.layer_decay)
    parameters: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameters.setdefault((parameter.ndim > 1, scales[name]), []).append(parameter)
    groups = [
        {"params": parameters[key], "weight_decay": config.weight_decay if key[0] else 0.0, "scale": key[1]}
        for key in sorted(parameters, reverse=True)
    ]
    if config.algorithm == "adafactor":
        return torch.optim.Adafactor(groups, lr=config.learning_rate)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def learning_rate_at(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Return the rate of step 0 <= step < total_steps by the schedule that `config` names."""
    if config.schedule == "linear":
        return linear_rate(step + 1, total_steps, config)
    return _cosine_rate(step, total_steps, config)


def linear_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Return the rate of step 0 to total_steps, counted from 1 in training: linear from 0 to the peak, then to 0, but
    at least `final_learning_rate`. ALPRO's `get_lr_sched`."""
    warmup = _warmup_steps(total_steps, config)
    share = step / warmup if step < warmup else (total_steps - step) / max(total_steps - warmup, 1)
    return max(config.learning_rate * share, config.final_learning_rate)


def _cosine_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Return the rate that is linear from 0 to the peak (both ends included), then half a cosine.

    The same sequence as VideoMAE's and SimVTP's `cosine_scheduler`.
    """
    warmup = _warmup_steps(total_steps, config)
    if step < warmup:
        return config.learning_rate * (step / (warmup - 1) if warmup > 1 else 0.0)
    progress = (step - warmup) / (total_steps - warmup)
    amplitude = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + 0.5 * amplitude * (1 + math.cos(math.pi * progress))


def _warmup_steps(total_steps: int, config: OptimizerConfig) -> int:
    if config.warmup_share is not None:
        return int(config.warmup_share * total_steps)
    return min(config.warmup_steps, total_steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
