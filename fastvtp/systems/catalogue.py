"""The systems of this package, registered; models by name: creation, listing, loading.

Whatever needs a system of this package, a command above all, imports this file or `fastvtp.systems.recipes` once.
Packages from elsewhere are found by their entry points: what the group "fastvtp.systems" names is registered too.
"""

import logging
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from fastvtp.architecture import PRESETS, build_model, model_config, named_models, register
from fastvtp.checkpoints.opening import is_foreign, open_checkpoint
from fastvtp.model_folder import find_folder, open_model
from fastvtp.model_folder import load_pretrained as load_model_folder
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


def load_pretrained(
    source: str | Path, *, device: torch.device | str = "cpu", position_resize: str = "bicubic", **settings: Any
) -> Any:
    """Load a model in evaluation mode, from whatever holds one.

    source: a model folder, a run folder (its final weights, else its newest), an id on the Hugging Face hub such as
    "user/name", which is downloaded, or a checkpoint of another project as `fastvtp convert` takes it, a file or a
    folder: VideoMAE's .pth, VideoPrism's .npz, a folder of transformers. Of a checkpoint a log line says where its
    numbers of heads come from and which parts of the model begin at random; its tokenizer and lists are not read.
    settings: fields of the configuration, for what a checkpoint's tensors do not show, such as num_heads=16, and for
    clips of another size than it was trained at, such as num_frames=32 or image_size=448: tables of positions are
    brought to it as `positions` and, of learned ones, `position_resize` say (see `load_checkpoint`), with a warning.
    Raises UserError with one line.
    """
    if Path(source).is_file():
        return open_checkpoint(source, device=device, position_resize=position_resize, **settings)
    folder = find_folder(source)
    opened = open_checkpoint if is_foreign(folder) else load_model_folder
    return opened(folder, device=device, position_resize=position_resize, **settings)


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
