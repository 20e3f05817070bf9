"""Models by name: creation, listing, loading."""

import difflib
from pathlib import Path
from typing import Any

import torch

from fastvtp.checkpoints.native import CheckpointError, build_config, load_weights, read_description, read_weights
from fastvtp.errors import UserError
from fastvtp.models.simvtp import SimVTP, SimVTPConfig

ARCHITECTURES: dict[str, tuple[type, type]] = {"simvtp": (SimVTP, SimVTPConfig)}

SIZES: dict[str, dict[str, Any]] = {
    "simvtp_tiny": {
        "width": 192, "depth": 4, "num_heads": 3, "decoder_width": 96, "decoder_depth": 1, "decoder_num_heads": 3,
        "num_frames": 8, "image_size": 96, "max_text_length": 64,
    },
    "simvtp_small": {"width": 384, "num_heads": 6, "decoder_width": 192, "decoder_num_heads": 3},
    "simvtp_base": {},
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "official": {},
    "fastvtp": {
        "contrastive_text": "clean",
        "contrastive_directions": "mean",
        "projection_dim": 256,
        "learnable_temperature": True,
    },
}


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return sorted(SIZES)


def _one_of(kind: str, name: str, known: list[str]) -> str:
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise UserError(f"unknown {kind} {name!r}; {hint}")


def model_config(name: str, *, preset: str = "fastvtp", **overrides: Any) -> SimVTPConfig:
    """The configuration behind a name: size, then preset, then overrides."""
    size = SIZES[_one_of("model", name, list_models())]
    values = {**size, **PRESETS[_one_of("preset", preset, sorted(PRESETS))]}
    if preset == "fastvtp" and name == "simvtp_tiny":
        values["projection_dim"] = 128
    known = list(SimVTPConfig.__dataclass_fields__)
    for key in overrides:
        _one_of(f"{name} option", key, known)
    return SimVTPConfig(**{**values, **overrides})


def create_model(name: str, *, preset: str = "fastvtp", device: torch.device | str = "cpu", **overrides: Any) -> SimVTP:
    """A freshly initialised model.

    name: one of `list_models()`. preset: "official" (the released objectives) or "fastvtp" (recommended; the
    differences are tabled in the config's docstring). overrides: fields of the config. Raises ValueError with the
    nearest known name.
    """
    config = model_config(name, preset=preset, **overrides)
    # built on the meta device first: torch's constructors would initialise everything a first time, for nothing
    with torch.device("meta"):
        model = SimVTP(config)
    model.to_empty(device=device)
    model.init_weights()
    return model


def load_pretrained(source: str | Path, *, device: torch.device | str = "cpu") -> SimVTP:
    """A model in evaluation mode from a folder with model.safetensors and config.json, or from the Hugging Face hub.

    source: a local folder, or an id such as "user/name", which is downloaded. Raises CheckpointError with one line
    where the folder does not hold a fastvtp model or its weights do not fit.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.is_absolute() or str(source).count("/") != 1 or str(source).startswith("."):
            raise CheckpointError(f"{source} is no folder (and not of the form user/name, a repository of the hub)")
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(str(source), allow_patterns=["model.safetensors", "config.json"]))
        except Exception as error:
            raise CheckpointError(f"{source} is neither a local folder nor a reachable repository: {error}") from None
    description = read_description(folder)
    model_class, config_class = ARCHITECTURES[
        _one_of("architecture", description["architecture"], sorted(ARCHITECTURES))
    ]
    with torch.device("meta"):
        model = model_class(build_config(config_class, description["config"], folder))
    model.to_empty(device=device)
    model.init_weights()  # fills the position tables, which checkpoints leave out
    load_weights(model, read_weights(folder), folder)
    return model.eval()
