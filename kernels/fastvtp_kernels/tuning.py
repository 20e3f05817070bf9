"""Tile sizes per kernel, precision and architecture: a reviewed table, not an autotuner.

An autotuner would time kernels inside a training step and let the clock decide the order of summation. Entries come
from the compile report (no spills, tensor cores used) and, where a benchmark result names them, from measurement.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["half", "single"]
ANY = "any"


@dataclass(frozen=True)
class Tile:
    """Block sizes (by the kernel's argument names) and launch options of one kernel."""

    blocks: dict[str, int]
    num_warps: int = 4
    num_stages: int = 2

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={size}" for name, size in self.blocks.items())
        return f"{sizes} warps={self.num_warps} stages={self.num_stages}"


# kernel -> precision -> architecture (ANY: all not named)
TABLE: dict[str, dict[Precision, dict[str, Tile]]] = {
    "embed": {
        "half": {ANY: Tile({"BLOCK_M": 128, "BLOCK_D": 128, "BLOCK_P": 64}, num_warps=8, num_stages=3)},
        "single": {ANY: Tile({"BLOCK_M": 64, "BLOCK_D": 64, "BLOCK_P": 32}, num_warps=4, num_stages=2)},
    },
    "weight_gradient": {
        "half": {ANY: Tile({"BLOCK_M": 64, "BLOCK_D": 128, "BLOCK_P": 128}, num_warps=8, num_stages=3)},
        "single": {ANY: Tile({"BLOCK_M": 32, "BLOCK_D": 32, "BLOCK_P": 64}, num_warps=4, num_stages=2)},
    },
    "fold": {"single": {ANY: Tile({"BLOCK_VALUES": 512}, num_warps=4)}},
    "gather": {"single": {ANY: Tile({"BLOCK_M": 8, "BLOCK_P": 512}, num_warps=4)}},
    "pixel_loss": {"single": {ANY: Tile({"BLOCK_M": 4, "BLOCK_P": 512}, num_warps=4)}},
    "scale": {"single": {ANY: Tile({"BLOCK": 4096}, num_warps=8)}},
    "tube_mask": {"single": {ANY: Tile({"BLOCK_OTHERS": 16}, num_warps=8)}},
    "assemble": {"single": {ANY: Tile({"BLOCK_ROWS": 8, "BLOCK_D": 512}, num_warps=4)}},
    "assemble_backward": {"single": {ANY: Tile({"BLOCK_ROWS": 8, "BLOCK_D": 512, "STEPS": 8}, num_warps=4)}},
    "sum_segments": {"single": {ANY: Tile({"BLOCK_ROWS": 8, "BLOCK_D": 256}, num_warps=4)}},
}

_target = "sm_90"
_overrides: dict[str, Tile] = {}


def precision(dtype: torch.dtype) -> Precision:
    """The column of the table for a kernel that multiplies in `dtype`."""
    return "half" if dtype in (torch.float16, torch.bfloat16) else "single"


def architecture(device: torch.device) -> str:
    """The table's name for a device ("sm_90", "gfx942"); on the CPU and the meta device that of `targeting`."""
    if device.type != "cuda":
        return _target
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def tile(kernel: str, dtype: torch.dtype, device: torch.device) -> Tile:
    """The tile that `kernel` runs with."""
    if kernel in _overrides:
        return _overrides[kernel]
    by_architecture = TABLE[kernel][precision(dtype)]
    return by_architecture.get(architecture(device), by_architecture[ANY])


def tiles(kernel: str, column: Precision) -> list[Tile]:
    """Every tile of one kernel and precision that any architecture uses, each once."""
    found: list[Tile] = []
    for entry in TABLE[kernel][column].values():
        if entry not in found:
            found.append(entry)
    return found


@contextlib.contextmanager
def override(kernel: str, entry: Tile) -> Iterator[None]:
    """Within the context `kernel` runs with this tile: for tests and for searching better ones."""
    before = _overrides.get(kernel)
    _overrides[kernel] = entry
    try:
        yield
    finally:
        del _overrides[kernel]
        if before is not None:
            _overrides[kernel] = before


@contextlib.contextmanager
def targeting(name: str) -> Iterator[None]:
    """Within the context tensors of the CPU and of the meta device take the tiles of this architecture."""
    global _target
    before, _target = _target, name
    try:
        yield
    finally:
        _target = before
