"""A folder of parity arrays: what a released system was given and what it gave."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastvtp.errors import UserError

_OF_A_CASE = ("video_mask", "text_input_ids")  # inputs that every clip has one of
_FINE_TUNED = ("finetune_extra.safetensors", "qa_extra.safetensors")


@dataclass(frozen=True)
class ParityFolder:
    """config: config.json. weights: by official name. inputs, outputs: the arrays; outputs also hold the retrieval
    metrics of config.json, as "retrieval_metrics.<direction>.<metric>". fine_tuned: weights that the fine-tuned model
    has instead of the pretrained ones; None: there is no such file.
    """

    path: Path
    config: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    fine_tuned: dict[str, Tensor] | None

    def setting(self, name: str) -> Any:
        """A setting that config.json must have."""
        if name not in self.config:
            raise UserError(f"{self.path / 'config.json'} has no {name!r}")
        return self.config[name]

    def input(self, name: str) -> Tensor:
        """An array that inputs.safetensors must have."""
        if name not in self.inputs:
            raise UserError(f"{self.path / 'inputs.safetensors'} has no {name!r}")
        return self.inputs[name]

    def cases(self) -> list[str]:
        """Prefixes of the clips in the inputs: "" for `video`, "b2_" for `b2_video` with `b2_video_mask`; those that
        end in "/" or "." need no mask to be told."""
        prefixes = [name.removesuffix("video") for name in sorted(self.inputs) if name.endswith("video")]
        return [
            prefix
            for prefix in prefixes
            if prefix.endswith(("/", ".")) or any(prefix + name in self.inputs for name in _OF_A_CASE)
        ] or [""]

    def outputs_of(self, name: str) -> list[str]:
        """The outputs that are called `name`, as they stand: plain, or with the prefix of a case."""
        return [prefixed for case in dict.fromkeys(["", *self.cases()]) if (prefixed := case + name) in self.outputs]

    def check_fixed(self, **fixed: float) -> None:
        """Refuse what a model does not let one choose, where config.json states it otherwise."""
        for name, value in fixed.items():
            if self.config.get(name, value) != value:
                raise UserError(f"{self.path / 'config.json'}: {name} is {self.config[name]}, the model has {value:g}")


def read_folder(path: Path) -> ParityFolder:
    """Read a folder; raises UserError with one line where a needed file is absent or unreadable."""
    config = read_config(path)
    outputs = read_arrays(path / "outputs.safetensors")
    for direction, metrics in config.get("retrieval_metrics", {}).items():
        for name, value in metrics.items():
            outputs[f"retrieval_metrics.{direction}.{name}"] = torch.tensor(value, dtype=torch.float64)
    weights, inputs = read_arrays(path / "state_dict.safetensors"), read_arrays(path / "inputs.safetensors")
    extra = next((path / name for name in _FINE_TUNED if (path / name).is_file()), None)
    return ParityFolder(path, config, weights, inputs, outputs, None if extra is None else read_arrays(extra))


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a folder; raises UserError with one line where it is absent or malformed."""
    config_path = path / "config.json"
    if not config_path.is_file():
        raise UserError(f"{path} is no folder of parity arrays: it has no config.json")
    try:
        config = json.loads(config_path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{config_path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{config_path} holds a {type(config).__name__}, expected an object")
    return config


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a file; raises UserError with one line where it is absent or unreadable."""
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None
