"""Launchers of the attention kernels: which regime runs, with which tiles.

Shape legend: S sequences, H heads, N and Nk packed rows, D head width; a grid [A, L, C, H, D] has S = A * C sequences
of L rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import philox, tuning
from ..launching import blocks, dot_precision, launch
from . import resident, streaming, tiny
from .reference import Options

TINY_ROWS = 32
"""Sequences up to this length share tiles."""


class Problem(NamedTuple):
    """Everything about a call but the tensors' values."""

    sequences: int
    heads: int
    rows: int
    rows_k: int
    width: int
    length: int
    inner: int
    longest: int
    longest_k: int
    offsets: Tensor | None
    offsets_k: Tensor | None
    axial: bool
    options: Options

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.width, self.length, self.inner

    def flags(self, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "AXIAL": self.axial, "CAUSAL": self.options.causal, "SOFTCAP": self.options.softcap > 0,
            "DROPOUT": self.options.dropout_p > 0, "PRECISION": dot_precision(dtype), "BLOCK_D": self.block_d,
        }  # fmt: skip

    @property
    def block_d(self) -> int:
        return max(16, 1 << (self.width - 1).bit_length())

    @property
    def numbers(self) -> tuple[Any, ...]:
        """Scale, cap and dropout (Philox key, threshold of the kept words, factor of the kept weights)."""
        scale, softcap, _, dropout_p, seed = self.options
        key = (seed ^ philox.ATTENTION_DROPOUT) & 0xFFFFFFFFFFFFFFFF
        return scale, softcap, (philox.signed(key), round((1 - dropout_p) * 2**32), 1 / (1 - dropout_p))


LARGEST_HEAD = 256
"""Head width that the kernels go up to."""


def _check_width(width: int) -> None:
    if width > LARGEST_HEAD:
        raise ValueError(f"attention: heads are {width} wide, the Triton kernels take up to {LARGEST_HEAD}")


def packed_problem(query: Tensor, key: Tensor, offsets: Tensor, longest: int, offsets_k: Tensor, longest_k: int,
                   options: Options) -> Problem:  # fmt: skip
    rows, heads, width = query.shape
    _check_width(width)
    return Problem(
        offsets.shape[0] - 1,
        heads,
        rows,
        key.shape[0],
        width,
        0,
        1,
        longest,
        longest_k,
        offsets,
        offsets_k,
        False,
        options,
    )


def axial_problem(query: Tensor, options: Options) -> Problem:
    outer, length, inner, heads, width = query.shape
    _check_width(width)
    rows = outer * length * inner
    return Problem(outer * inner, heads, rows, rows, width, length, inner, length, length, None, None, True, options)


def _strides(tensor: Tensor, problem: Problem) -> tuple[int, int, int, int]:
    if problem.axial:
        outer, row, inner, head, _ = tensor.stride()
        return outer, row, inner, head
    return 0, tensor.stride(0), 0, tensor.stride(1)


def _unit_width_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


_ORDER = "_fastvtp_longest_first"


def longest_first(offsets: Tensor) -> Tensor:
    """Sequences by falling length: the long ones must not be left for the end of the launch.

    Kept with the offsets, which all layers of a step share. If they are changed in place later, the order is merely no
    longer the best one: any order is right.
    """
    order = getattr(offsets, _ORDER, None)
    if order is None:
        order = offsets.diff().argsort(descending=True, stable=True).int()
        # What a capture computes has no values before its first replay: not to be kept for anyone else.
        if not (offsets.is_cuda and torch.cuda.is_current_stream_capturing()):
            setattr(offsets, _ORDER, order)
    return order


def _order(problem: Problem) -> Tensor | None:
    return None if problem.offsets is None else longest_first(problem.offsets)


def _group(problem: Problem, tile: tuning.Tile) -> dict[str, int]:
    """How many sequences share a tile, and the power of two that holds their number."""
    group = min(tile.blocks["BLOCK_M"] // max(problem.longest, 1), tile.blocks["BLOCK_N"] // max(problem.longest_k, 1))
    return {"group": group, "GROUP_BLOCK": 1 << (group - 1).bit_length()}


def _tile(kernel: str, problem: Problem, tensor: Tensor) -> tuning.Tile:
    options = problem.options
    variant = "_dropout" if options.dropout_p else "_capped" if options.softcap else ""
    return tuning.tile(f"{kernel}_{max(problem.block_d, 64)}", tensor.dtype, tensor.device, variant)


def is_tiny(problem: Problem, tensor: Tensor) -> bool:
    """Whether at least one whole sequence fits into a tile of the tiny regime, forward and backward."""
    tiles = (_tile(kernel, problem, tensor).blocks for kernel in ("tiny_forward", "tiny_backward"))
    room = [TINY_ROWS, *(min(blocks["BLOCK_M"], blocks["BLOCK_N"]) for blocks in tiles)]
    return max(problem.longest, problem.longest_k) <= min(room)


def _resident_rows(problem: Problem, tensor: Tensor) -> tuple[int, int]:
    # Dropout's random numbers need the registers.
    return (0, 0) if problem.options.dropout_p else tuning.resident_rows(problem.block_d, tensor.dtype, tensor.device)


def _without_dropout(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if name != "DROPOUT"}


def forward(query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Output, contiguous in the shape of query, and log-sum-exp float32 [H, N] in units of log 2."""
    query, key, value = (_unit_width_stride(tensor) for tensor in (query, key, value))
    output = query.new_empty(query.shape)
    lse = query.new_empty(problem.heads, problem.rows, dtype=torch.float32)
    if problem.axial and problem.rows == 0:
        return output, lse
    strides = [_strides(tensor, problem) for tensor in (query, key, value, output)]
    tensors = [query, key, value, output, lse, problem.offsets, problem.offsets_k]
    flags = problem.flags(query.dtype)
    if is_tiny(problem, query):
        tile = _tile("tiny_forward", problem, query)
        shared = _group(problem, tile)
        group = shared.pop("group")
        launch(
            tiny.tiny_forward, (blocks(problem.sequences, group) * problem.heads,), *tensors, *strides,
            problem.sequences, problem.heads, group, problem.rows, *problem.sizes, *problem.numbers,
            tile=tile, **shared, **flags,
        )  # fmt: skip
    elif problem.longest_k <= _resident_rows(problem, query)[0]:
        tile = _tile("resident_forward", problem, query)
        launch(
            resident.resident_forward, (problem.sequences * problem.heads,), *tensors, _order(problem), *strides,
            problem.sequences, problem.heads, problem.rows, *problem.sizes, *problem.numbers[:2],
            TILES=blocks(problem.longest_k, tile.blocks["BLOCK_N"]), tile=tile, **_without_dropout(flags),
        )  # fmt: skip
    else:
        tile = _tile("stream_forward", problem, query)
        tiles = blocks(problem.longest, tile.blocks["BLOCK_M"])
        launch(
            streaming.stream_forward, (problem.sequences * problem.heads * tiles,), *tensors, _order(problem), *strides,
            problem.sequences, problem.heads, tiles, problem.rows, *problem.sizes, *problem.numbers, tile=tile, **flags,
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
    strides = [_strides(tensor, problem) for tensor in (query, key, value, output)]
    d_strides = [_strides(tensor, problem) for tensor in (dq, dk)]
    flags = problem.flags(query.dtype)
    if is_tiny(problem, query):
        tile = _tile("tiny_backward", problem, query)
        shared = _group(problem, tile)
        group = shared.pop("group")
        launch(
            tiny.tiny_backward, (blocks(problem.sequences, group) * problem.heads,),
            query, key, value, output, grad, lse, dq, dk, dv, problem.offsets, problem.offsets_k, *strides, *d_strides,
            problem.sequences, problem.heads, group, problem.rows, problem.rows_k, *problem.sizes, *problem.numbers,
            tile=tile, **shared, **flags,
        )  # fmt: skip
        return
    offsets = [problem.offsets, problem.offsets_k, _order(problem)]
    counts = problem.sequences, problem.heads
    if problem.longest <= _resident_rows(problem, query)[1]:
        tile = _tile("resident_backward", problem, query)
        launch(
            resident.resident_backward, (problem.sequences * problem.heads,),
            query, key, value, output, grad, lse, dq, dk, dv, *offsets, *strides, *d_strides,
            *counts, problem.rows, problem.rows_k, *problem.sizes, *problem.numbers[:2],
            BLOCK_M=max(16, 1 << (problem.longest - 1).bit_length()), tile=tile, **_without_dropout(flags),
        )  # fmt: skip
        return
    delta = torch.empty_like(lse)
    o_outer, o_row, o_inner, o_head = strides[3]
    tile = tuning.tile("row_dots", torch.float32, query.device)
    launch(
        streaming.row_dots, (blocks(problem.rows, tile.blocks["BLOCK_M"]), problem.heads),
        output, grad, delta, o_row, o_head, problem.rows, *problem.sizes, o_outer, o_inner,
        AXIAL=problem.axial, BLOCK_D=problem.block_d, tile=tile,
    )  # fmt: skip
    tile = _tile("stream_backward_keys", problem, query)
    tiles = blocks(problem.longest_k, tile.blocks["BLOCK_N"])
    launch(
        streaming.stream_backward_keys, (problem.sequences * problem.heads * tiles,),
        query, key, value, grad, lse, delta, dk, dv, *offsets, *strides, d_strides[1],
        *counts, tiles, problem.rows, problem.rows_k, *problem.sizes, *problem.numbers, tile=tile, **flags,
    )  # fmt: skip
    tile = _tile("stream_backward_queries", problem, query)
    tiles = blocks(problem.longest, tile.blocks["BLOCK_M"])
    launch(
        streaming.stream_backward_queries, (problem.sequences * problem.heads * tiles,),
        query, key, value, grad, lse, delta, dq, *offsets, *strides, d_strides[0],
        *counts, tiles, problem.rows, *problem.sizes, *problem.numbers, tile=tile, **flags,
    )  # fmt: skip


def attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int,
    cu_seqlens_k: Tensor, max_seqlen_k: int, *options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    problem = packed_problem(query, key, cu_seqlens, max_seqlen, cu_seqlens_k, max_seqlen_k, Options(*options))
    return forward(query, key, value, problem)


def attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, cu_seqlens: Tensor,
    max_seqlen: int, cu_seqlens_k: Tensor, max_seqlen_k: int, *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    problem = packed_problem(query, key, cu_seqlens, max_seqlen, cu_seqlens_k, max_seqlen_k, Options(*options))
    return _separate_gradients(grad, query, key, value, output, lse, problem)


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
    problem = packed_problem(query, key, cu_seqlens, max_seqlen, cu_seqlens, max_seqlen, Options(*options))
    gradient = qkv.new_empty(qkv.shape)
    backward(grad, query, key, value, output, lse, problem, gradient.unbind(1))
    return gradient


def axial_attention(query: Tensor, key: Tensor, value: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return forward(query, key, value, axial_problem(query, Options(*options)))


def axial_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _separate_gradients(grad, query, key, value, output, lse, axial_problem(query, Options(*options)))
