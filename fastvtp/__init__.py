"""fastvtp: masked video-text pretraining as fast as the hardware allows.

What is offered here is resolved on first use, so that importing the package (which every data-loading worker does)
loads neither torch nor any optional dependency. `register` adds a system of your own: see docs/extending.md.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from fastvtp.version import __version__

if importlib.util.find_spec("fastvtp_kernels") is None:
    raise ImportError("fastvtp needs its kernel package fastvtp_kernels: run `pip install -e .` in the checkout")

if TYPE_CHECKING:
    from fastvtp.systems.catalogue import create_model, list_models, load_pretrained, register

__all__ = ["__version__", "create_model", "list_models", "load_pretrained", "register"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("fastvtp.systems.catalogue"), name)
    raise AttributeError(f"module 'fastvtp' has no attribute {name!r}")
