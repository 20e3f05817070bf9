"""Where a library's kernels were measured to be faster than ours.

A line of MEASURED says for one situation which backends to try, fastest first; what is absent or cannot do the call is
passed over, and situations without a line run the Triton kernels. Lines are never written by hand:

    python -m benchmarks.ops.attention --device cuda --json results.json
    python -m benchmarks.device.attention_choice results.json --architecture sm_90

prints those that follow from a measurement, ready to be put here. It has not been run on a GPU yet: there are none.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import tuning
from ..dispatch import must_repeat
from ..symbolic import is_unknown
from .call import Options
from .limits import refusal

DETERMINISTIC = ("triton", "flash_attn")
"""Backends whose backward pass repeats bit for bit, as the op promises: no other is chosen for training unless the
caller waives it. FlashAttention 3 and 4 promise it as well; their early releases took the flag and did not keep to it,
and do not tell themselves apart."""


class Situation(NamedTuple):
    """What the fastest backend depends on.

    architecture: of `tuning.architecture`. width: 64, 128, 256: heads up to that width and wider than the one before.
    length: the longest sequence, of queries or keys, rounded up to a power of two. backward: a gradient is wanted.
    repeats: and it must be the same bit for bit, or there is none.
    """

    architecture: str
    precision: tuning.Precision
    width: int
    length: int
    softcap: bool
    causal: bool
    backward: bool
    repeats: bool = True


MEASURED: dict[Situation, tuple[str, ...]] = {}


@torch.compiler.assume_constant_result
def _architecture(device: torch.device) -> str:
    """Return `tuning.architecture`, which a compiler takes as a constant."""
    return tuning.architecture(device)


def length_bucket(longest: int) -> int:
    """Return the next power of two from `longest` on, 16 at least."""
    bucket = 16
    # Comparisons, so that a symbolic length is guarded by its bucket and not by its value.
    while bucket < longest:
        bucket *= 2
    return bucket


def width_bucket(width: int) -> int:
    """Return the first of 64, 128 and 256 that a head's width fits into; a wider one is a bucket of its own."""
    return next((bucket for bucket in (64, 128, 256) if width <= bucket), width)


def ranked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    longest: int,
    options: Options,
    same: bool,
    deterministic: bool | None = None,
) -> tuple[str, ...]:
    """Return backends for `dispatch.resolve_backend` to try, fastest first; empty where nothing was measured.

    Args:
        query: [..., H, Dh], as key and value.
        longest: at least the longest sequence of queries or keys.
        same: queries and keys have the same offsets.
        deterministic: as `dispatch.must_repeat` takes it.
    """
    if not MEASURED or is_unknown(longest):
        return ()
    backward = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    width, dtype = query.shape[-1], query.dtype
    situation = Situation(
        _architecture(query.device),
        tuning.precision(dtype),
        width_bucket(width),
        length_bucket(longest),
        softcap=options.softcap > 0,
        causal=options.causal,
        backward=backward,
        repeats=not backward or must_repeat(deterministic),
    )
    return tuple(
        name
        for name in MEASURED.get(situation, ())
        if name == "triton" or not refusal(name, width, dtype, options, same)
    )
