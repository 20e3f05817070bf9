"""Offers what varlen_attention is held against: padded SDPA, the libraries' kernels for packed rows, the formula.

Each function takes a `Batch` and returns a function of query, key and value, [N, H, Dh] each. What one training step
computes once for all its layers (places in the padding, masks, block masks) is made beforehand and is not timed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from ..harness.case import Missing, Options
from ..harness.variants import compiled
from .flex import flex_attention_of
from .pinned import pinned

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
LARGEST_LOOP = 64
# Softmax weights that the float64 truth holds at a time, 1 GiB of them.
EXACT_WEIGHTS = 1 << 27
HALF = (torch.float16, torch.bfloat16)
OPERATORS = {
    SDPBackend.MATH: "aten::_scaled_dot_product_attention_math",
    SDPBackend.FLASH_ATTENTION: "aten::_scaled_dot_product_flash_attention",
    SDPBackend.CUDNN_ATTENTION: "aten::_scaled_dot_product_cudnn_attention",
    SDPBackend.EFFICIENT_ATTENTION: "aten::_scaled_dot_product_efficient_attention",
}
"""What torch calls when SDPA runs by a kernel, on CUDA."""


@dataclass(frozen=True)
class Batch:
    """A batch has S sequences side by side in rows [N, H, Dh], and knows their padded twin [S, H, longest, Dh]."""

    lengths: tuple[int, ...]
    heads: int
    width: int
    device: torch.device

    @property
    def tokens(self) -> int:
        """Return how many tokens, N, all sequences have together."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Return how many tokens the longest sequence has."""
        return max(self.lengths)

    @property
    def equal(self) -> bool:
        """Say whether all sequences are equally long."""
        return min(self.lengths) == self.longest

    @cached_property
    def offsets(self) -> Tensor:
        """Return the row at which each sequence begins, and the end: int32 [S + 1]."""
        return F.pad(torch.tensor(self.lengths).cumsum(0), (1, 0)).to(self.device, torch.int32)

    @cached_property
    def mask(self) -> Tensor | None:
        """Return bool [S, 1, 1, longest], True at a token; None where all sequences are equally long."""
        return None if self.equal else self._is_token[:, None, None]

    @cached_property
    def _is_token(self) -> Tensor:
        return torch.arange(self.longest, device=self.device) < self.offsets.diff()[:, None]

    @cached_property
    def _places(self) -> Tensor:
        return self._is_token.flatten().nonzero().flatten()

    def pad(self, rows: Tensor) -> Tensor:
        """Pad rows [N, H, Dh] to [S, H, longest, Dh]; where all sequences are equally long, this is a view."""
        if not self.equal:
            rows = rows.new_zeros(self._is_token.numel(), *rows.shape[1:]).index_copy_(0, self._places, rows)
        return rows.unflatten(0, (len(self.lengths), self.longest)).transpose(1, 2)

    def unpad(self, padded: Tensor) -> Tensor:
        """Take the rows [N, H, Dh] out of their padded form [S, H, longest, Dh]."""
        rows = padded.transpose(1, 2).flatten(0, 1)
        return rows if self.equal else rows.index_select(0, self._places)


def _sdpa(mask: Tensor | None, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def padded_input_sdpa(batch: Batch) -> Attention:
    """Return SDPA for a model that keeps everything padded: [S, H, longest, Dh] in and out."""
    return partial(_sdpa, batch.mask)


def padded_sdpa(batch: Batch) -> Attention:
    """Return the usual code: pad, SDPA under a mask, take the rows out again.

    Equal lengths need neither copies nor mask.
    """
    return lambda *rows: batch.unpad(_sdpa(batch.mask, *(batch.pad(tensor) for tensor in rows)))


def kernel_sdpa(kernel: SDPBackend, batch: Batch) -> Attention:
    """Return `padded_sdpa` through one of SDPA's kernels and no other, which its first call makes sure of."""
    if kernel == SDPBackend.FLASH_ATTENTION and not batch.equal:
        raise ValueError("SDPA's flash kernel takes no mask; its form for packed rows is torch varlen")

    def run(*rows: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return padded_sdpa(batch)(*rows)

    return pinned(f"sdpa {kernel.name.lower()}", OPERATORS[kernel], run)


def exact_padded(batch: Batch) -> Attention:
    """Return `padded_input_sdpa` in a form that fits into memory in float64.

    It takes some sequences at a time and computes the weights again in the backward pass.
    """
    size = max(1, EXACT_WEIGHTS // (batch.heads * batch.longest**2))

    def run(*padded: Tensor) -> Tensor:
        parts = []
        for first in range(0, len(batch.lengths), size):
            part = slice(first, first + size)
            mask = None if batch.mask is None else batch.mask[part]
            inputs = [tensor[part] for tensor in padded]
            parts.append(checkpoint(_sdpa, mask, *inputs, use_reentrant=False, preserve_rng_state=False))
        return torch.cat(parts)

    return run


def exact(batch: Batch) -> Attention:
    """Return the truth for packed rows: `exact_padded` between padding and taking the rows out again."""
    return lambda *rows: batch.unpad(exact_padded(batch)(*(batch.pad(tensor) for tensor in rows)))


def naive(batch: Batch) -> Attention:
    """Return softmax(q k^T) v written out: in one go at equal lengths, else one sequence after the other."""
    if not batch.equal and len(batch.lengths) > LARGEST_LOOP:
        raise ValueError(f"a loop over {len(batch.lengths)} sequences, more than {LARGEST_LOOP}")

    def formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.mT * batch.width**-0.5).softmax(dim=-1) @ value

    def run(*rows: Tensor) -> Tensor:
        if batch.equal:
            return batch.unpad(formula(*(batch.pad(tensor) for tensor in rows)))
        sequences = zip(*(tensor.transpose(0, 1).split(batch.lengths, dim=1) for tensor in rows), strict=True)
        return torch.cat([formula(*sequence) for sequence in sequences], dim=1).transpose(0, 1)

    return run


def torch_varlen(batch: Batch) -> Attention:
    """Return torch's own flash kernel for packed rows; releases that prefer cuDNN's, or another package's, are told."""
    from torch.nn.attention.varlen import varlen_attn

    # Other packages may have been put in the place of torch's kernels, since torch 2.11.
    current = getattr(torch.nn.attention, "current_flash_attention_impl", lambda: None)()
    if current is not None:
        raise ValueError(f"torch's flash kernels have been replaced by {current}")

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = varlen_attn(query, key, value, batch.offsets, batch.offsets, batch.longest, batch.longest)
        assert isinstance(output, Tensor)
        return output

    return pinned("torch varlen", "aten::_flash_attention_forward", run)


def flash_attn(batch: Batch) -> Attention:
    """Return FlashAttention-2 as it comes: its backward pass adds with atomics, in no fixed order."""
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    return lambda *rows: flash_attn_varlen_func(*rows, batch.offsets, batch.offsets, batch.longest, batch.longest)


def flash_attn_3(batch: Batch) -> Attention:
    """Return FlashAttention-3 as it comes, with a backward pass in no fixed order."""
    from flash_attn_interface import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    def run(*rows: Tensor) -> Tensor:
        found = flash_attn_varlen_func(*rows, batch.offsets, batch.offsets, batch.longest, batch.longest)
        # Early releases return the log-sum-exp too.
        return found[0] if isinstance(found, tuple) else found

    return run


def flash_attn_4(batch: Batch) -> Attention:
    """Return FlashAttention-4 as it comes, with a backward pass in no fixed order."""
    from flash_attn.cute import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    def run(*rows: Tensor) -> Tensor:
        found = flash_attn_varlen_func(
            *rows,
            cu_seqlens_q=batch.offsets,
            cu_seqlens_k=batch.offsets,
            max_seqlen_q=batch.longest,
            max_seqlen_k=batch.longest,
        )
        return found[0] if isinstance(found, tuple) else found

    return run


def xformers(batch: Batch) -> Attention:
    """Return xFormers' own kernels (CUTLASS) under its mask for packed rows: it would choose a flash-attn by itself."""
    from xformers.ops import fmha, memory_efficient_attention  # pyright: ignore[reportMissingImports]

    bias = fmha.attn_bias.BlockDiagonalMask.from_seqlens(batch.lengths, device=batch.device)
    kernels = fmha.MemoryEfficientAttentionCutlassOp
    return lambda *rows: memory_efficient_attention(*(x[None] for x in rows), attn_bias=bias, op=kernels)[0]


def flex(batch: Batch, options: Options) -> Attention:
    """Return FlexAttention, compiled, under a mask that keeps each sequence to itself."""
    from torch.nn.attention.flex_attention import flex_attention

    offsets, rows = (batch.offsets, batch.offsets), (batch.tokens, batch.tokens)
    # Compiling the mask takes minutes, which a smoke run does not have.
    return flex_attention_of(offsets, rows, run=compiled(flex_attention, options), compile_mask=not options.smoke)


def peers(batch: Batch, options: Options, backward: bool) -> dict[str, Attention | Missing]:
    """Return every peer, or the reason why it cannot run with these lengths, this dtype and on this device."""
    cuda, half = options.device.type == "cuda", options.dtype in HALF

    def offer(
        make: Callable[[Batch], Attention], *, only_cuda: bool = True, only_half: bool = False
    ) -> Attention | Missing:
        if only_cuda and not cuda:
            return Missing("its kernels need a CUDA device")
        if only_half and not half:
            return Missing(f"takes float16 and bfloat16, not {str(options.dtype).removeprefix('torch.')}")
        try:
            return make(batch)
        except ImportError as error:
            return Missing(f"cannot be imported: {error}")
        except ValueError as error:
            return Missing(str(error))

    if backward and not cuda:
        flex_attention = Missing("FlexAttention has no backward pass on the CPU")
    else:
        flex_attention = offer(partial(flex, options=options), only_cuda=False)
    return {
        "padded sdpa": padded_sdpa(batch),
        "sdpa flash": offer(partial(kernel_sdpa, SDPBackend.FLASH_ATTENTION), only_half=True),
        "sdpa cudnn": offer(partial(kernel_sdpa, SDPBackend.CUDNN_ATTENTION), only_half=True),
        "sdpa efficient": offer(partial(kernel_sdpa, SDPBackend.EFFICIENT_ATTENTION)),
        "torch varlen": offer(torch_varlen, only_half=True),
        "flash_attn": offer(flash_attn, only_half=True),
        "flash_attn_3": offer(flash_attn_3, only_half=True),
        "flash_attn_4": offer(flash_attn_4, only_half=True),
        "xformers cutlass": offer(xformers),
        "flex attention": flex_attention,
        "naive": offer(naive, only_cuda=False),
    }
