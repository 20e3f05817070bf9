"""Attention by other packages, with the arguments of `bucketed.varlen_attention`: torch itself, flash-attn, xformers.

None of them can drop weights by our random numbers, so all refuse dropout. flash-attn is asked for a backward pass that
repeats bit for bit unless the caller waives it; generation 2 keeps that promise, early releases of 3 and 4 did not. On
a GPU the others add with atomics unless torch's deterministic algorithms are switched on. Along an axis all of them
need a transposed copy of query, key, value and output, which the Triton kernels do without.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from ..dispatch import Library
from . import bucketed, flash, limits, memory_efficient
from .call import Call, Options, axial_call


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, options: Options, mask: Tensor | None, _keep: Tensor | None
) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=options.scale)


def sdpa(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """Pad all sequences to the longest and leave the choice among its kernels to torch."""
    limits.check("sdpa", query, call.options)
    return bucketed.varlen_attention(query, key, value, call, attend=_sdpa, bucketed=False)


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
        "flash_attn": Library(form(flash.flash_attn), flash.flash_attn_missing, "FlashAttention-2, deterministic"),
        "flash_attn_3": Library(form(flash.flash_attn_3), flash.flash_attn_3_missing, "FlashAttention-3, for Hopper"),
        "flash_attn_4": Library(form(flash.flash_attn_4), flash.flash_attn_4_missing, "FlashAttention-4, in CuTe DSL"),
        "torch_varlen": Library(
            form(flash.torch_varlen), flash.torch_varlen_missing, "torch's flash kernels on packed rows"
        ),
        "xformers": Library(
            form(memory_efficient.xformers),
            memory_efficient.xformers_missing,
            "xformers' memory-efficient attention",
        ),
        "sdpa": Library(form(sdpa), lambda device, dtype: None, "torch's own kernels on padded sequences"),
    }
