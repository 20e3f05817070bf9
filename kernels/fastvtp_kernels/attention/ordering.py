"""In which order programs take the sequences."""

import torch
from torch import Tensor

from ..launching import blocks
from ..symbolic import holds
from . import registered

SHORT = 32
"""Sequences up to this length are too alike to be sorted."""
ONE_WAVE = 100
"""So many programs start at once, whatever their order."""
_ORDER = "_fastvtp_longest_first"


def longest_first(offsets: Tensor, heads: int, longest: int) -> Tensor | None:
    """Return the sequences by falling length, int32 [S]: the long ones must not be left for the end of the launch.

    None where the order does not matter. In eager mode it is kept with the offsets, which all layers of a step share,
    for the stream that computed it. If they are changed in place later, the order is merely no longer the best one:
    any order is right. Compiled code computes it once for all layers, a captured graph in each forward pass.
    """
    if torch.compiler.is_compiling() or type(offsets) is not Tensor:
        if holds(longest <= SHORT) or holds((offsets.shape[0] - 1) * heads * blocks(longest, 64) <= ONE_WAVE):
            return None
        return registered.attention_order(offsets)
    if longest <= SHORT or (offsets.shape[0] - 1) * heads * blocks(longest, 64) <= ONE_WAVE:
        return None
    stream = 0
    if offsets.is_cuda:
        # What a capture computes has no values before its first replay, and what it reads must outlive it.
        if torch.cuda.is_current_stream_capturing():
            return registered.attention_order(offsets)
        stream = torch.cuda.current_stream(offsets.device).cuda_stream
    kept = getattr(offsets, _ORDER, None)
    if kept is None or kept[0] != stream:
        kept = stream, registered.attention_order(offsets)
        setattr(offsets, _ORDER, kept)
    return kept[1]
