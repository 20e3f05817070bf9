"""Bounds of learned parameters, such as a contrast's temperature.

A module that has some says so by an attribute `parameter_bounds`, name of the parameter -> (lowest, highest). It
computes with `within_bounds`, and whoever takes the optimizer's steps brings the parameters back by `clamp_parameters`.
"""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


def within_bounds(module: nn.Module, name: str) -> Tensor:
    """Return the value of a parameter of `module` within its bounds, if it has any; the gradient passes as if there
    were none, so that a parameter at its bound, or beyond, comes back. The parameter itself is left alone."""
    parameter = getattr(module, name)
    bounds = getattr(module, "parameter_bounds", {}).get(name)
    if bounds is None:
        return parameter
    value = parameter.detach()
    return value.clamp(*bounds) + (parameter - value)  # adds an exact 0, and the gradient


@torch.no_grad()
def clamp_parameters(model: nn.Module) -> None:
    """Bring all parameters of `model` that have bounds back within them, in place and without waiting for the device.

    Call it after each step of the optimizer, as `fastvtp.training.loop` does: CLIP (arXiv:2103.00020) and ALPRO
    (arXiv:2112.09583) bound their temperatures so. Without it values stay right, see `within_bounds`, but a parameter
    that has walked far beyond its bound takes as long to come back.
    """
    for _, parameter, (low, high) in _bounded(model):
        parameter.clamp_(low, high)


def warn_beyond_bounds(model: nn.Module, source: str) -> None:
    """Log what weights that were read from `source` hold beyond its bounds; it counts as the nearest one."""
    for name, parameter, (low, high) in _bounded(model):
        least, most = (float(value) for value in torch.aminmax(parameter.detach()))
        if least < low or most > high:
            found = f"{least:g}" if least == most else f"{least:g} to {most:g}"
            logger.warning(
                "%s: %s is %s, and counts as the nearest of its bounds %g, %g", source, name, found, low, high
            )


def _bounded(model: nn.Module) -> Iterator[tuple[str, Tensor, tuple[float, float]]]:
    for prefix, module in model.named_modules():
        for name, bounds in getattr(module, "parameter_bounds", {}).items():
            yield f"{prefix}.{name}".lstrip("."), getattr(module, name), bounds
