"""Which dtype an op computes in."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# torch.amp.is_autocast_available cannot be traced by torch.compile before torch 2.12.
_AUTOCAST_DEVICES = ("cpu", "cuda")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: float32 for inputs of up to 32 bits, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# torch.compile cannot trace the question.
@torch.compiler.assume_constant_result
def allows_tf32() -> bool:
    """Tell whether the user lets torch multiply float32 matrices in TF32, by either of its interfaces."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype that torch.autocast gives to an operand of a matmul; the tensor's own outside an autocast
    region."""
    device_type = tensor.device.type
    if tensor.dtype == torch.float64 or device_type not in _AUTOCAST_DEVICES:
        return tensor.dtype
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else tensor.dtype


def _autocasting(device: torch.device) -> bool:
    return device.type in _AUTOCAST_DEVICES and torch.is_autocast_enabled(device.type)


def follow_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors cast as torch.autocast casts the operands of a matmul; unchanged outside an autocast
    region."""
    if not _autocasting(tensors[0].device):
        return tensors
    return tuple(tensor.to(autocast_dtype(tensor)) for tensor in tensors)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within the context an op's own choice of dtypes holds."""
    if not _autocasting(device):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def outside_autocast(run: Callable[..., Any], *inputs: Any) -> Any:
    """Return run(*inputs), `without_autocast` on the device of the first input."""
    device = inputs[0].device
    if not _autocasting(device):
        return run(*inputs)
    with without_autocast(device):
        return run(*inputs)


def accumulate_product(total: Tensor, x: Tensor, y: Tensor) -> None:
    """total += x @ y in the dtype of `total`, which may be wider than that of the factors."""
    if x.dtype == total.dtype:
        total.addmm_(x, y)
    elif x.is_cuda:
        torch.addmm(total, x, y, out_dtype=total.dtype, out=total)
    else:
        # On the CPU addmm has no out_dtype.
        total.addmm_(x.to(total.dtype), y.to(total.dtype))
