"""FlashAttention over packed rows: the packages of its generations 2, 3 and 4, and torch's own copy of it.

They leave the rows after the last sequence unwritten, in the output and in the gradients. Each is called by the name of
the package it comes from, and no package stands in for another.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..dispatch import must_repeat
from . import limits
from .call import Call

Run = Callable[[list[Tensor], Call], Tensor]


class _WithoutTail(torch.autograd.Function):
    """Returns the tensor itself; the gradient of the rows in `tail` is zero, whatever comes back for them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, tail: Tensor) -> Tensor:
        ctx.save_for_backward(tail)
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].masked_fill(ctx.saved_tensors[0], 0), None


def _tail(rows: Tensor, offsets: Tensor) -> Tensor:
    """bool [N, 1, 1], True for rows of no sequence."""
    return (torch.arange(rows.shape[0], device=rows.device) >= offsets[-1])[:, None, None]


def _within_sequences(backend: str, run: Run) -> Callable[[Tensor, Tensor, Tensor, Call], Tensor]:
    """Return `run` as an implementation of varlen_attention: rows outside of sequences are zero and have no gradient,
    and keys that do not answer are left out."""

    def attend(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        limits.check(backend, query, call.options)
        key, value, call = limits.answering_rows(backend, key, value, call)
        tail, tail_k = _tail(query, call.cu_seqlens), _tail(key, call.cu_seqlens_k)
        rows = [_WithoutTail.apply(x, its) for x, its in ((query, tail), (key, tail_k), (value, tail_k))]
        return run(rows, call).masked_fill(tail, 0)

    return attend


def _output(found: Any) -> Tensor:
    """Return the output alone: some releases return the log-sum-exp beside it."""
    return found[0] if isinstance(found, tuple) else found


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def _run_by(package: Callable[[], Any]) -> Run:
    """Return attention by generation 2 or 3, whose parameters have the same names and order; `package` imports it."""

    def run(rows: list[Tensor], call: Call) -> Tensor:
        found = package().flash_attn_varlen_func(
            *rows,
            call.cu_seqlens,
            call.cu_seqlens_k,
            call.max_seqlen,
            call.max_seqlen_k,
            softmax_scale=call.options.scale,
            softcap=call.options.softcap,
            causal=call.options.causal,
            deterministic=must_repeat(call.deterministic),
        )
        return _output(found)

    return run


def _run_4(rows: list[Tensor], call: Call) -> Tensor:
    # Its third parameter after the rows is not always the offsets: names alone.
    found = importlib.import_module("flash_attn.cute").flash_attn_varlen_func(
        *rows,
        cu_seqlens_q=call.cu_seqlens,
        cu_seqlens_k=call.cu_seqlens_k,
        max_seqlen_q=call.max_seqlen,
        max_seqlen_k=call.max_seqlen_k,
        softmax_scale=call.options.scale,
        causal=call.options.causal,
        deterministic=must_repeat(call.deterministic),
    )
    return _output(found)


def _run_torch(rows: list[Tensor], call: Call) -> Tensor:
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    return varlen_attn(
        *(x if x.stride(-1) == 1 else x.contiguous() for x in rows),
        call.cu_seqlens,
        call.cu_seqlens_k,
        call.max_seqlen,
        call.max_seqlen_k,
        scale=call.options.scale,
        window_size=(-1, 0) if call.options.causal else (-1, -1),
    )


flash_attn = _within_sequences("flash_attn", _run_by(lambda: importlib.import_module("flash_attn")))
flash_attn_3 = _within_sequences("flash_attn_3", _run_by(lambda: importlib.import_module("flash_attn_interface")))
flash_attn_4 = _within_sequences("flash_attn_4", _run_4)
torch_varlen = _within_sequences("torch_varlen", _run_torch)


def flash_attn_missing(device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Say why FlashAttention-2 cannot run, or None."""
    package, missing = limits.imported("flash_attn", "pip install 'fastvtp[flash]'")
    if missing is not None:
        return missing
    if not hasattr(package, "flash_attn_varlen_func"):
        return "the package flash_attn has flash_attn.cute alone, of FlashAttention-4 (pip install 'fastvtp[flash]')"
    if "softcap" not in _parameters(package.flash_attn_varlen_func):
        return "flash_attn is older than 2.6, which brought softcap"
    return limits.needs_cuda("flash_attn", device, dtype, limits.HALF)


def flash_attn_3_missing(device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Say why FlashAttention-3 cannot run, or None."""
    package, missing = limits.imported(
        "flash_attn_interface", "FlashAttention-3, built from the folder hopper of its repository"
    )
    if missing is not None:
        return missing
    if absent := {"softcap", "deterministic"} - _parameters(package.flash_attn_varlen_func):
        return f"flash_attn_interface is a beta release without {', '.join(sorted(absent))}"
    missing = limits.needs_cuda("flash_attn_3", device, dtype, limits.HALF)
    if missing is None and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability(device)
        if major not in (8, 9):
            return f"flash_attn_3 has kernels for compute capability 8.0 to 9.0, not for {major}.{minor}"
    return missing


def flash_attn_4_missing(device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Say why FlashAttention-4 cannot run, or None."""
    package, missing = limits.imported("flash_attn.cute", "pip install --pre flash-attn-4")
    if missing is not None:
        return missing
    if absent := {"max_seqlen_q", "max_seqlen_k", "deterministic"} - _parameters(package.flash_attn_varlen_func):
        return f"flash_attn.cute is a beta release without {', '.join(sorted(absent))}"
    return limits.needs_cuda("flash_attn_4", device, dtype, limits.HALF)


def torch_varlen_missing(device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Say why torch's attention over packed rows cannot run, or None."""
    try:
        varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    if not {"scale", "window_size"} <= _parameters(varlen_attn):
        return f"varlen_attn of torch {torch.__version__} does not take scale and window_size yet"
    return limits.needs_cuda("torch_varlen", device, dtype, limits.HALF)
