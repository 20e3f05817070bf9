"""Inputs of the attention ops, and contexts that force a regime of their kernels."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fastvtp_kernels import tuning, varlen_attention
from fastvtp_kernels.attention import ordering
from fastvtp_kernels.tuning import Tile
from tests.kernels.triton_cases import DEVICE, random_values

# Rows that belong to no sequence, after those that do.
TAIL = 3
# Queries and keys of each sequence: nothing, one row, a full tile and odd numbers in every regime's small tiles. In the
# crossed lengths queries meet more keys, fewer keys and none; keys meet no query.
LENGTHS: dict[str, tuple[list[int], list[int] | None]] = {
    "tiny": ([5, 0, 1, 16, 7, 2], None),
    "tiny crossed": ([5, 0, 1, 9, 3], [2, 4, 16, 9, 0]),
    "resident": ([33, 0, 60, 1], None),
    "resident crossed": ([37, 0, 1, 3], [20, 4, 60, 0]),
    "streaming": ([33, 0, 16], None),
    "streaming crossed": ([33, 0, 1, 5], [20, 4, 40, 0]),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 1.5},
    "causal": {"causal": True},
    "dropout": {"dropout_p": 0.3, "seed": 2**63 + 9},
    "everything": {"softcap": 1.5, "causal": True, "softmax_scale": 0.7, "dropout_p": 0.3, "seed": 5},
}


def options_of(name: str, case: str) -> dict[str, Any]:
    """OPTIONS[name], less the dropout in the resident regime, which gives way to streaming then."""
    without = ("dropout_p", "seed") if case.startswith("resident") else ()
    return {option: value for option, value in OPTIONS[name].items() if option not in without}


def offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=DEVICE)


def packed(
    lengths: Sequence[int],
    lengths_k: Sequence[int] | None = None,
    *,
    heads: int = 2,
    width: int = 16,
    dtype: torch.dtype = torch.float32,
    tail: int = TAIL,
    **options: Any,
) -> dict[str, Any]:
    """Arguments of varlen_attention, whose query, key and value ask for gradients."""
    rows, rows_k = sum(lengths) + tail, sum(lengths if lengths_k is None else lengths_k) + tail
    shapes = {"query": rows, "key": rows_k, "value": rows_k}
    tensors = {
        name: random_values(count, heads, width, dtype=dtype, seed=seed)
        for seed, (name, count) in enumerate(shapes.items())
    }
    keys: dict[str, Any] = {}
    if lengths_k is not None:
        keys = {"cu_seqlens_k": offsets(lengths_k), "max_seqlen_k": max(lengths_k)}
    return {**tensors, "cu_seqlens": offsets(lengths), "max_seqlen": max(lengths), **keys, **options}


def grid(*shape: int, dtype: torch.dtype = torch.float32, **options: Any) -> dict[str, Any]:
    """Arguments of axial_attention on [A, L, C, H, Dh]."""
    names = ("query", "key", "value")
    return {name: random_values(*shape, dtype=dtype, seed=seed) for seed, name in enumerate(names)} | options


def side_by_side(lengths: Sequence[int], width: int = 16, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of varlen_attention_packed."""
    qkv = random_values(sum(lengths) + TAIL, 3, 2, width, dtype=dtype)
    return {"qkv": qkv, "cu_seqlens": offsets(lengths), "max_seqlen": max(lengths)}


def grid_side_by_side(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of axial_attention_packed on [A, L, C, 3, H, Dh]."""
    return {"qkv": random_values(*shape, dtype=dtype)}


def of_views(qkv: Tensor, **options: Any) -> Tensor:
    """varlen_attention of the three views of one tensor [N, 3, H, Dh]."""
    query, key, value = qkv.unbind(1)
    return varlen_attention(query, key, value, **options)


def small_tile(kernel: str) -> Tile:
    """A tile that cuts LENGTHS into several; sequences of the tiny regime must fit into theirs."""
    if kernel.startswith("tiny"):
        return Tile({"BLOCK_M": 32, "BLOCK_N": 32})
    if kernel.startswith("resident_backward"):
        return Tile({"BLOCK": 16, "BLOCK_STAYING": 16})
    return Tile({"BLOCK_M": 16, "BLOCK_N": 16})


ATTENTION_KERNELS = tuple(name for name in tuning.TABLE if name.startswith(("tiny_", "resident_", "stream_")))


@contextmanager
def only(regime: str) -> Iterator[None]:
    """Within the context every call takes one regime ("tiny", "resident", "streaming") that its options allow."""
    limit = 10**6 if regime == "resident" else 0
    with (
        tuning.limits(tiny=32 if regime == "tiny" else 0, resident=limit),
        patch.object(ordering, "ONE_WAVE", 0),
    ):
        yield


@contextmanager
def small_tiles() -> Iterator[None]:
    with ExitStack() as stack:
        for kernel in ATTENTION_KERNELS:
            stack.enter_context(tuning.override(kernel, small_tile(kernel)))
        yield


@contextmanager
def forced(regime: str) -> Iterator[None]:
    """One regime in small tiles; further words of its name ("tiny crossed") are ignored."""
    with only(regime.split()[0]), small_tiles():
        yield
