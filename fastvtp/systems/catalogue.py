"""Models by name: creation, listing, loading."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastvtp.errors import CheckpointError, unknown_name
from fastvtp.model_folder import (
    build_config,
    load_weights,
    read_description,
    read_weights,
)
from fastvtp.systems.alpro.finetuning import (
    AlproQA,
    AlproQAConfig,
    AlproRetrieval,
    AlproRetrievalConfig,
)
from fastvtp.systems.alpro.model import Alpro
from fastvtp.systems.alpro.towers import (
    AlproConfig,
    AlproPrompterConfig,
    AlproTowers,
)
from fastvtp.systems.captioner.model import VideoCaptioner, VideoCaptionerConfig
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.model import SimVTP
from fastvtp.systems.simvtp.question_answering import VideoQA, VideoQAConfig
from fastvtp.systems.simvtp.retrieval import DualEncoder, DualEncoderConfig
from fastvtp.systems.videomae.classifier import VideoClassifier, VideoClassifierConfig
from fastvtp.systems.videomae.model import VideoMAE, VideoMAEConfig
from fastvtp.systems.videoprism.distillation import (
    PrismStudent,
    PrismStudentConfig,
    PrismTeacher,
    PrismTeacherConfig,
)
from fastvtp.systems.videoprism.encoder import (
    PrismClassifier,
    PrismClassifierConfig,
    VideoPrismConfig,
    VideoPrismEncoder,
)
from fastvtp.systems.videoprism.video_text import VideoTextPrism, VideoTextPrismConfig

# architecture -> (config, model); the name stands in config.json
ARCHITECTURES: dict[str, tuple[type, type[nn.Module]]] = {
    "simvtp": (SimVTPConfig, SimVTP),
    "videomae": (VideoMAEConfig, VideoMAE),
    "video_classifier": (VideoClassifierConfig, VideoClassifier),
    "dual_encoder": (DualEncoderConfig, DualEncoder),
    "video_qa": (VideoQAConfig, VideoQA),
    "video_captioner": (VideoCaptionerConfig, VideoCaptioner),
    "alpro": (AlproConfig, Alpro),
    "alpro_prompter": (AlproPrompterConfig, AlproTowers),
    "alpro_retrieval": (AlproRetrievalConfig, AlproRetrieval),
    "alpro_qa": (AlproQAConfig, AlproQA),
    "videoprism": (VideoPrismConfig, VideoPrismEncoder),
    "video_text_prism": (VideoTextPrismConfig, VideoTextPrism),
    "prism_classifier": (PrismClassifierConfig, PrismClassifier),
    "prism_teacher": (PrismTeacherConfig, PrismTeacher),
    "prism_student": (PrismStudentConfig, PrismStudent),
}

_TINY = {
    "width": 192, "depth": 4, "num_heads": 3, "decoder_width": 96, "decoder_depth": 1, "decoder_num_heads": 3,
    "num_frames": 8, "image_size": 96,
}  # fmt: skip
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": _TINY,
    "small": {"width": 384, "num_heads": 6, "decoder_width": 192, "decoder_num_heads": 3},
    "base": {},
    "large": {"width": 1024, "depth": 24, "num_heads": 16, "decoder_width": 512, "decoder_num_heads": 8},
    "huge": {"width": 1280, "depth": 32, "num_heads": 16, "decoder_width": 640, "decoder_num_heads": 8},
}

_ALPRO_TINY = {
    "width": 192, "depth": 4, "num_heads": 3, "image_size": 96, "text_depth": 2, "fusion_depth": 2,
    "text_num_heads": 3, "text_hidden": 768, "max_text_length": 64,
}  # fmt: skip

_PRISM_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "num_frames": 8, "image_size": 96, "patch_size": 12, "width": 192, "depth": 3, "temporal_depth": 2,
        "num_heads": 3, "mlp_hidden": 768,
    },
    "base": {},
    "large": {"num_frames": 8, "width": 1024, "depth": 24, "num_heads": 16, "mlp_hidden": 4096},
    "giant": {"num_frames": 8, "width": 1408, "depth": 40, "num_heads": 16, "mlp_hidden": 6144},
}  # fmt: skip
_PRISM_TEXT: dict[str, dict[str, Any]] = {
    "tiny": {"text_depth": 2, "auxiliary_depth": 0, "vocab_size": 30522},
    "giant": {"text_depth": 16, "text_norm": "primer_hybrid"},
}
_PRISM_STUDENT: dict[str, dict[str, Any]] = {
    "tiny": {
        "mask_min_cells": 6, "decoder_width": 128, "decoder_depth": 2, "decoder_num_heads": 4, "decoder_hidden": 512,
    },
}  # fmt: skip

# name -> (architecture, settings)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{system}_{size}": (system, dict(values)) for system in ("simvtp", "videomae") for size, values in _SIZES.items()
}
MODELS["simvtp_tiny"][1]["max_text_length"] = 64
MODELS |= {
    f"{architecture}_{size}": (architecture, dict(values))
    for architecture in ("alpro", "alpro_prompter")
    for size, values in (("base", {}), ("tiny", _ALPRO_TINY))
}
for _size, _values in _PRISM_SIZES.items():
    MODELS[f"videoprism_{_size}"] = ("videoprism", dict(_values))
    MODELS[f"videoprism_lvt_{_size}"] = ("video_text_prism", _values | _PRISM_TEXT.get(_size, {}))
    MODELS[f"prism_student_{_size}"] = ("prism_student", _values | _PRISM_STUDENT.get(_size, {}))

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "official": {},
    "fastvtp": {
        "simvtp": {
            "contrastive_text": "clean",
            "pad_text": False,
            "contrastive_directions": "mean",
            "projection_dim": 256,
            "learnable_temperature": True,
            "gather_negatives": True,
            "matching_negatives": "hard",
        },
        "alpro": {"ignore_rule": "paper"},
    },
}


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return sorted(MODELS)


def model_config(name: str, *, preset: str = "fastvtp", **overrides: Any) -> Any:
    """The configuration behind a name: size, then preset, then overrides. Raises UserError with the nearest name."""
    if name not in MODELS:
        raise unknown_name("model", name, list_models())
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    architecture, size = MODELS[name]
    config_class = ARCHITECTURES[architecture][0]
    values = {**PRESETS[preset].get(architecture, {}), **size}
    if preset == "fastvtp" and name == "simvtp_tiny":
        values["projection_dim"] = 128
    for key in overrides:
        if key not in config_class.__dataclass_fields__:
            raise unknown_name(f"{name} option", key, config_class.__dataclass_fields__)
    return config_class(**{**values, **overrides})


def architecture_of(config: Any) -> str:
    """The name in `ARCHITECTURES` of a configuration or model."""
    return next(name for name, kinds in ARCHITECTURES.items() if type(config) in kinds)


def build_model(config: Any, device: torch.device | str = "cpu") -> Any:
    """A freshly initialised model, from torch's global generator.

    It is built on the meta device first: torch's constructors would initialise everything once more, for nothing. The
    numbers are drawn on the CPU, so that a seed gives the same weights for every device.
    """
    with torch.device("meta"):
        model: Any = ARCHITECTURES[architecture_of(config)][1](config)
    model.to_empty(device="cpu")
    model.init_weights()
    return model.to(device)


def create_model(name: str, *, preset: str = "fastvtp", device: torch.device | str = "cpu", **overrides: Any) -> Any:
    """A freshly initialised model.

    name: one of `list_models()`. preset: "official" (the released objectives) or "fastvtp" (recommended; the
    differences are tabled in the config's docstring). overrides: fields of the config. Raises UserError with the
    nearest known name.
    """
    return build_model(model_config(name, preset=preset, **overrides), device)


def load_pretrained(source: str | Path, *, device: torch.device | str = "cpu") -> Any:
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
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{source} is neither a local folder nor a reachable repository: {reason}") from None
    description = read_description(folder)
    if description["architecture"] not in ARCHITECTURES:
        raise unknown_name("architecture", description["architecture"], ARCHITECTURES)
    config = build_config(ARCHITECTURES[description["architecture"]][0], description["config"], folder)
    model = build_model(config, device)  # initialised, since checkpoints leave the position tables out
    load_weights(model, read_weights(folder), folder)
    return model.eval()
