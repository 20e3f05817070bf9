"""Tile sizes per kernel, precision and architecture: a reviewed table, not an autotuner.

An autotuner would time kernels inside a training step and let the clock decide the order of summation. Entries come
from the compile report (no spills, tensor cores used) and, where a benchmark result names them, from measurement.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
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
    max_registers: int | None = None
    """Of a thread: where a few more would leave a multiprocessor room for one block less."""
    entry: str = field(default="", compare=False)
    """Line and column of the table that it stands in: "embed half"."""

    @functools.cached_property
    def options(self) -> dict[str, int]:
        """The block sizes and launch options by Triton's names; not to be changed."""
        limit = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages, **limit}

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={size}" for name, size in self.blocks.items())
        limit = f" registers<={self.max_registers}" if self.max_registers else ""
        return f"{sizes} warps={self.num_warps} stages={self.num_stages}{limit}"


def _rows_by_keys(rows: int, keys: int, num_warps: int, num_stages: int = 2, max_registers: int | None = None) -> Tile:
    return Tile({"BLOCK_M": rows, "BLOCK_N": keys}, num_warps, num_stages, max_registers)


def _staying(rows: int, staying: int, num_warps: int, num_stages: int = 1) -> Tile:
    return Tile({"BLOCK": rows, "BLOCK_STAYING": staying}, num_warps, num_stages)


def _smaller(tile: Tile) -> dict[str, Tile]:
    """Return the same tile for both architectures with 99 KiB of shared memory."""
    return dict.fromkeys(("sm_89", "sm_120"), tile)


def _warps(tile: Tile) -> dict[str, Tile]:
    """Return the same tile for all architectures whose products keep their sums in the registers of a warp."""
    return dict.fromkeys(("sm_80", "sm_89", "sm_120"), tile)


def _logits(rows: int, columns: int, depth: int, num_warps: int, num_stages: int = 2) -> Tile:
    return Tile({"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_D": depth, "GROUP": 8}, num_warps, num_stages)


# kernel -> precision -> architecture (ANY: all not named)
TABLE: dict[str, dict[Precision, dict[str, Tile]]] = {
    "embed": {
        "half": {
            ANY: Tile({"BLOCK_M": 128, "BLOCK_D": 128, "BLOCK_P": 64}, num_warps=8, num_stages=3),
            "sm_90": Tile({"BLOCK_M": 128, "BLOCK_D": 128, "BLOCK_P": 32}, num_warps=4, num_stages=3),
        },
        "single": {ANY: Tile({"BLOCK_M": 64, "BLOCK_D": 64, "BLOCK_P": 32}, num_warps=4, num_stages=2)},
    },
    "weight_gradient": {
        "half": {ANY: Tile({"BLOCK_M": 64, "BLOCK_D": 128, "BLOCK_P": 128}, num_warps=8, num_stages=3)},
        "single": {ANY: Tile({"BLOCK_M": 32, "BLOCK_D": 32, "BLOCK_P": 64}, num_warps=4, num_stages=2)},
    },
    "fold": {"single": {ANY: Tile({"BLOCK_VALUES": 512}, num_warps=4)}},
    "gather": {"single": {ANY: Tile({"BLOCK_M": 8, "BLOCK_P": 512}, num_warps=4)}},
    "pixel_loss": {"single": {ANY: Tile({"BLOCK_M": 4, "BLOCK_P": 512}, num_warps=4)}},
    # Of bytes, with the warps that a token of the usual 1536 values needs.
    "pixel_loss_bytes": {"single": {ANY: Tile({"BLOCK_COLUMNS": 16}, num_warps=1)}},
    "scale": {"single": {ANY: Tile({"BLOCK": 4096}, num_warps=8)}},
    "tube_mask": {"single": {ANY: Tile({"BLOCK_OTHERS": 16}, num_warps=8)}},
    "assemble": {"single": {ANY: Tile({"BLOCK_ROWS": 8, "BLOCK_D": 512}, num_warps=4)}},
    "assemble_backward": {"single": {ANY: Tile({"BLOCK_ROWS": 8, "BLOCK_D": 512, "STEPS": 8}, num_warps=4)}},
    # Attention: by regime and head width (64: up to 64); _capped and _dropout where the option needs more registers.
    "tiny_forward_64": {"half": {ANY: _rows_by_keys(64, 64, 8)}, "single": {ANY: _rows_by_keys(32, 32, 4, 1)}},
    "tiny_forward_128": {"half": {ANY: _rows_by_keys(64, 64, 8)}, "single": {ANY: _rows_by_keys(16, 16, 4, 1)}},
    "tiny_forward_256": {"half": {ANY: _rows_by_keys(32, 32, 8, 1)}, "single": {ANY: _rows_by_keys(16, 16, 8, 1)}},
    "tiny_backward_64": {"half": {ANY: _rows_by_keys(64, 64, 8)}, "single": {ANY: _rows_by_keys(32, 32, 8, 1)}},
    "tiny_backward_128": {"half": {ANY: _rows_by_keys(64, 64, 8)}, "single": {ANY: _rows_by_keys(16, 16, 4, 1)}},
    "tiny_backward_256": {
        "half": {ANY: _rows_by_keys(32, 32, 8, 1)},
        "single": {ANY: _rows_by_keys(16, 16, 8, 1), **_smaller(_rows_by_keys(16, 16, 16, 1))},
    },
    # Elsewhere the registers hold too little of what stays, or the tensor memory too few of its products.
    "resident_forward_64": {"half": {"sm_90": _rows_by_keys(64, 64, 4, 1)}},
    "resident_backward_64": {"half": {"sm_90": _staying(64, 64, 4)}},
    "stream_forward_64": {
        "half": {ANY: _rows_by_keys(128, 64, 8, 3), "sm_90": _rows_by_keys(128, 64, 8, 3, max_registers=128)},
        "single": {ANY: _rows_by_keys(32, 32, 4), "sm_80": _rows_by_keys(32, 16, 4, 1)},
    },
    "stream_forward_128": {
        "half": {
            ANY: _rows_by_keys(128, 64, 8),
            "sm_80": _rows_by_keys(128, 32, 8),
            "sm_89": _rows_by_keys(128, 32, 8),
            "sm_120": _rows_by_keys(64, 32, 4),
        },
        "single": {ANY: _rows_by_keys(32, 16, 8, 1)},
    },
    "stream_forward_256": {
        "half": {
            ANY: _rows_by_keys(64, 64, 8),
            "sm_90": _rows_by_keys(64, 32, 8),
            **_smaller(_rows_by_keys(64, 64, 8, 1)),
        },
        "single": {ANY: _rows_by_keys(16, 16, 8, 1)},
    },
    "stream_backward_keys_64": {
        "half": {ANY: _rows_by_keys(64, 64, 8), "sm_90": _rows_by_keys(64, 64, 4), **_warps(_rows_by_keys(64, 64, 4))},
        "single": {ANY: _rows_by_keys(32, 32, 8, 1)},
    },
    "stream_backward_keys_64_capped": {
        "half": {
            ANY: _rows_by_keys(64, 64, 8),
            "sm_90": _rows_by_keys(64, 64, 4),
            **_warps(_rows_by_keys(128, 32, 8)),
            **_smaller(_rows_by_keys(128, 32, 8, 1)),
        },
    },
    "stream_backward_keys_64_dropout": {
        "half": {
            ANY: _rows_by_keys(64, 64, 8),
            "sm_90": _rows_by_keys(32, 64, 4),
            **_warps(_rows_by_keys(64, 32, 8)),
        },
        "single": {
            ANY: _rows_by_keys(32, 32, 8, 1),
            **dict.fromkeys(("sm_80", "sm_100", "sm_120"), _rows_by_keys(16, 32, 8, 1)),
        },
    },
    "stream_backward_keys_128": {
        "half": {ANY: _rows_by_keys(64, 64, 8), "sm_90": _rows_by_keys(64, 128, 8)},
        "single": {ANY: _rows_by_keys(32, 32, 8, 1), "sm_80": _rows_by_keys(16, 32, 8, 1)},
    },
    "stream_backward_keys_128_masked": {
        "half": {
            ANY: _rows_by_keys(64, 64, 8),
            "sm_90": _rows_by_keys(32, 64, 4),
            **_smaller(_rows_by_keys(64, 32, 8)),
        },
    },
    "stream_backward_keys_128_capped": {
        "half": {
            ANY: _rows_by_keys(64, 64, 8),
            "sm_90": _rows_by_keys(32, 128, 8),
            "sm_100": _rows_by_keys(64, 64, 8, 1),
        },
    },
    "stream_backward_keys_128_dropout": {
        "half": {
            ANY: _rows_by_keys(64, 64, 8),
            "sm_90": _rows_by_keys(32, 128, 8),
            **_warps(_rows_by_keys(64, 32, 8)),
        },
        "single": {ANY: _rows_by_keys(32, 32, 8, 1)},
    },
    "stream_backward_keys_256": {
        "half": {ANY: _rows_by_keys(32, 32, 8, 1), "sm_90": _rows_by_keys(32, 32, 4, 1)},
        "single": {ANY: _rows_by_keys(16, 16, 8, 1)},
    },
    "stream_backward_queries_64": {
        "half": {
            ANY: _rows_by_keys(128, 64, 8),
            "sm_90": _rows_by_keys(128, 64, 8, max_registers=128),
            "sm_100": _rows_by_keys(128, 64, 8, 1),
        },
        "single": {ANY: _rows_by_keys(32, 32, 4)},
    },
    "stream_backward_queries_64_dropout": {
        "half": {
            ANY: _rows_by_keys(128, 64, 8),
            "sm_90": _rows_by_keys(64, 64, 4),
            "sm_80": _rows_by_keys(64, 64, 8, 1),
            **_smaller(_rows_by_keys(64, 64, 8, 1)),
        },
        "single": {ANY: _rows_by_keys(32, 32, 4)},
    },
    "stream_backward_queries_128": {
        "half": {
            ANY: _rows_by_keys(64, 64, 8),
            "sm_90": _rows_by_keys(128, 64, 8),
            "sm_100": _rows_by_keys(64, 64, 8, 1),
        },
        "single": {ANY: _rows_by_keys(32, 32, 8, 1), **dict.fromkeys(("sm_80", "sm_89"), _rows_by_keys(16, 32, 8, 1))},
    },
    "stream_backward_queries_256": {
        "half": {ANY: _rows_by_keys(32, 32, 4, 1)},
        "single": {ANY: _rows_by_keys(16, 16, 4, 1)},
    },
    "contrastive_statistics": {
        "half": {ANY: _logits(128, 128, 64, 8, 3), "sm_90": _logits(128, 128, 64, 4, 3)},
        "single": {ANY: _logits(64, 64, 32, 4)},
    },
    "contrastive_gradient": {
        "half": {ANY: _logits(128, 128, 64, 8, 3), "sm_90": _logits(128, 128, 64, 4, 3)},
        "single": {ANY: _logits(64, 64, 32, 4)},
    },
    # Ids, and gradients in two parts, cost the registers of half a tile.
    "contrastive_statistics_ids": {
        "half": {ANY: _logits(128, 128, 64, 8, 3)},
        "single": {ANY: _logits(64, 64, 32, 4)},
    },
    "contrastive_gradient_ids": {
        "half": {ANY: _logits(128, 128, 64, 8, 3)},
        "single": {ANY: _logits(64, 64, 32, 4)},
    },
    "contrastive_sigmoid": {"half": {ANY: _logits(128, 64, 64, 8, 3)}, "single": {ANY: _logits(64, 64, 32, 4)}},
    # The tiles of contrastive_statistics, so that products have the same bits.
    "contrastive_own_products": {
        "half": {ANY: Tile({"BLOCK_M": 128, "BLOCK_D": 64}, num_warps=8, num_stages=3)},
        "single": {ANY: Tile({"BLOCK_M": 64, "BLOCK_D": 32}, num_warps=4)},
    },
    "contrastive_join": {"single": {ANY: Tile({"BLOCK_PARTS": 16, "BLOCK": 128}, num_warps=4)}},
    "contrastive_sample": {"single": {ANY: Tile({"BLOCK_D": 32}, num_warps=8)}},
    # Of lists, before the lists themselves: those of thousands, as of [MASK], are added up by many programs.
    "sum_chunks": {"single": {ANY: Tile({"CHUNK": 64, "BLOCK_ROWS": 16, "BLOCK_D": 256}, num_warps=4)}},
    # Of a table's row: taken by some hundred; of a pool's: by a few; of a sequence: a hundred and more, side by side.
    "sum_segments": {"single": {ANY: Tile({"BLOCK_ROWS": 8, "BLOCK_D": 256}, num_warps=4)}},
    "sum_rows": {"single": {ANY: Tile({"BLOCK_ROWS": 4, "BLOCK_D": 256}, num_warps=2)}},
    "sum_sequences": {"single": {ANY: Tile({"BLOCK_ROWS": 32, "BLOCK_D": 128}, num_warps=4)}},
    "spread_sequences": {"single": {ANY: Tile({"BLOCK_ROWS": 32, "BLOCK_D": 128}, num_warps=4)}},
}
for _kernel, _columns in TABLE.items():
    for _column, _entries in _columns.items():
        for _name, _tile in _entries.items():
            _entries[_name] = replace(_tile, entry=f"{_kernel} {_column}")

TINY_ROWS = 32
"""Sequences of attention up to this length share tiles."""

# Architectures without tiles of their own take those of one with the same instructions and no more shared memory.
# An NVIDIA architecture that nobody has heard of takes those that need least.
ALIKE = {"sm_86": "sm_89", "sm_87": "sm_80", "sm_103": "sm_100", "sm_110": "sm_100", "sm_121": "sm_120"}
KNOWN = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")

_target = "sm_90"
_overrides: dict[str, Tile] = {}
_limits: dict[str, int] = {}
_listening: list[list[Tile]] = []
_tables = 0


def tables() -> int:
    """Return a number for the tiles and limits in force: another one whenever a context of this module begins or ends.

    What was chosen by them is remembered under this number.
    """
    return _tables


def _changed() -> None:
    global _tables
    _tables += 1


def precision(dtype: torch.dtype) -> Precision:
    """Return the column of the table for a kernel that multiplies in `dtype`."""
    return "half" if dtype in (torch.float16, torch.bfloat16) else "single"


def architecture(device: torch.device) -> str:
    """Return the table's name for a device ("sm_90", "gfx942"); on the CPU and the meta device that of `targeting`."""
    if device.type != "cuda":
        return _target
    return _architecture_of(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _architecture_of(index: int) -> str:
    if torch.version.hip:
        return torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
    return known_architecture("sm_{}{}".format(*torch.cuda.get_device_capability(index)))


def known_architecture(name: str) -> str:
    """Return the architecture whose tiles `name` takes: "sm_86" takes those of "sm_89"."""
    if name in KNOWN or not name.startswith("sm_"):
        return name
    return ALIKE.get(name, "sm_120")


def tile(kernel: str, dtype: torch.dtype, device: torch.device, variant: str = "") -> Tile:
    """Return the tile that `kernel` runs with: its entry for the variant, where there is one, or its own."""
    column = precision(dtype)
    if column in TABLE.get(kernel + variant, ()):
        kernel += variant
    if kernel in _overrides:
        found = _overrides[kernel]
    else:
        by_architecture = TABLE[kernel][column]
        name = architecture(device)
        found = by_architecture[name if name in by_architecture else ANY]
    for heard in _listening:
        heard.append(found)
    return found


def tiles(kernel: str, column: Precision) -> list[Tile]:
    """List every tile of one kernel and precision that any architecture uses, each once."""
    found: list[Tile] = []
    for entry in TABLE[kernel][column].values():
        if entry not in found:
            found.append(entry)
    return found


def tiny_rows() -> int:
    """Tell up to which length sequences of attention share tiles."""
    return _limits.get("tiny", TINY_ROWS)


def resident_rows(width: int, dtype: torch.dtype, device: torch.device, causal: bool, backward: bool) -> int:
    """Tell how many queries and keys of heads of a width attention can keep on chip; a causal mask costs the registers
    of a tile.

    By the report's model of an H200, microseconds of 64 sequences with 12 heads of 64, short and streaming regime:

        rows   forward      backward
        168    23    47      64   104
        288    58    91     152   215   backward spills in its loop
        392   145   148     374   360   one block on a multiprocessor, whose waits nothing hides
    """
    if "resident" in _limits:
        return _limits["resident"]
    half = precision(dtype) == "half" and width <= 64
    if not half or architecture(device) not in TABLE["resident_forward_64"]["half"]:
        return 0
    if causal:
        return 192
    return 256 if backward else 320


@contextlib.contextmanager
def override(kernel: str, entry: Tile) -> Iterator[None]:
    """Within the context `kernel` runs with this tile: for tests and for searching better ones."""
    before = _overrides.get(kernel)
    _overrides[kernel] = entry
    _changed()
    try:
        yield
    finally:
        del _overrides[kernel]
        if before is not None:
            _overrides[kernel] = before
        _changed()


@contextlib.contextmanager
def limits(**rows: int) -> Iterator[None]:
    """Within the context `tiny_rows` and `resident_rows` answer with these numbers, `tiny` and `resident`."""
    before = dict(_limits)
    _limits.update(rows)
    _changed()
    try:
        yield
    finally:
        _limits.clear()
        _limits.update(before)
        _changed()


@contextlib.contextmanager
def asked() -> Iterator[list[Tile]]:
    """Within the context nothing chosen before it is remembered; yield the tiles that are asked for."""
    found: list[Tile] = []
    _listening.append(found)
    _changed()
    try:
        yield found
    finally:
        # By identity: lists that hold the same are equal.
        _listening[:] = [one for one in _listening if one is not found]
        _changed()


@contextlib.contextmanager
def targeting(name: str) -> Iterator[None]:
    """Within the context tensors of the CPU and of the meta device take the tiles of this architecture."""
    global _target
    before, _target = _target, known_architecture(name)
    _changed()
    try:
        yield
    finally:
        _target = before
        _changed()
