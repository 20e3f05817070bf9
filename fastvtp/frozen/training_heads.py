"""Training of a small head on what a frozen model gives."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from tqdm import tqdm

from fastvtp.errors import UserError

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """How a head is trained. The defaults are VideoGLUE's (arXiv:2307.03166) but for the length, which there is 50 to
    150 epochs, and the batch, which there is of 256 clips. Raises UserError for a value out of range."""

    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 1e-4
    """Peak; from there half a cosine down to 0."""
    warmup_steps: int = 50
    weight_decay: float = 1e-5
    """Weight decay of matrices; vectors (biases and LayerNorms) have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    label_smoothing: float = 0.1
    precision: str = "float32"
    """"float32" or "bfloat16" (autocast)."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas must be in [0, 1), got {self.betas}")
        if self.precision not in ("float32", "bfloat16"):
            raise UserError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")


def head_config(config_class: type[Config], **values: Any) -> Config:
    """Build a head's configuration of settings that the user gave: `config_class(**values)`.

    Raises UserError where it does not take one of them.
    """
    try:
        return config_class(**values)
    except ValueError as error:
        raise UserError(str(error)) from None


def train_head(
    head: nn.Module,
    batches: Iterable[Any],
    loss_of: Callable[[Any], Tensor],
    training: HeadTraining,
    *,
    device: torch.device | str,
    progress: bool = True,
    description: str = "probe",
) -> float:
    """Train the parameters of `head` on the first `training.steps` of `batches`; it is in evaluation mode afterwards.

    loss_of: gives the loss [] of a batch, with its graph. description: says on the progress bar what is trained.
    Returns the mean loss of the last tenth of the steps.

    Raises FloatingPointError for a loss that is not finite, and UserError where there are fewer batches.
    """
    head.train()
    optimizer, schedule = _optimizer(head, training)
    losses: list[Tensor] = []
    with tqdm(total=training.steps, desc=description, unit="step", disable=not progress) as bar:
        for batch in batches:
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=training.precision == "bfloat16"):
                loss = loss_of(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            losses.append(loss.detach())
            bar.update()
            if len(losses) % 50 == 0:
                bar.set_postfix_str(f"loss {_finite(losses[-50:], len(losses)):.3f}", refresh=False)
            if len(losses) == training.steps:
                break
    if len(losses) < training.steps:
        raise UserError(f"{description}: expected {training.steps} batches, got {len(losses)}")
    head.eval()
    return _finite(losses[-max(training.steps // 10, 1) :], training.steps)


def _optimizer(head: nn.Module, training: HeadTraining) -> tuple[torch.optim.AdamW, Any]:
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas)
    warmup = min(training.warmup_steps, training.steps - 1)
    cosine = CosineAnnealingLR(optimizer, T_max=training.steps - warmup)
    if not warmup:
        return optimizer, cosine
    rising = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return optimizer, SequentialLR(optimizer, [rising, cosine], milestones=[warmup])


def _finite(losses: list[Tensor], step: int) -> float:
    mean = torch.stack(losses).mean().item()
    if not math.isfinite(mean):
        raise FloatingPointError(f"the loss is {mean} at step {step}: lower learning_rate, or look for a NaN")
    return mean
