"""What a run holds in memory, counted from its configuration: parameters, optimizer state, and a model of activations.

Nothing here allocates: models are built without memory. Bytes are per process.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from fastvtp.architecture import architecture_of
from fastvtp.training.compiling import blocks_of
from fastvtp.training.config import OptimizerConfig

FLOAT32 = 4
ACTIVATIONS_KEPT = (
    "of every linear layer in a block its input, and its output where it widens, in the precision of the run; of every "
    "LayerNorm its input in float32; attention keeps no matrix of logits; embeddings, heads and losses are left out"
)
"""What `activation_bytes` counts, in words."""


class Parts(NamedTuple):
    """How many values of a model are where: `blocks` are those of the members of its lists of modules, which FSDP2
    gathers one by one, `root` all others. Of the blocks, `trained` have gradients."""

    blocks: int
    trained: int
    root: int
    largest_block: int


def parts_of(model: nn.Module) -> Parts:
    """Count the values of blocks and root, see `Parts`."""
    blocks = blocks_of(model)
    inside = {id(parameter): parameter for block in blocks for parameter in block.parameters()}
    total = count(inside.values())
    trained = count(parameter for parameter in inside.values() if parameter.requires_grad)
    largest = max((count(block.parameters()) for block in blocks), default=0)
    return Parts(total, trained, count(model.parameters()) - total, largest)


def cast_bytes(model: nn.Module) -> int:
    """Return the bytes of the bfloat16 copies that autocast makes of the weights of linear layers, which the backward
    pass reads."""
    linear = {id(layer.weight): layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)}
    return 2 * count(linear.values())


def model_without_memory(config: Any) -> nn.Module:
    """Build the model of a configuration on the meta device, where tensors have shapes and no values."""
    with torch.device("meta"):
        return architecture_of(config).model(config)


def local_count(shape: Iterable[int], shards: int = 1) -> int:
    """Return how many values of a parameter the first of `shards` processes holds, which holds most: FSDP2 cuts the
    first dimension into equal chunks, the last of them smaller or empty. One without dimensions is on all of them."""
    first, *others = *shape, 1
    return -(-first // shards) * math.prod(others)


def count(parameters: Iterable[torch.Tensor], shards: int = 1) -> int:
    """Return how many values of the parameters the first of `shards` processes holds."""
    return sum(local_count(parameter.shape, shards) for parameter in parameters)


def optimizer_values(shape: torch.Size, config: OptimizerConfig) -> int:
    """Return how many float32 values the optimizer keeps for a parameter, its count of steps left out: two for each
    value of AdamW; of Adafactor a row and a column for each matrix, and one for each value of a first moment."""
    size = shape.numel()
    if config.algorithm == "adamw":
        return 2 * size
    second = size if len(shape) < 2 else size // shape[-1] + size // shape[-2]
    return second + (size if config.momentum is not None else 0)


@dataclass(frozen=True)
class StateBytes:
    """What a process holds from step to step: bytes of weights, gradients, optimizer state, and averaged weights."""

    weights: int
    gradients: int
    optimizer: int
    average: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average


def state_bytes(model: nn.Module, optimizer: OptimizerConfig, *, shards: int = 1, averaged: bool = False) -> StateBytes:
    """Return what the first of `shards` processes that share one copy of the model holds, all of it in float32.

    averaged: the weights are averaged over the steps (`ema_decay`).
    """
    every = list(model.parameters())
    trained = [parameter for parameter in every if parameter.requires_grad]
    held = [
        optimizer_values(torch.Size((-(-parameter.shape[0] // shards), *parameter.shape[1:])), optimizer)
        if parameter.ndim
        else optimizer_values(parameter.shape, optimizer)
        for parameter in trained
    ]
    weights = FLOAT32 * count(every, shards)
    return StateBytes(
        weights=weights,
        gradients=FLOAT32 * count(trained, shards),
        optimizer=FLOAT32 * sum(held),
        average=weights if averaged else 0,
    )


@dataclass(frozen=True)
class Kept:
    """Values that the backward pass needs of one row: `wide` in float32, `narrow` in the precision of the run."""

    wide: int = 0
    narrow: int = 0

    def __add__(self, other: "Kept") -> "Kept":
        return Kept(self.wide + other.wide, self.narrow + other.narrow)

    def bytes(self, precision: str) -> int:
        return FLOAT32 * self.wide + {"float32": 4, "bfloat16": 2}[precision] * self.narrow


def kept_of(module: nn.Module) -> Kept:
    """Return what a block keeps of a row: see `ACTIVATIONS_KEPT`."""
    total = Kept()
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            widens = layer.out_features > layer.in_features
            total += Kept(narrow=layer.in_features + (layer.out_features if widens else 0))
        elif isinstance(layer, nn.LayerNorm):
            total += Kept(wide=math.prod(layer.normalized_shape))
    return total


def kept_recomputed(module: nn.Module, recompute: str) -> Kept:
    """Return what a block keeps of a row where its insides are computed again: its input in float32, and where
    `recompute` is "selective" the results of its linear layers and of attention."""
    if recompute == "blocks":
        return Kept(wide=_width(module))
    products = sum(layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear))
    return Kept(wide=_width(module), narrow=_width(module) + products)


def activation_bytes(
    model: nn.Module, rows: Mapping[str, float], *, clips: int, precision: str, recompute: str = "none"
) -> float:
    """Return what the blocks of a model keep of a micro-batch for the backward pass: a model, see `ACTIVATIONS_KEPT`.

    rows: rows of one clip that pass all blocks of the list of modules at each path, as `Architecture.rows` gives them.
    clips: of a micro-batch. precision: "float32" or "bfloat16". recompute: "none"; "blocks": blocks keep their inputs
    alone, "selective": and the results of products and attention; one block at a time is computed again.
    """
    blocks = {path: list(model.get_submodule(path).children()) for path in rows}
    of_clip = {path: [rows[path] * kept_of(block).bytes(precision) for block in blocks[path]] for path in rows}
    if recompute == "none":
        return clips * sum(map(sum, of_clip.values()))
    held = sum(
        rows[path] * kept_recomputed(block, recompute).bytes(precision) for path in rows for block in blocks[path]
    )
    return clips * (held + max((size for sizes in of_clip.values() for size in sizes), default=0.0))


def _width(block: nn.Module) -> int:
    """Return the width of a block's input, which the first layer in it reads."""
    for layer in block.modules():
        if isinstance(layer, nn.LayerNorm):
            return math.prod(layer.normalized_shape)
        if isinstance(layer, nn.Linear):
            return layer.in_features
    return 0
