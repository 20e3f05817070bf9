"""Attention by other packages, with the arguments of `bucketed.varlen_attention`: torch itself, flash-attn, xformers.

None of them can drop weights by our random numbers, so all refuse dropout. Only flash-attn is asked for, and promises,
a backward pass that repeats bit for bit; on a GPU the others add with atomics unless torch's deterministic algorithms
are switched on. Along an axis all of them need a transposed copy of query, key, value and output, which
the Triton kernels do without.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..derivatives import transforming
from ..dispatch import BackendUnavailableError, Library
from ..packing import locate_rows
from . import bucketed
from .call import Call, Options, axial_call

_HALF = (torch.float16, torch.bfloat16)


def _refuse(backend: str, what: str, instead: str = "triton") -> BackendUnavailableError:
    return BackendUnavailableError(
        f"attention: backend {backend!r} cannot run: {what}; use backend={instead!r} or backend='reference'"
    )


class _Limits(NamedTuple):
    """Whether a library knows softcap, its widest heads, and what divides their width, by bytes of the dtype."""

    softcap: bool = False
    widest: int | None = None
    multiple: dict[int, int] | None = None


_LIMITS = {
    "sdpa": _Limits(),
    "flash_attn": _Limits(softcap=True, widest=256),
    "torch_varlen": _Limits(widest=256, multiple={2: 8}),
    "xformers": _Limits(multiple={2: 8, 4: 4, 8: 4}),
}


def refusal(backend: str, width: int, dtype: torch.dtype, options: Options, same: bool = True) -> str:
    """Say what of a call the library cannot do; "" if it can do it all.

    Args:
        backend: name of the library.
        width: of a head.
        dtype: of query, key and value.
        options: of the call.
        same: queries and keys have the same lengths.
    """
    limits = _LIMITS[backend]
    multiple = (limits.multiple or {}).get(dtype.itemsize, 1)
    if options.dropout_p:
        return f"dropout_p={options.dropout_p} would drop other weights than seed asks for"
    if options.softcap and not limits.softcap:
        return f"it has no softcap (softcap={options.softcap})"
    if limits.widest is not None and width > limits.widest:
        return f"heads are {width} wide, it takes up to {limits.widest}"
    if width % multiple:
        return f"heads are {width} wide, it takes multiples of {multiple}"
    if backend == "xformers" and torch.compiler.is_compiling():
        return "under torch.compile the lengths cannot be read"
    if backend == "xformers" and options.causal and not same:
        return "causal with more queries than keys in a sequence"
    return ""


def _check(backend: str, query: Tensor, options: Options) -> None:
    what = refusal(backend, query.shape[-1], query.dtype, options)
    if not what and backend != "sdpa" and transforming():
        what = "transforms of torch.func (grad, vmap, ...) do not see into it"
    if what:
        raise _refuse(backend, what, "sdpa" if query.shape[-1] > 256 and not options.softcap else "triton")


def _import(module: str, extra: str) -> tuple[Any, str | None]:
    """Return the module and None, or None and why it cannot be imported; `extra` names what to install."""
    try:
        return importlib.import_module(module), None
    except ModuleNotFoundError:
        return None, f"the package {module.split('.')[0]} is not installed (pip install 'fastvtp[{extra}]')"
    except (ImportError, OSError) as error:
        return None, f"import {module} failed: {str(error).partition(chr(10))[0]}"


def _needs_cuda(
    backend: str, device: torch.device, dtype: torch.dtype | None, dtypes: tuple[torch.dtype, ...]
) -> str | None:
    """Say why the library cannot run on this device in this dtype (None: no matter which), or None if it can."""
    if device.type != "cuda":
        return f"{backend} needs a CUDA device, not {device.type}"
    if dtype is not None and dtype not in dtypes:
        names = ", ".join(str(known).removeprefix("torch.") for known in dtypes)
        return f"{backend} computes in {names}, not in {dtype}"
    return None


# --- sdpa


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, options: Options, mask: Tensor | None, _keep: Tensor | None
) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=options.scale)


def sdpa(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """Pad all sequences to the longest and leave the choice among its kernels to torch."""
    _check("sdpa", query, call.options)
    return bucketed.varlen_attention(query, key, value, call, attend=_sdpa, bucketed=False)


def _answering_rows(backend: str, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor, Call]:
    """Return keys and values of which those that answer come first, and the call without `key_lengths`: libraries know
    where sequences begin and end, and not that some of their keys are silent."""
    if call.key_lengths is None:
        return key, value, call
    if call.options.causal:
        raise _refuse(backend, "causal with key_lengths: it aligns a sequence's last query with its last key")
    sequence, position = locate_rows(call.cu_seqlens_k, key.shape[0])
    answers = position < F.pad(call.key_lengths, (0, 1))[sequence]
    first = answers.int().argsort(descending=True, stable=True)
    offsets = F.pad(call.key_lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return key[first], value[first], call._replace(cu_seqlens_k=offsets, key_lengths=None)


# --- flash_attn


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


def flash_attn(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """Call flash_attn_varlen_func with its deterministic backward.

    It leaves the rows after the last sequence unwritten, in the output and in the gradients.
    """
    _check("flash_attn", query, call.options)
    key, value, call = _answering_rows("flash_attn", key, value, call)
    package = importlib.import_module("flash_attn")
    tail, tail_k = _tail(query, call.cu_seqlens), _tail(key, call.cu_seqlens_k)
    output = package.flash_attn_varlen_func(
        _WithoutTail.apply(query, tail),
        _WithoutTail.apply(key, tail_k),
        _WithoutTail.apply(value, tail_k),
        call.cu_seqlens,
        call.cu_seqlens_k,
        call.max_seqlen,
        call.max_seqlen_k,
        softmax_scale=call.options.scale,
        softcap=call.options.softcap,
        causal=call.options.causal,
        deterministic=True,
    )
    return output.masked_fill(tail, 0)


def _flash_attn_missing(device: torch.device, dtype: torch.dtype | None) -> str | None:
    package, missing = _import("flash_attn", "flash")
    if missing is not None:
        return missing
    if "softcap" not in inspect.signature(package.flash_attn_varlen_func).parameters:
        return "flash_attn is older than 2.6, which brought softcap"
    return _needs_cuda("flash_attn", device, dtype, _HALF)


# --- torch_varlen


def torch_varlen(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """Call torch.nn.attention.varlen, torch's own flash kernels, which leave the same rows unwritten."""
    _check("torch_varlen", query, call.options)
    key, value, call = _answering_rows("torch_varlen", key, value, call)
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    tail, tail_k = _tail(query, call.cu_seqlens), _tail(key, call.cu_seqlens_k)
    rows = (_WithoutTail.apply(x, its) for x, its in ((query, tail), (key, tail_k), (value, tail_k)))
    output = varlen_attn(
        *(x if x.stride(-1) == 1 else x.contiguous() for x in rows),
        call.cu_seqlens,
        call.cu_seqlens_k,
        call.max_seqlen,
        call.max_seqlen_k,
        scale=call.options.scale,
        window_size=(-1, 0) if call.options.causal else (-1, -1),
    )
    return output.masked_fill(tail, 0)


def _torch_varlen_missing(device: torch.device, dtype: torch.dtype | None) -> str | None:
    try:
        varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    if not {"scale", "window_size"} <= inspect.signature(varlen_attn).parameters.keys():
        return f"varlen_attn of torch {torch.__version__} does not take scale and window_size yet"
    return _needs_cuda("torch_varlen", device, dtype, _HALF)


# --- xformers

_LENGTHS = "_fastvtp_lengths"


def _host_lengths(offsets: Tensor) -> list[int]:
    """Return the sequences' lengths as Python integers, kept with the offsets: only the first call waits for the
    device."""
    version = None if offsets.is_inference() else offsets._version
    kept = getattr(offsets, _LENGTHS, None)
    if kept is not None and version is not None and kept[0] == version:
        return kept[1]
    lengths = offsets.diff().tolist()
    setattr(offsets, _LENGTHS, (version, lengths))
    return lengths


def _live_rows(lengths: list[int], live: list[bool], device: torch.device) -> Tensor | slice:
    """Select the rows of live sequences: a slice, if all sequences with rows are live, or else their numbers."""
    if all(alive or not length for alive, length in zip(live, lengths, strict=True)):
        return slice(sum(lengths))
    counts = torch.tensor(lengths, device=device)
    return torch.tensor(live, device=device).repeat_interleave(counts).nonzero()[:, 0]


def xformers(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """Call memory_efficient_attention under a BlockDiagonalMask, which wants the lengths on the host.

    Raises:
        BackendUnavailableError: causal, and a sequence has more queries than keys.
    """
    _check("xformers", query, call.options)
    key, value, call = _answering_rows("xformers", key, value, call)
    lengths, lengths_k = _host_lengths(call.cu_seqlens), _host_lengths(call.cu_seqlens_k)
    if call.options.causal and any(queries > keys > 0 for queries, keys in zip(lengths, lengths_k, strict=True)):
        raise _refuse("xformers", "causal with more queries than keys in a sequence")
    live = [queries > 0 < keys for queries, keys in zip(lengths, lengths_k, strict=True)]
    if not any(live):
        return sdpa(query, key, value, call._replace(dense=False))
    ops = importlib.import_module("xformers.ops")
    counts, counts_k = ([n for n, alive in zip(all_, live, strict=True) if alive] for all_ in (lengths, lengths_k))
    bias = ops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(counts, counts_k, device=query.device)
    if call.options.causal:
        bias = bias.make_causal() if counts == counts_k else bias.make_causal_from_bottomright()
    rows, rows_k = (_live_rows(all_, live, query.device) for all_ in (lengths, lengths_k))
    output = ops.memory_efficient_attention(
        query[rows][None], key[rows_k][None], value[rows_k][None], attn_bias=bias, p=0.0, scale=call.options.scale
    )[0]
    if output.shape[0] == query.shape[0]:
        return output
    if isinstance(rows, slice):
        rows = torch.arange(output.shape[0], device=query.device)
    return query.new_zeros(query.shape).index_copy(0, rows, output)


def _xformers_missing(device: torch.device, dtype: torch.dtype | None) -> str | None:
    missing = _import("xformers.ops", "xformers")[1]
    return missing or _needs_cuda("xformers", device, dtype, (*_HALF, torch.float32))


# --- the three ops


def packed(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `run`, an implementation of varlen_attention, as one of varlen_attention_packed."""

    def attend(qkv: Tensor, call: Call) -> Tensor:
        query, key, value = qkv.unbind(1)
        return run(query, key, value, call)

    return attend


def along_axis(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `run`, an implementation of varlen_attention, as one of axial_attention."""

    def attend(query: Tensor, key: Tensor, value: Tensor, options: Options) -> Tensor:
        if query.numel() == 0:
            return query.clone()
        outer, length, inner = query.shape[:3]
        rows = [x.transpose(1, 2).flatten(0, 2) for x in (query, key, value)]
        output = run(*rows, axial_call(query, options))
        return output.unflatten(0, (outer, inner, length)).transpose(1, 2).contiguous()

    return attend


def libraries(form: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda run: run) -> dict[str, Library]:
    """Return all libraries as `dispatch.register` takes them; `form` makes their implementations those of another
    op."""
    return {
        "flash_attn": Library(form(flash_attn), _flash_attn_missing, "flash-attn's kernels, deterministic"),
        "torch_varlen": Library(form(torch_varlen), _torch_varlen_missing, "torch's flash kernels on packed rows"),
        "xformers": Library(form(xformers), _xformers_missing, "xformers' memory-efficient attention"),
        "sdpa": Library(form(sdpa), lambda device, dtype: None, "torch's own kernels on padded sequences"),
    }
