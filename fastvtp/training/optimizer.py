"""AdamW or Adafactor with the usual parameter groups, rates that fall with depth, and the schedules."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from fastvtp.errors import ConfigError
from fastvtp.modules.stacks import Stack
from fastvtp.training.config import OptimizerConfig


@runtime_checkable
class Stacked(Protocol):
    """A model that tells how deep its parameters stand."""

    def stacks(self) -> Sequence[Stack]:
        """Return its towers, each from the embeddings up."""
        ...


logger = logging.getLogger(__name__)

_LARGEST_BETA2 = 0.999  # of Adafactor, as Google's ViTs have it (arXiv:2106.04560)


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Return the factor on the learning rate of each parameter by name.

    1 for all that stands above the blocks of the model's `stacks`: final norms, poolers, decoders, heads. In each stack
    decay for the last block, and one more factor of decay for each block below it, down to decay^(blocks + 1) for the
    embeddings; stacks of another depth each count from their own top. What several stacks name has the least of their
    factors.

    The released SimVTP looks for "blocks." at the start of names that start with "video_encoder." and "text_encoder.",
    so that its layer_decay of 0.75 gives every parameter the top rate; here a decay that finds no block is an error.

    Raises ConfigError where `decay` is not 1 and the model tells of no blocks, and ValueError where its stacks name
    what it does not have.
    """
    names = [name for name, _ in model.named_parameters()]
    scales = dict.fromkeys(names, 1.0)
    stacks = model.stacks() if isinstance(model, Stacked) else []
    if decay != 1 and not any(stack.layers for stack in stacks):
        raise ConfigError(
            f"layer_decay {decay}: {type(model).__name__} has no encoder blocks that its method stacks() tells of"
        )
    for stack in stacks:
        for below, paths in enumerate((*reversed(stack.layers), stack.embeddings), start=1):
            for path in paths:
                inside = [name for name in names if name == path or name.startswith(f"{path}.")]
                if not inside:
                    raise ValueError(f"the stacks of {type(model).__name__} name {path}, which has no parameters")
                scales |= {name: min(scales[name], decay**below) for name in inside}
    return scales


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
        return _adafactor(groups, config)
    if config.momentum is not None or not config.scale_by_parameter:
        logger.warning("optimizer.momentum and optimizer.scale_by_parameter are Adafactor's: AdamW leaves them aside")
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def _adafactor(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    if config.scale_by_parameter and config.momentum is None:
        return torch.optim.Adafactor(groups, lr=config.learning_rate)
    try:
        from pytorch_optimizer import AdaFactor  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "optimizer.momentum and optimizer.scale_by_parameter=false of Adafactor need pytorch_optimizer: "
            "pip install 'fastvtp[train]'"
        ) from None
    betas: Any = (config.momentum, _LARGEST_BETA2)  # None: no first moment
    return AdaFactor(
        groups,
        lr=config.learning_rate,
        betas=betas,
        scale_parameter=config.scale_by_parameter,
        relative_step=False,
        momentum_dtype=torch.float32,
    )


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
