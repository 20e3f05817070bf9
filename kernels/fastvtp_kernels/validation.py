"""Checks shared by the ops. Each failure is one line: the op, the argument, what it was and what was expected.

Shapes and dtypes are always checked. Values are read where that costs no synchronisation: in eager tensors on the CPU,
and with FASTVTP_DEBUG=1 on a GPU too; never under torch.compile or in fake tensors.
"""

import os
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .derivatives import is_wrapped, transforming
from .philox import Word

DEBUG_VARIABLE = "FASTVTP_DEBUG"
INDEX_DTYPES = (torch.int32, torch.int64)


def values_readable(tensor: Tensor) -> bool:
    """Tell whether looking at the tensor's values is free of graph breaks and, but in debug mode, of
    synchronisation; those that torch.func.vmap works on are no values of one sample."""
    if torch.compiler.is_compiling() or type(tensor) is not Tensor or (transforming() and is_wrapped(tensor)):
        return False
    device = tensor.device.type
    if device != "cuda":
        return device == "cpu"
    return os.environ.get(DEBUG_VARIABLE) == "1" and not torch.cuda.is_current_stream_capturing()


def check_devices(op: str, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors are on one device; None is no tensor."""
    first, same = None, True
    for tensor in tensors.values():
        if tensor is not None:
            first = tensor.device if first is None else first
            same = same and tensor.device == first
    if not same:
        devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
        found = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{op}: {found}, expected one device")


def check_seed(op: str, seed: int | Tensor, step: int | Tensor = 0, *, device: torch.device) -> tuple[Word, Word]:
    """Return the seed and the step, tensors as int64 [1].

    Raises:
        ValueError: not 0 <= seed < 2^64 or not 0 <= step < 2^32 (of a tensor where `values_readable`), or a tensor is
            not on the device.
        TypeError: a tensor is not one int64.
    """
    if type(seed) is int and type(step) is int and 0 <= seed < 2**64 and 0 <= step < 2**32:
        return seed, step
    given = {"seed": seed, "step": step}
    for (name, value), bits in zip(given.items(), (64, 32), strict=True):
        if isinstance(value, Tensor):
            if value.dtype != torch.int64 or value.numel() != 1:
                found = f"{value.dtype} {list(value.shape)}"
                raise TypeError(f"{op}: {name} is {found}, expected an integer or one int64 in a tensor")
            if value.device != device:
                raise ValueError(f"{op}: {name} on {value.device}, expected one device, {device}")
            given[name] = value.reshape(1)
            # All values of 64 bits are seeds, in two's complement.
            if name == "seed" or not values_readable(value):
                continue
            value = int(value)
        if not 0 <= value < 2**bits:
            raise ValueError(f"{op}: {name} is {value}, expected 0 <= {name} < 2**{bits}")
    return given["seed"], given["step"]


def check_floating(op: str, **tensors: Tensor) -> None:
    """Raise TypeError unless all tensors are of floating-point dtypes."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} is {tensor.dtype}, expected a floating-point dtype")


def check_shape(op: str, name: str, tensor: Tensor, *expected: int | str) -> None:
    """Raise ValueError unless the shape is the expected one: numbers must match, letters stand for any size."""
    shape = tensor.shape
    fits = len(shape) == len(expected)
    if fits:
        for size, want in zip(shape, expected, strict=True):
            if not isinstance(want, str) and size != want:
                fits = False
    if not fits:
        raise ValueError(f"{op}: {name} has shape {list(shape)}, expected [{', '.join(map(str, expected))}]")


def check_video(op: str, video: Tensor, tubelet: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the tubelet grid (t, h, w) of a video [B, T, H, W, C].

    Raises:
        ValueError: the video has another shape, or the tubelet does not divide it.
        TypeError: it is neither uint8 nor floating point.
    """
    check_shape(op, "video", video, "B", "T", "H", "W", "C")
    if video.dtype != torch.uint8 and not video.is_floating_point():
        raise TypeError(f"{op}: video is {video.dtype}, expected uint8, or floating point in [0, 1]")
    size = tuple(video.shape[1:4])
    if len(tubelet) != 3 or any(side < 1 or pixels % side for pixels, side in zip(size, tubelet, strict=True)):
        raise ValueError(f"{op}: tubelet {tuple(tubelet)} does not divide the video's (T, H, W) = {size}")
    return size[0] // tubelet[0], size[1] // tubelet[1], size[2] // tubelet[2]


def check_channels(op: str, name: str, values: Sequence[float], channels: int) -> None:
    """Raise ValueError unless there is one value per channel."""
    if len(values) != channels:
        raise ValueError(f"{op}: {name} has {len(values)} values, expected one per channel ({channels})")


def check_index(op: str, name: str, index: Tensor, count: int, *shape: int | str, what: str = "token indices") -> None:
    """Raise unless the indices are int32 or int64, of the given shape (as for `check_shape`), each in [0, count).

    On an accelerator the range is checked under FASTVTP_DEBUG=1 alone: it makes the host wait.
    """
    check_shape(op, name, index, *shape)
    if index.dtype not in INDEX_DTYPES:
        raise TypeError(f"{op}: {name} is {index.dtype}, expected int32 or int64")
    if values_readable(index) and index.numel():
        smallest, largest = (int(value) for value in index.aminmax())
        if smallest < 0 or largest >= count:
            raise ValueError(f"{op}: {name} holds {smallest}..{largest}, expected {what} in [0, {count})")


def check_cu_seqlens(op: str, name: str, cu_seqlens: Tensor, rows: int, max_seqlen: int | None = None) -> None:
    """Raise unless the offsets are int32 [S+1] from 0, never falling, up to `rows` at most.

    No sequence may be longer than max_seqlen. Values are looked at where `values_readable`.
    """
    if cu_seqlens.ndim != 1:
        check_shape(op, name, cu_seqlens, "S+1")
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.shape[0] == 0:
        raise TypeError(f"{op}: {name} is {cu_seqlens.dtype} {list(cu_seqlens.shape)}, expected int32 [S+1]")
    if not values_readable(cu_seqlens):
        return
    offsets = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(offsets)]
    if offsets[0] != 0 or offsets[-1] > rows or any(length < 0 for length in lengths):
        raise ValueError(f"{op}: {name} must start at 0, never fall and end at or below the {rows} rows given")
    longest = max(lengths, default=0)
    if max_seqlen is not None and longest > max_seqlen:
        raise ValueError(f"{op}: max_seqlen is {max_seqlen}, but the longest sequence of {name} has {longest} rows")


def check_lengths(op: str, name: str, lengths: Tensor, cu_seqlens: Tensor) -> None:
    """Raise unless there is one int32 length for each of the sequences of cu_seqlens [S+1], from 0 to its rows.

    Values are looked at where `values_readable`.
    """
    check_shape(op, name, lengths, cu_seqlens.shape[0] - 1)
    if lengths.dtype != torch.int32:
        raise TypeError(f"{op}: {name} is {lengths.dtype}, expected int32")
    if not values_readable(lengths) or not values_readable(cu_seqlens):
        return
    rows = cu_seqlens.diff().tolist()
    for sequence, (length, most) in enumerate(zip(lengths.tolist(), rows, strict=True)):
        if not 0 <= length <= most:
            raise ValueError(f"{op}: {name}[{sequence}] is {length}, but sequence {sequence} has {most} rows")
