"""Which regime, tiles and constants a class of attention calls runs with: decided once for the class, then remembered.

A plan holds no tensor, and nothing that changes from step to step (how many rows, how many sequences): the layers of a
model share a handful of them. What a plan depends on is all in its `Kind`.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .. import tuning
from ..launching import blocks, dot_precision
from .problem import Problem

Regime = Literal["tiny", "resident", "stream"]
REMEMBERED = 1024
"""Kinds of calls whose plans are kept, for each direction; those asked for last stay."""


class Kind(NamedTuple):
    """Everything about a call that its plan depends on."""

    width: int
    longest: int
    longest_k: int
    axial: bool
    causal: bool
    softcap: bool
    dropout: bool
    wide: bool
    """32 bits are too few for the way through one sequence."""
    precision: str
    dtype: torch.dtype
    device: torch.device
    tables: int
    """`tuning.tables`: which tiles and limits of regimes are in force."""

    @property
    def block_d(self) -> int:
        """The power of two that holds a head's width, 16 at least: the narrowest operand of a tensor core."""
        return max(16, 1 << (self.width - 1).bit_length())

    def constants(self) -> dict[str, Any]:
        """Return the constants by which every regime's kernels are compiled."""
        return {
            "AXIAL": self.axial,
            "CAUSAL": self.causal,
            "SOFTCAP": self.softcap,
            "DROPOUT": self.dropout,
            "PRECISION": self.precision,
            "BLOCK_D": self.block_d,
        }


class Plan(NamedTuple):
    """How one kernel is launched for a kind of calls."""

    regime: Regime
    size: int
    """tiny: sequences of one program. stream: programs of one sequence and head. resident: numbers of the scratch that
    one sequence and head needs in backward."""
    constants: dict[str, Any]
    """Keyword arguments of `launching.launch`, the tile among them."""


def kind_of(problem: Problem, tensor: Tensor, strides: Sequence[tuple[int, ...]] = ()) -> Kind:
    """Return the kind of a call on tensors like this one, which have these strides."""
    longest, longest_k, options = problem.longest, problem.longest_k, problem.options
    reach = max(longest, longest_k)
    wide = False
    for _, row, *_ in strides:
        if reach * row >= 2**31:
            wide = True
    return Kind(
        problem.width,
        longest,
        longest_k,
        problem.axial,
        options.causal,
        options.softcap > 0,
        options.dropout_p > 0,
        wide,
        dot_precision(tensor.dtype),
        tensor.dtype,
        tensor.device,
        tuning.tables(),
    )


def _tile(kernel: str, kind: Kind) -> tuning.Tile:
    """Return the tile of one regime's kernel: its variant by the options that cost registers, by falling cost."""
    variant = ""
    if kind.dropout:
        variant = "_dropout"
    elif kind.softcap or kind.causal:
        variant = "_capped"
    elif kind.block_d > 64 and kind.width < kind.block_d:
        variant = "_masked"
    return tuning.tile(f"{kernel}_{max(kind.block_d, 64)}", kind.dtype, kind.device, variant)


def is_tiny(kind: Kind) -> bool:
    """Tell whether at least one whole sequence fits into a tile of the tiny regime, forward and backward."""
    tiles = (_tile(kernel, kind).blocks for kernel in ("tiny_forward", "tiny_backward"))
    room = [tuning.tiny_rows(), *(min(sizes["BLOCK_M"], sizes["BLOCK_N"]) for sizes in tiles)]
    return max(kind.longest, kind.longest_k) <= min(room)


def is_resident(kind: Kind, backward: bool = False) -> bool:
    """Tell whether one side of a sequence can stay on chip; dropout's numbers and 64-bit addresses need the
    registers."""
    if kind.dropout or kind.wide:
        return False
    rows = tuning.resident_rows(kind.width, kind.dtype, kind.device, kind.causal, backward)
    return max(kind.longest, kind.longest_k) <= rows


def regime(kind: Kind, backward: bool = False) -> Regime:
    """Return the regime that the forward or the backward pass of a kind of calls runs in."""
    return "tiny" if is_tiny(kind) else "resident" if is_resident(kind, backward) else "stream"


@functools.lru_cache(REMEMBERED)
def forward(kind: Kind) -> Plan:
    """Return the plan of the forward pass."""
    found = regime(kind)
    if found == "tiny":
        return _tiny("tiny_forward", kind)
    tile = _tile(f"{found}_forward", kind)
    if found == "stream":
        return _stream(kind, tile, blocks(kind.longest, tile.blocks["BLOCK_M"]))
    tiles = blocks(kind.longest_k, tile.blocks["BLOCK_N"])
    return Plan(found, 0, {**_without_dropout(kind), "TILES": tiles, "tile": tile})


@functools.lru_cache(REMEMBERED)
def backward(kind: Kind) -> tuple[Plan, ...]:
    """Return the plans of the backward pass: of its one kernel, or of `stream_backward_queries` and `_keys`."""
    found = regime(kind, backward=True)
    if found == "tiny":
        return (_tiny("tiny_backward", kind),)
    if found == "resident":
        tile = _tile("resident_backward", kind)
        staying = tile.blocks["BLOCK_STAYING"]
        tiles = {"TILES": blocks(kind.longest, staying), "TILES_K": blocks(kind.longest_k, staying)}
        scratch = 2 * tiles["TILES"] * staying
        return (Plan(found, scratch, {**_without_dropout(kind), **tiles, "tile": tile}),)
    queries, keys = (_tile(f"stream_backward_{side}", kind) for side in ("queries", "keys"))
    return (
        _stream(kind, queries, blocks(kind.longest, queries.blocks["BLOCK_M"])),
        _stream(kind, keys, blocks(kind.longest_k, keys.blocks["BLOCK_N"])),
    )


def _tiny(kernel: str, kind: Kind) -> Plan:
    """Plan how many sequences share a tile, and which power of two holds their number."""
    tile = _tile(kernel, kind)
    sizes = tile.blocks
    group = min(sizes["BLOCK_M"] // max(kind.longest, 1), sizes["BLOCK_N"] // max(kind.longest_k, 1))
    return Plan("tiny", group, {**kind.constants(), "GROUP_BLOCK": 1 << (group - 1).bit_length(), "tile": tile})


def _stream(kind: Kind, tile: tuning.Tile, tiles: int) -> Plan:
    return Plan("stream", tiles, {**kind.constants(), "WIDE": kind.wide, "tile": tile})


def _without_dropout(kind: Kind) -> dict[str, Any]:
    return {name: value for name, value in kind.constants().items() if name != "DROPOUT"}
