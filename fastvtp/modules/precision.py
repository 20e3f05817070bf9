"""What is computed in float32 whatever dtype a model was cast to: heads, features that are compared, and losses."""

import torch
from torch import Tensor, nn


def wide(x: Tensor) -> Tensor:
    """Return x in float32, or float64 where it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer to x in float32, or float64 where either is that, whatever dtype its parameters were cast to.

    Under torch.autocast its matrices are multiplied as everywhere there. Parameters that are wide enough are used as
    they are, and others through a cast, which their gradients pass.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    for parameter in layer.parameters():
        dtype = torch.promote_types(dtype, parameter.dtype)
    cast = {name: value.to(dtype) for name, value in layer.named_parameters() if value.dtype != dtype}
    x = x.to(dtype)
    return torch.func.functional_call(layer, cast, (x,)) if cast else layer(x)
