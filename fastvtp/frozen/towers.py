"""The video tower inside a model, as probes of frozen features read it.

Shape legend: B = clips, L = tokens of a clip, K = layers that are read, N = packed tokens, D = width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastvtp.architecture import architecture_of, architectures
from fastvtp.errors import UserError

POOLS = ("none", "frames", "mean")


class VideoTower(ABC):
    """Gives the tokens of any layer of a clip; the weights stay the model's.

    model: as given. width: D. grid: tokens along (time, height, width) of a clip of the config's size.
    """

    def __init__(self, model: nn.Module, width: int, grid: tuple[int, int, int]):
        self.model, self.width, self.grid = model, width, grid

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Its blocks in order, each with the parts `attn` and `mlp`."""

    @abstractmethod
    def _encode(self, video: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Encode as `encode_layers`, one [B, L, D] a layer, of layers that exist."""

    def encode_layers(self, video: Tensor, layers: Sequence[int] = (), pool: str = "none") -> Tensor:
        """Return what these blocks give, counted from 0 (before any LayerNorm), and last what the tower gives.

        uint8 [B, T, H, W, 3] of the config's size -> [B, K + 1, L, D]. pool: "none", all tokens; "frames", the mean of
        each time slot; "mean", of the clip. Raises UserError as `check_layers` and for another pool.
        """
        self.check_layers(layers)
        tokens = torch.stack(self._encode(video, layers), dim=1)
        slots = math.prod(self.pooled_grid(pool))
        return tokens if pool == "none" else tokens.unflatten(2, (slots, -1)).mean(dim=3)

    def pooled_grid(self, pool: str) -> tuple[int, int, int]:
        """Compute what `pool` leaves of the grid."""
        check_pool(pool)
        time, height, width = self.grid
        return {"none": (time, height, width), "frames": (time, 1, 1), "mean": (1, 1, 1)}[pool]

    def check_layers(self, layers: Sequence[int]) -> None:
        """Check layers; raises UserError where they do not exist or do not ascend."""
        depth = len(self.blocks)
        if any(not 0 <= layer < depth for layer in layers) or list(layers) != sorted(set(layers)):
            raise UserError(f"layers must ascend and be from 0 to {depth - 1}, got {list(layers)}")


def video_tower(model: nn.Module) -> VideoTower:
    """Return the tower inside a model, by the record of its architecture.

    Raises UserError for a model whose clips do not become tokens of their own, as where frames are averaged.
    """
    tower = architecture_of(model).tower
    if tower is None:
        known = ", ".join(name for name, architecture in architectures().items() if architecture.tower is not None)
        raise UserError(f"{type(model).__name__} has no tokens of a clip to probe: expected one of {known}")
    return tower(model)


def check_pool(pool: str) -> None:
    """Check a pooling; raises UserError where there is no such."""
    if pool not in POOLS:
        raise UserError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")


def evenly_spaced(depth: int, count: int) -> tuple[int, ...]:
    """Choose `count` blocks of `depth`, in even steps and without the last, whose tokens the tower gives anyway.

    (12, 3) -> (2, 5, 8). Raises UserError where there are not that many.
    """
    if not 0 <= count < max(depth, 1):
        raise UserError(f"expected fewer layers than the tower's {depth} blocks, got {count}")
    return tuple(depth * (i + 1) // (count + 1) - 1 for i in range(count))
