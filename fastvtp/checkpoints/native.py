"""fastvtp's own model format: a folder with model.safetensors and config.json."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastvtp.errors import UserError
from fastvtp.version import __version__

WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"


class CheckpointError(UserError):
    """A checkpoint that is absent, malformed, or does not fit the model; the message is one line."""


def write_model_folder(folder: Path, model: nn.Module, architecture: str) -> None:
    """Write `model` (with a dataclass `config`) to `folder`, which is created."""
    from safetensors.torch import save_file  # here, so that models can be built without it

    folder.mkdir(parents=True, exist_ok=True)
    description = {"architecture": architecture, "fastvtp_version": __version__, "config": asdict(model.config)}  # pyright: ignore[reportArgumentType, reportCallIssue]
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(description, indent=2) + "\n")


def read_description(folder: Path) -> dict[str, Any]:
    """The content of config.json: architecture and config. Raises CheckpointError where it is absent or malformed."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} is no fastvtp model folder: it has no {CONFIG_NAME}")
    try:
        description = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    for key in ("architecture", "config"):
        if key not in description:
            raise CheckpointError(f"{path} has no key {key!r}")
    return description


def build_config(config_class: type, values: dict[str, Any], source: Path) -> Any:
    """`config_class(**values)`, with unknown names reported as one line that names the file."""
    known = {field.name for field in fields(config_class)}
    if unknown := sorted(set(values) - known):
        raise CheckpointError(f"{source} has unknown {config_class.__name__} fields: {', '.join(unknown)}")
    try:
        return config_class(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}") from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of model.safetensors, on the CPU."""
    from safetensors.torch import load_file

    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS_NAME}")
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own unexported type on malformed files
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str | Path) -> None:
    """Copy `weights` into `model`; every missing, unexpected or wrongly shaped key is named in the one error."""
    own = model.state_dict()
    problems = [f"missing {key}" for key in own.keys() - weights.keys()]
    problems += [f"unexpected {key}" for key in weights.keys() - own.keys()]
    problems += [
        f"{key} is {list(weights[key].shape)}, the model has {list(own[key].shape)}"
        for key in own.keys() & weights.keys()
        if own[key].shape != weights[key].shape
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit {type(model).__name__}: " + "; ".join(sorted(problems)))
    model.load_state_dict(weights)
