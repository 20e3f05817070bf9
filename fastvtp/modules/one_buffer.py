"""Records of many small tensors, brought to a device by one copy.

A plan holds a dozen index tensors of some kilobytes. Each copy of its own would cost the host a pinned allocation and a
launch; laid one behind the other in one pinned buffer they cost one of each.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record", bound=Any)

_ALIGNMENT = 16  # bytes: a tensor's first value may be read by the widest load of a kernel


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to `device` without the host's waiting for it, for which it must lie in pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def on_device(record: Record, device: torch.device | str) -> Record:
    """Return a copy of a dataclass whose tensors, and those of the dataclasses in it, are on `device`.

    What comes from the host to CUDA comes in one copy, which the host does not wait for, and shares one allocation.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return change_tensors(record, lambda tensor: tensor.to(device))
    found: list[Tensor] = []
    change_tensors(record, lambda tensor: found.append(tensor) or tensor)
    hosted = [tensor for tensor in found if tensor.device.type == "cpu"]
    copied = iter(split(lay_in_one(hosted, pinned=True).to(device, non_blocking=True), hosted))
    return change_tensors(record, lambda tensor: next(copied) if tensor.device.type == "cpu" else tensor.to(device))


def change_tensors(record: Record, change: Callable[[Tensor], Tensor]) -> Record:
    """Return a copy of a dataclass with each tensor of its and of the dataclasses in it changed, in the order of the
    fields."""
    changes = {}
    for name, value in vars(record).items():
        if isinstance(value, Tensor):
            changes[name] = change(value)
        elif is_dataclass(value):
            changes[name] = change_tensors(value, change)
    return replace(record, **changes)


def lay_in_one(tensors: Sequence[Tensor], *, pinned: bool = False) -> Tensor:
    """Lay the values of tensors of the host one behind the other, each from a multiple of 16 bytes on: uint8 [bytes].
    pinned: in memory that a device copies from by itself; torch keeps it until the copy is done."""
    buffer = torch.empty(_starts(tensors)[-1], dtype=torch.uint8, pin_memory=pinned)
    for part, tensor in zip(split(buffer, tensors), tensors, strict=True):
        part.copy_(tensor)
    return buffer


def split(buffer: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors that were laid in a buffer, as views of it, with the shapes and dtypes of `like`."""
    starts = _starts(like)
    return [
        buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, like, strict=False)
    ]


def _starts(tensors: Sequence[Tensor]) -> list[int]:
    """Return the byte at which each tensor begins, and behind the last one their sum."""
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT)
    return starts
