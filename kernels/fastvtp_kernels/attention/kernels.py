"""Launchers of the attention kernels: which regime runs, with which tiles, and in which order of the sequences.

Shape legend: S sequences, H heads, N and Nk packed rows, D head width; a grid [A, L, C, H, D] has S = A * C sequences
of L rows.
"""
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (The body of a @triton.jit function is Triton's language, which looks like Python.)

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import tuning
from ..launching import blocks, launch
from . import plans, resident, streaming, tiny
from .call import Call, Options, of_flat, of_flat_self_attention
from .problem import LARGEST_HEAD, Problem, of_packed
from .problem import of_axis as axial_problem

__all__ = [
    "LARGEST_HEAD",
    "Problem",
    "axial_problem",
    "backward",
    "forward",
    "packed_problem",
]

VECTOR = 8
"""Values of a head that are read at once."""
RANKED = 4096
"""Up to so many sequences every one is compared with every other; more are sorted."""


@triton.jit
def _length(offsets_ptr, sequence, exists):
    start = tl.load(offsets_ptr + sequence, mask=exists, other=0)
    return tl.load(offsets_ptr + sequence + 1, mask=exists, other=0) - start


@triton.jit(do_not_specialize=["sequences"])
def rank_by_length(offsets_ptr, order_ptr, sequences, BLOCK: tl.constexpr):
    """order[rank] = sequence, where its rank is the number of longer ones and of equal ones before it."""
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    length = _length(offsets_ptr, own, own < sequences)[:, None]
    rank = tl.zeros([BLOCK], tl.int32)
    for first in tl.range(0, sequences, BLOCK):
        other = first + tl.arange(0, BLOCK)
        exists = other < sequences
        other_length = _length(offsets_ptr, other, exists)[None, :]
        ahead = (other_length > length) | ((other_length == length) & (other[None, :] < own[:, None]))
        rank += tl.sum((ahead & exists[None, :]).to(tl.int32), axis=1)
    tl.store(order_ptr + rank, own, mask=own < sequences)


def attention_order(offsets: Tensor) -> Tensor:
    """Sort the sequences by falling length, equal ones in their own order: int32 [S]."""
    sequences = offsets.shape[0] - 1
    if sequences > RANKED:
        return offsets.diff().argsort(descending=True, stable=True).int()
    order = torch.empty(sequences, dtype=torch.int32, device=offsets.device)
    launch(rank_by_length, (blocks(sequences, 64),), offsets, order, sequences, tile=tuning.Tile({"BLOCK": 64}))
    return order


def packed_problem(query: Tensor, key: Tensor, call: Call) -> Problem:
    """Return `problem.of_packed`, with the sequences in the order in which long ones run best."""
    order = attention_order(call.cu_seqlens) if call.max_seqlen > tuning.tiny_rows() else None
    return of_packed(query, key, call._replace(order=order))


@functools.lru_cache(1024)
def _reads_in_vectors(strides: tuple[int, ...], width: int) -> bool:
    return strides[-1] == 1 and (width % VECTOR > 0 or not any(stride % VECTOR for stride in strides[:-1]))


def _in_vectors(tensor: Tensor) -> Tensor:
    """Return the tensor as kernels read it: a head's values side by side, and heads of whole vectors begin with one."""
    return tensor if _reads_in_vectors(tensor.stride(), tensor.shape[-1]) else tensor.contiguous()


def forward(query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the output, contiguous in the shape of query, and the log-sum-exp float32 [H, N] in units of log 2."""
    query, key, value = _in_vectors(query), _in_vectors(key), _in_vectors(value)
    options = problem.options
    if options.scale < 0:
        # The kernels take the largest product for the largest logit.
        query, problem = -query, problem._replace(options=options._replace(scale=-options.scale))
    output = query.new_empty(query.shape)
    lse = query.new_empty((problem.heads, problem.rows), dtype=torch.float32)
    if problem.axial and problem.rows == 0:
        return output, lse
    strides = [problem.strides(tensor) for tensor in (query, key, value, output)]
    tensors = [query, key, value, output, lse, problem.offsets, problem.offsets_k, problem.key_lengths]
    numbers = problem.numbers(query.device)
    regime, size, constants = plans.forward(plans.kind_of(problem, query, strides))
    if regime == "tiny":
        launch(
            tiny.tiny_forward,
            (blocks(problem.sequences, size) * problem.heads,),
            *tensors,
            *strides,
            *(problem.sequences, problem.heads, size, problem.rows),
            *problem.sizes,
            *numbers,
            **constants,
        )
    elif regime == "resident":
        launch(
            resident.resident_forward,
            (problem.sequences * problem.heads,),
            *tensors,
            problem.order,
            *strides,
            *(problem.sequences, problem.heads, problem.rows),
            *problem.sizes,
            *numbers[:2],
            **constants,
        )
    else:
        launch(
            streaming.stream_forward,
            (problem.sequences * problem.heads * size,),
            *tensors,
            problem.order,
            *strides,
            *(problem.sequences, problem.heads, size, problem.rows),
            *problem.sizes,
            *numbers,
            **constants,
        )
    return output, lse


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    problem: Problem,
    gradients: Sequence[Tensor],
) -> None:
    """Write the gradients of query, key and value into `gradients`, whose last two have equal strides."""
    query, key, value = _in_vectors(query), _in_vectors(key), _in_vectors(value)
    grad = grad.contiguous()
    dq, dk, dv = gradients
    if problem.axial and problem.rows == 0:
        return
    strides = [problem.strides(tensor) for tensor in (query, key, value, output)]
    d_strides = [problem.strides(tensor) for tensor in (dq, dk)]
    numbers = problem.numbers(query.device)
    tensors = [query, key, value, output, grad, lse]
    places = [problem.offsets, problem.offsets_k, problem.key_lengths]
    first, *others = plans.backward(plans.kind_of(problem, query, [*strides, *d_strides]))
    if first.regime == "tiny":
        launch(
            tiny.tiny_backward,
            (blocks(problem.sequences, first.size) * problem.heads,),
            *(*tensors, *gradients, *places),
            *strides,
            *d_strides,
            *(problem.sequences, problem.heads, first.size, problem.rows, problem.rows_k),
            *problem.sizes,
            *numbers,
            **first.constants,
        )
    elif first.regime == "resident":
        pairs = problem.sequences * problem.heads
        scratch = query.new_empty(pairs * first.size, dtype=torch.float32)
        launch(
            resident.resident_backward,
            (2 * pairs,),
            *(*tensors, scratch, *gradients, *places, problem.order),
            *strides,
            *d_strides,
            *(problem.sequences, problem.heads, problem.rows, problem.rows_k),
            *problem.sizes,
            *numbers[:2],
            **first.constants,
        )
    else:
        # The first pass computes the row dots of output and gradient, which the second reads.
        delta = query.new_empty((problem.heads, problem.rows), dtype=torch.float32)
        rest = [*problem.sizes, *numbers]

        counts = problem.sequences, problem.heads, first.size, problem.rows
        grid = (problem.sequences * problem.heads * first.size,)
        arguments = [*tensors, delta, dq, *places, problem.order, *strides, d_strides[0], *counts, *rest]
        launch(streaming.stream_backward_queries, grid, *arguments, **first.constants)

        (second,) = others
        counts = problem.sequences, problem.heads, second.size, problem.rows, problem.rows_k
        grid = (problem.sequences * problem.heads * second.size,)
        tensors = [query, key, value, grad, lse, delta, dk, dv]
        arguments = [*tensors, *places, problem.order, *strides, d_strides[1], *counts, *rest]
        launch(streaming.stream_backward_keys, grid, *arguments, **second.constants)


# What the registered ops launch, with their flat arguments.


def attention(query: Tensor, key: Tensor, value: Tensor, *flat: Any) -> tuple[Tensor, Tensor]:
    """Run `forward` on packed rows [N, H, Dh] and [Nk, H, Dh]."""
    return forward(query, key, value, of_packed(query, key, of_flat(*flat)))


def attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, *flat: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, each contiguous."""
    problem = of_packed(query, key, of_flat(*flat))
    return _separate_gradients(grad, query, key, value, output, lse, problem)


def _separate_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, problem: Problem
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (tensor.new_empty(tensor.shape) for tensor in (query, key, value))
    backward(grad, query, key, value, output, lse, problem, (dq, dk, dv))
    return dq, dk, dv


def attention_packed(qkv: Tensor, *flat: Any) -> tuple[Tensor, Tensor]:
    """Run `forward` on the three views of qkv [N, 3, H, Dh]."""
    query, key, value = qkv.unbind(1)
    return forward(query, key, value, of_packed(query, key, of_flat_self_attention(*flat)))


def attention_packed_backward(grad: Tensor, qkv: Tensor, output: Tensor, lse: Tensor, *flat: Any) -> Tensor:
    """Return one gradient [N, 3, H, Dh], into which the kernels write its three parts."""
    query, key, value = qkv.unbind(1)
    gradient = qkv.new_empty(qkv.shape)
    problem = of_packed(query, key, of_flat_self_attention(*flat))
    backward(grad, query, key, value, output, lse, problem, gradient.unbind(1))
    return gradient


def axial_attention(query: Tensor, key: Tensor, value: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """Compute `forward` along the second axis of [A, L, C, H, Dh]; the log-sum-exp's N = A * C * L rows are in that
    order."""
    return forward(query, key, value, axial_problem(query, Options(*options)))


def axial_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, each contiguous."""
    return _separate_gradients(grad, query, key, value, output, lse, axial_problem(query, Options(*options)))


def axial_attention_packed(qkv: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """Compute `axial_attention` of the three views of qkv [A, L, C, 3, H, Dh]."""
    query, key, value = qkv.unbind(3)
    return axial_attention(query, key, value, *options)


def axial_attention_packed_backward(grad: Tensor, qkv: Tensor, output: Tensor, lse: Tensor, *options: Any) -> Tensor:
    """Return one gradient [A, L, C, 3, H, Dh], into which the kernels write its three parts."""
    query, key, value = qkv.unbind(3)
    gradient = qkv.new_empty(qkv.shape)
    problem = axial_problem(query, Options(*options))
    backward(grad, query, key, value, output, lse, problem, gradient.unbind(3))
    return gradient
