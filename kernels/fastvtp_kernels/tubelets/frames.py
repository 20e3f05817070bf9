"""How kernels find the values of listed tubelets in the frames of a contiguous video.

A tubelet is pt * ph segments of pw * C consecutive values. The address of a value is its token's origin plus an offset
that all tokens share. `frames` is the tuple that `strides` returns.
"""
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (The body of a @triton.jit function is Triton's language, which looks like Python.)

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def token_origin(index_ptr, m, M, frames, PT: tl.constexpr, PH: tl.constexpr, SEGMENT: tl.constexpr):
    """Return the index of each listed token m, and the address (in elements, int64) of its first value."""
    tokens_per_clip, clip_stride, frame_stride, line_stride, grid_height, grid_width = frames
    index = tl.load(index_ptr + m, mask=m < M, other=0).to(tl.int32)
    slot = index // (grid_height * grid_width)
    y = (index // grid_width) % grid_height
    x = index % grid_width
    in_clip = slot.to(tl.int64) * (PT * frame_stride) + y * PH * line_stride + x * SEGMENT
    return index, (m // tokens_per_clip).to(tl.int64) * clip_stride + in_clip


@triton.jit
def value_offset(p, frames, PH: tl.constexpr, SEGMENT: tl.constexpr):
    """Return the address of value p of a token, relative to the token's first."""
    return line_offset(p // SEGMENT, frames, PH) + p % SEGMENT


@triton.jit
def line_offset(line, frames, PH: tl.constexpr):
    """Return the address of the first value of a token's segment `line`, relative to the token's first."""
    _, _, frame_stride, line_stride, _, _ = frames
    return (line // PH) * frame_stride + (line % PH) * line_stride


@triton.jit
def load_values(video_ptr, origin, offset, mask, ALIGNED: tl.constexpr):
    """Load values [rows, columns], of which runs of ALIGNED consecutive ones start at multiples of ALIGNED."""
    address = (
        tl.max_contiguous(tl.multiple_of(origin, ALIGNED)[:, None], [1, 1])
        + tl.max_contiguous(tl.multiple_of(offset, ALIGNED), ALIGNED)[None, :]
    )
    return tl.load(video_ptr + address, mask=mask, other=0)


@triton.jit
def byte_less(pixels, ZERO: tl.constexpr):
    """Return x - ZERO of integers in [0, 255] as float32, exactly.

    2^23 + x by setting mantissa bits; the integer-to-float unit is four times slower than an addition.
    """
    return (pixels | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + ZERO)


@triton.jit
def centered(pixels):
    """Return pixels as float32 in [-1, 1]: (x - 128) / 128 of bytes, which bfloat16 holds exactly, 2 x - 1 of
    numbers."""
    if pixels.dtype == tl.uint8:
        return byte_less(pixels.to(tl.int32), 128) * 0.0078125
    else:
        return pixels.to(tl.float32) * 2.0 - 1.0


def layout(video: Tensor, tubelet: Sequence[int]) -> dict[str, int]:
    """Return the constants by which the kernels address a contiguous video's tubelets."""
    width, channels = video.shape[3:]
    segment = tubelet[2] * channels
    # Vectors of up to 16 bytes, of as many values as both a segment and a scan line are multiples of.
    aligned = math.gcd(segment, width * channels, 16 // video.element_size())
    return {
        "P": tubelet[0] * tubelet[1] * segment,
        "PT": tubelet[0],
        "PH": tubelet[1],
        "SEGMENT": segment,
        "ALIGNED": aligned,
    }


def strides(video: Tensor, index: Tensor, tubelet: Sequence[int]) -> tuple[int, ...]:
    """Return the kernels' `frames`: tokens_per_clip, clip_stride, frame_stride, line_stride, grid_height and
    grid_width."""
    _, frames, height, width, channels = video.shape
    line = width * channels
    return index.shape[1], frames * height * line, height * line, line, height // tubelet[1], width // tubelet[2]
