"""Which dtype an op computes in."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for 16-bit inputs, otherwise the dtype itself."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def follow_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors cast as torch.autocast casts the operands of a matmul; unchanged outside an autocast region."""
    device_type = tensors[0].device.type
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within the context an op's own choice of dtypes holds."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
