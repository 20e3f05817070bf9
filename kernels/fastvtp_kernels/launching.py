"""The one place where kernels are launched."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .interpreter import fix_interpreter_bf16
from .precision import allows_tf32
from .tuning import Tile


class Compiled(NamedTuple):
    """A kernel that was compiled in place of a launch."""

    kernel: str
    tile: Tile
    binary: Any
    programs: int
    """Of the launch's grid."""
    arguments: dict[str, Any]
    """Every argument by its name, the constants too."""


_compiled: list[Compiled] | None = None


def blocks(count: int, size: int) -> int:
    """Tell how many blocks of a size cover a count."""
    return -(-count // size)


def dot_precision(dtype: torch.dtype) -> str:
    """Tell how dots of `dtype` multiply: exactly, unless the user allowed TF32."""
    return "tf32" if dtype == torch.float32 and allows_tf32() else "ieee"


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, tile: Tile, **constants: Any) -> None:
    """Run `kernel` on `grid`; `tile` gives its block sizes and launch options, `constants` its other constexprs.

    The first argument is a tensor on the device to run on. An empty grid is no launch.
    """
    if 0 in grid:
        return
    options = {**tile.options, **constants}
    if _compiled is not None:
        arguments = {**dict(zip(kernel.arg_names, args, strict=False)), **options}
        binary = kernel.warmup(*args, grid=grid, **options)
        _compiled.append(Compiled(kernel.__name__, tile, binary, math.prod(grid), arguments))
        return
    if args[0].device.type == "cpu":
        fix_interpreter_bf16()
    if _is_current(args[0]):
        kernel[grid](*args, **options)
        return
    with torch.cuda.device(args[0].device):
        kernel[grid](*args, **options)


def _is_current(tensor: Tensor) -> bool:
    return tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device()


@contextlib.contextmanager
def compile_only() -> Iterator[list[Compiled]]:
    """Within the context launches compile for Triton's active target and are listed, not run."""
    global _compiled
    _compiled, outer = [], _compiled
    try:
        yield _compiled
    finally:
        _compiled = outer
