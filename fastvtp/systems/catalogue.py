"""The systems of this package, registered; models by name: creation, listing, loading.

Whatever needs a system of this package, a command above all, imports this file or `fastvtp.systems.recipes` once.
Packages from elsewhere are found by their entry points: what the group "fastvtp.systems" names is registered too.
"""

import logging
from importlib.metadata import entry_points
from typing import Any

import torch

from fastvtp.architecture import PRESETS, build_model, model_config, named_models, register
from fastvtp.model_folder import load_pretrained, open_model
from fastvtp.systems.alpro.system import SYSTEM as ALPRO
from fastvtp.systems.captioner.system import SYSTEM as CAPTIONER
from fastvtp.systems.simvtp.system import SYSTEM as SIMVTP
from fastvtp.systems.videomae.system import SYSTEM as VIDEOMAE
from fastvtp.systems.videoprism.system import SYSTEM as VIDEOPRISM

__all__ = ["PRESETS", "create_model", "list_models", "load_pretrained", "model_config", "open_model", "register"]

logger = logging.getLogger(__name__)

SYSTEMS = (SIMVTP, VIDEOMAE, ALPRO, VIDEOPRISM, CAPTIONER)


def list_models() -> list[str]:
    """Return names that `create_model` takes."""
    return sorted(named_models())


def create_model(name: str, *, preset: str = "fastvtp", device: torch.device | str = "cpu", **overrides: Any) -> Any:
    """Create a freshly initialised model.

    name: one of `list_models()`. preset: "official" (the released objectives) or "fastvtp" (recommended; the
    differences are tabled in the config's docstring). overrides: fields of the config. Raises UserError with the
    nearest known name.
    """
    return build_model(model_config(name, preset=preset, **overrides), device)


def _register_installed() -> None:
    """Register the systems of other packages; one that cannot be had is named in a warning, and the rest goes on."""
    for entry in entry_points(group="fastvtp.systems"):
        try:
            register(entry.load(), installed=True)
        except Exception as error:  # another package's code may raise anything
            logger.warning("the system %r of %s cannot be used: %s", entry.name, entry.value, error)


for _system in SYSTEMS:
    register(_system)
_register_installed()
