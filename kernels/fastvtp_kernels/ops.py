"""Every op of this package in one table, read from the folders and from what they registered: nothing else lists them.

Tests, benchmarks and reports that want all ops, or those of one folder, take them from here. A new folder is in it as
soon as it exists.
"""

import importlib
import pkgutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from . import dispatch, registration


class OpFolder(NamedTuple):
    """One folder of this package and the ops in it."""

    name: str
    functions: tuple[str, ...]
    """What the folder exports to users: names in `fastvtp_kernels`."""
    dispatched: tuple[str, ...]
    """Those of them that have a choice of backends (`dispatch`); the others are plain PyTorch on every device."""
    registered: tuple[str, ...]
    """What the folder defines in torch's dispatcher: names in `torch.ops.fastvtp`."""


def _belongs_to(package: types.ModuleType, function: Callable[..., Any]) -> bool:
    return function.__module__.startswith(f"{package.__name__}.")


def _folder(name: str) -> OpFolder:
    package = importlib.import_module(f".{name}", __package__)
    functions = tuple(x for x in package.__all__ if isinstance(getattr(package, x), types.FunctionType))
    return OpFolder(
        name,
        functions,
        dispatched=tuple(x for x in functions if x in dispatch.ops()),
        # The plain PyTorch of a registered op stands in its own folder; its launcher comes from `registration`.
        registered=tuple(x for x, plain in registration.defined().items() if _belongs_to(package, plain)),
    )


OPS: dict[str, OpFolder] = {
    module.name: _folder(module.name) for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg
}
"""By folder, in alphabetical order."""
