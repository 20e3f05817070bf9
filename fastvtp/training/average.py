"""The average of the weights over the steps, held as they are held: whole, or in shards."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from fastvtp.errors import CheckpointError


class WeightAverage:
    """The exponential moving average of the weights that are trained.

    Each process averages what it holds of them, without asking another one, so that shards have an average as whole
    weights do. On whole weights the numbers are those of `torch.optim.swa_utils.AveragedModel` with
    `get_ema_multi_avg_fn(decay)`, bit for bit: the first update takes the weights as they are, each later one moves
    the average by 1 - decay of the way to them. Buffers and frozen weights have no average: they are the model's own.

    Attributes:
        decay: of an update.
        updates: how many there were.
        tensors: the average by the names that the model has for its parameters, each of the parameter's kind.
    """

    def __init__(self, model: nn.Module, decay: float):
        """Average `model`, which is on its device, and in shards if it is to be."""
        self.decay, self.updates = decay, 0
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.tensors = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in; due after each step of the optimizer."""
        if self.updates == 0:
            _copy(self.tensors.values(), self._weights.values())
        else:
            average, weights = _own_parts(self.tensors.values()), _own_parts(self._weights.values())
            torch._foreach_lerp_(average, weights, 1 - self.decay)  # pyright: ignore[reportPrivateImportUsage]
        self.updates += 1

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Give the model the average in place of its weights, which are lost."""
        _copy(self._weights.values(), self.tensors.values())


def check_average(average: WeightAverage | None, held: bool, checkpoint: Path) -> None:
    """Raise CheckpointError where a run averages its weights and a checkpoint holds no average, or the other way."""
    if held != (average is not None):
        holds, wants = ("an", "none") if held else ("no", "one")
        raise CheckpointError(
            f"{checkpoint} has {holds} average of the weights, the run expects {wants}: see ema_decay"
        )


def _copy(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    torch._foreach_copy_(_own_parts(targets), _own_parts(sources))  # pyright: ignore[reportPrivateImportUsage]


def _own_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return what this process holds of each tensor: of a DTensor its shard, else the tensor. Their memory is
    shared."""
    from torch.distributed.tensor import DTensor  # here, as it takes long to import

    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach() for tensor in tensors]
