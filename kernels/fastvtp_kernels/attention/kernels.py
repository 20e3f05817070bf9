"""Launchers of the attention kernels: which regime runs, with which tiles.

Shape legend: S sequences, H heads, N and Nk packed rows, D head width; a grid [A, L, C, H, D] has S = A * C sequences
of L rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import tuning
from ..launching import blocks, launch
from . import ranking, resident, streaming, tiny
from .problem import LARGEST_HEAD, Problem
from .problem import of_axis as axial_problem
from .problem import of_packed as _packed_problem
from .reference import Options

__all__ = ["LARGEST_HEAD", "TINY_ROWS", "Problem", "axial_problem", "backward", "forward", "is_tiny", "packed_problem"]

TINY_ROWS = 32
"""Sequences up to this length share tiles."""
RANKED = 4096
"""Up to so many sequences every one is compared with every other; more are sorted."""


def attention_order(offsets: Tensor) -> Tensor:
    """The sequences by falling length, equal ones in their own order, int32 [S]."""
    sequences = offsets.shape[0] - 1
    if sequences > RANKED:
        return offsets.diff().argsort(descending=True, stable=True).int()
    order = torch.empty(sequences, dtype=torch.int32, device=offsets.device)
    tile = tuning.Tile({"BLOCK": 64})
    launch(ranking.rank_by_length, (blocks(sequences, 64),), offsets, order, sequences, tile=tile)
    return order


def packed_problem(
    query: Tensor, key: Tensor, offsets: Tensor, longest: int, offsets_k: Tensor, longest_k: int, options: Options
) -> Problem:
    """With the sequences in the order in which long ones run best."""
    order = attention_order(offsets) if longest > TINY_ROWS else None
    return _packed_problem(query, key, offsets, longest, offsets_k, longest_k, options, order)


def _unit_width_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _group(problem: Problem, tile: tuning.Tile) -> dict[str, int]:
    """How many sequences share a tile, and the power of two that holds their number."""
    group = min(tile.blocks["BLOCK_M"] // max(problem.longest, 1), tile.blocks["BLOCK_N"] // max(problem.longest_k, 1))
    return {"group": group, "GROUP_BLOCK": 1 << (group - 1).bit_length()}


def _tile(kernel: str, problem: Problem, tensor: Tensor) -> tuning.Tile:
    options = problem.options
    masked = problem.block_d > 64 and problem.width < problem.block_d
    variant = (
        "_dropout" if options.dropout_p
        else "_capped" if options.softcap or options.causal
        else "_masked" if masked
        else ""
    )  # fmt: skip
    return tuning.tile(f"{kernel}_{max(problem.block_d, 64)}", tensor.dtype, tensor.device, variant)


def is_tiny(problem: Problem, tensor: Tensor) -> bool:
    """Whether at least one whole sequence fits into a tile of the tiny regime, forward and backward."""
    tiles = (_tile(kernel, problem, tensor).blocks for kernel in ("tiny_forward", "tiny_backward"))
    room = [TINY_ROWS, *(min(blocks["BLOCK_M"], blocks["BLOCK_N"]) for blocks in tiles)]
    return max(problem.longest, problem.longest_k) <= min(room)


def _is_wide(problem: Problem, strides: Sequence[tuple[int, ...]]) -> bool:
    """Whether 32 bits are too few for the way through one sequence."""
    return max(problem.longest, problem.longest_k) * max(row for _, row, *_ in strides) >= 2**31


def _resident_rows(problem: Problem, tensor: Tensor, wide: bool) -> tuple[int, int]:
    # Dropout's random numbers need the registers, and so do 64-bit addresses.
    if problem.options.dropout_p or wide:
        return 0, 0
    return tuning.resident_rows(problem.width, tensor.dtype, tensor.device)


def _without_dropout(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if name != "DROPOUT"}


def forward(query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Output, contiguous in the shape of query, and log-sum-exp float32 [H, N] in units of log 2."""
    query, key, value = (_unit_width_stride(tensor) for tensor in (query, key, value))
    output = query.new_empty(query.shape)
    lse = query.new_empty(problem.heads, problem.rows, dtype=torch.float32)
    if problem.axial and problem.rows == 0:
        return output, lse
    strides = [problem.strides(tensor) for tensor in (query, key, value, output)]
    tensors = [query, key, value, output, lse, problem.offsets, problem.offsets_k]
    flags, numbers = problem.flags(query.dtype), problem.numbers(query.device)
    wide = _is_wide(problem, strides)
    if is_tiny(problem, query):
        tile = _tile("tiny_forward", problem, query)
        shared = _group(problem, tile)
        group = shared.pop("group")
        launch(
            tiny.tiny_forward, (blocks(problem.sequences, group) * problem.heads,), *tensors, *strides,
            problem.sequences, problem.heads, group, problem.rows, *problem.sizes, *numbers,
            tile=tile, **shared, **flags,
        )  # fmt: skip
    elif problem.longest_k <= _resident_rows(problem, query, wide)[0]:
        tile = _tile("resident_forward", problem, query)
        launch(
            resident.resident_forward, (problem.sequences * problem.heads,), *tensors, problem.order, *strides,
            problem.sequences, problem.heads, problem.rows, *problem.sizes, *numbers[:2],
            TILES=blocks(problem.longest_k, tile.blocks["BLOCK_N"]), tile=tile, **_without_dropout(flags),
        )  # fmt: skip
    else:
        tile = _tile("stream_forward", problem, query)
        tiles = blocks(problem.longest, tile.blocks["BLOCK_M"])
        launch(
            streaming.stream_forward, (problem.sequences * problem.heads * tiles,), *tensors, problem.order, *strides,
            problem.sequences, problem.heads, tiles, problem.rows, *problem.sizes, *numbers,
            WIDE=wide, tile=tile, **flags,
        )  # fmt: skip
    return output, lse


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, problem: Problem,
    gradients: Sequence[Tensor],
) -> None:  # fmt: skip
    """Write the gradients of query, key and value into `gradients`, whose last two have equal strides."""
    query, key, value = (_unit_width_stride(tensor) for tensor in (query, key, value))
    grad = grad.contiguous()
    dq, dk, dv = gradients
    if problem.axial and problem.rows == 0:
        return
    strides = [problem.strides(tensor) for tensor in (query, key, value, output)]
    d_strides = [problem.strides(tensor) for tensor in (dq, dk)]
    flags, numbers = problem.flags(query.dtype), problem.numbers(query.device)
    wide = _is_wide(problem, [*strides, *d_strides])
    if is_tiny(problem, query):
        tile = _tile("tiny_backward", problem, query)
        shared = _group(problem, tile)
        group = shared.pop("group")
        launch(
            tiny.tiny_backward, (blocks(problem.sequences, group) * problem.heads,),
            query, key, value, output, grad, lse, dq, dk, dv, problem.offsets, problem.offsets_k, *strides, *d_strides,
            problem.sequences, problem.heads, group, problem.rows, problem.rows_k, *problem.sizes, *numbers,
            tile=tile, **shared, **flags,
        )  # fmt: skip
        return
    offsets = [problem.offsets, problem.offsets_k, problem.order]
    counts = problem.sequences, problem.heads
    if problem.longest <= _resident_rows(problem, query, wide)[1]:
        tile = _tile("resident_backward", problem, query)
        launch(
            resident.resident_backward, (problem.sequences * problem.heads,),
            query, key, value, output, grad, lse, dq, dk, dv, *offsets, *strides, *d_strides,
            *counts, problem.rows, problem.rows_k, *problem.sizes, *numbers[:2],
            BLOCK_M=max(16, 1 << (problem.longest - 1).bit_length()), tile=tile, **_without_dropout(flags),
        )  # fmt: skip
        return
    delta = torch.empty_like(lse)
    tile = tuning.tile("row_dots", torch.float32, query.device)
    launch(
        streaming.row_dots, (blocks(problem.rows, tile.blocks["BLOCK_M"]), problem.heads),
        output, grad, delta, strides[3], problem.rows, *problem.sizes,
        AXIAL=problem.axial, BLOCK_D=problem.block_d, tile=tile,
    )  # fmt: skip
    tile = _tile("stream_backward_keys", problem, query)
    tiles = blocks(problem.longest_k, tile.blocks["BLOCK_N"])
    launch(
        streaming.stream_backward_keys, (problem.sequences * problem.heads * tiles,),
        query, key, value, grad, lse, delta, dk, dv, *offsets, *strides, d_strides[1],
        *counts, tiles, problem.rows, problem.rows_k, *problem.sizes, *numbers, WIDE=wide, tile=tile, **flags,
    )  # fmt: skip
    tile = _tile("stream_backward_queries", problem, query)
    tiles = blocks(problem.longest, tile.blocks["BLOCK_M"])
    launch(
        streaming.stream_backward_queries, (problem.sequences * problem.heads * tiles,),
        query, key, value, grad, lse, delta, dq, *offsets, *strides, d_strides[0],
        *counts, tiles, problem.rows, *problem.sizes, *numbers, WIDE=wide, tile=tile, **flags,
    )  # fmt: skip


def attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int,
    cu_seqlens_k: Tensor, max_seqlen_k: int, *options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return forward(query, key, value, _packed(query, key, cu_seqlens, max_seqlen, cu_seqlens_k, max_seqlen_k, *options))


def _packed(query: Tensor, key: Tensor, *rest: Any) -> Problem:
    offsets, longest, offsets_k, longest_k, *options, order = rest
    return _packed_problem(query, key, offsets, longest, offsets_k, longest_k, Options(*options), order)


def attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _separate_gradients(grad, query, key, value, output, lse, _packed(query, key, *rest))


def _separate_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, problem: Problem
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (tensor.new_empty(tensor.shape) for tensor in (query, key, value))
    backward(grad, query, key, value, output, lse, problem, (dq, dk, dv))
    return dq, dk, dv


def attention_packed(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, *options: Any) -> tuple[Tensor, Tensor]:
    query, key, value = qkv.unbind(1)
    return attention(query, key, value, cu_seqlens, max_seqlen, cu_seqlens, max_seqlen, *options)


def attention_packed_backward(
    grad: Tensor, qkv: Tensor, output: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int, *options: Any
) -> Tensor:
    """One gradient [N, 3, H, Dh], into which the kernels write its three parts."""
    query, key, value = qkv.unbind(1)
    problem = _packed(query, key, cu_seqlens, max_seqlen, cu_seqlens, max_seqlen, *options)
    gradient = qkv.new_empty(qkv.shape)
    backward(grad, query, key, value, output, lse, problem, gradient.unbind(1))
    return gradient


def axial_attention(query: Tensor, key: Tensor, value: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return forward(query, key, value, axial_problem(query, Options(*options)))


def axial_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _separate_gradients(grad, query, key, value, output, lse, axial_problem(query, Options(*options)))


def axial_attention_packed(qkv: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    query, key, value = qkv.unbind(3)
    return axial_attention(query, key, value, *options)


def axial_attention_packed_backward(grad: Tensor, qkv: Tensor, output: Tensor, lse: Tensor, *options: Any) -> Tensor:
    """One gradient [A, L, C, 3, H, Dh]."""
    query, key, value = qkv.unbind(3)
    gradient = qkv.new_empty(qkv.shape)
    problem = axial_problem(query, Options(*options))
    backward(grad, query, key, value, output, lse, problem, gradient.unbind(3))
    return gradient
