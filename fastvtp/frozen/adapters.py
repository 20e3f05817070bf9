"""Low-rank adapters in the blocks of a frozen video tower.

Shape legend: B = clips, C = outputs, N = packed tokens, D = width, R = inner width of an adapter.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from fastvtp.errors import UserError
from fastvtp.frozen.probes import Probe
from fastvtp.frozen.towers import VideoTower, check_pool
from fastvtp.modules.layers import init_linear_xavier

_PARTS = ("attn", "mlp")


class Adapter(nn.Module):
    """Adds up(GELU(down(x))) to x, where `up` begins as zero (Houlsby et al., arXiv:1902.00751)."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)

    def init_weights(self) -> None:
        """Start as the identity; uses torch's global generator."""
        self.apply(init_linear_xavier)
        nn.init.zeros_(self.up.weight)

    def forward(self, x_ND: Tensor) -> Tensor:
        return x_ND + self.up(gelu(self.down(x_ND)))


@dataclass(frozen=True)
class TowerTap:
    """Where a probe taps its tower.

    layers: blocks whose tokens the probe reads beside the tower's output. adapter_dim: inner width of the adapters in
    the blocks; None: no adapters. Raises UserError for a width that is not positive.
    """

    layers: tuple[int, ...] = ()
    adapter_dim: int | None = None

    def __post_init__(self) -> None:
        if self.adapter_dim is not None and self.adapter_dim < 1:
            raise UserError(f"adapter_dim must be positive, got {self.adapter_dim}")


_OUTPUT = TowerTap()


class ProbedTower(nn.Module):
    """A probe on a frozen tower, whose attention and MLP branches may pass through adapters: clips -> logits.

    The tower is put into evaluation mode and its weights are frozen; they are no part of this module's parameters nor
    of its `state_dict`, which hold what is trained alone. Adapters hang on the tower's blocks by hooks, which `detach`
    takes off. VideoPrism's have an inner width of 64; where in a block they sit is not published.

    tap: where the probe taps the tower; it reads as many layers as `probe.config.num_layers` - 1, and R is the width
        of the adapters.
    pool: of the tokens, see `VideoTower.encode_layers`.
    """

    def __init__(
        self,
        tower: VideoTower,
        probe: Probe,
        tap: TowerTap = _OUTPUT,
        *,
        pool: str = "none",
    ):
        super().__init__()
        tower.check_layers(tap.layers)
        check_pool(pool)
        tower.model.eval().requires_grad_(False)
        self.layers, self.pool, self.probe = tap.layers, pool, probe
        self._tower = [tower]  # in a list, so that its weights do not count as this module's
        branches = [getattr(block, part) for block in tower.blocks for part in _PARTS] if tap.adapter_dim else []
        adapters = [Adapter(tower.width, tap.adapter_dim or 0) for _ in branches]
        for adapter in adapters:
            adapter.init_weights()
        self.adapters = nn.ModuleList(adapters)
        self._hooks = [
            branch.register_forward_hook(_passing_through(adapter))
            for branch, adapter in zip(branches, adapters, strict=True)
        ]

    def detach(self) -> None:
        """Take the adapters off the tower."""
        for hook in self._hooks:
            hook.remove()

    def forward(self, video: Tensor) -> Tensor:
        """Compute the logits [B, C] of clips, uint8 [B, T, H, W, 3]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and len(self.adapters) > 0):
            features = self._tower[0].encode_layers(video, self.layers, self.pool)
        return self.probe(features)


def _passing_through(adapter: nn.Module) -> Any:
    def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return adapter(output)

    return hook
