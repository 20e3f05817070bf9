"""fastvtp's own model format: a folder with model.safetensors and config.json."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastvtp.data.reading import DEFAULT_FRAMING
from fastvtp.data.sampling import FRAMINGS
from fastvtp.data.text import Tokenizer
from fastvtp.data.tokenizers import TOKENIZER_NAMES, load_tokenizer
from fastvtp.errors import CheckpointError
from fastvtp.settings import from_json
from fastvtp.version import __version__

WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"


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
        return from_json(config_class, values)
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


ANSWERS_NAME, CLASSES_NAME = "answers.json", "classes.json"


RUN_CONFIG_NAME, STATE_NAME, TOKENIZER_NAME = "train_config.json", "training_state.pt", "tokenizer.json"


READING_NAME = "reading.json"


def publish_folder(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder and give it its name only when it is complete and on the disk."""
    partial = final.with_name(f"partial_{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    for path in (*partial.iterdir(), partial):
        _sync(path)
    _remove(final)
    partial.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_partial_folders(run_dir: Path) -> None:
    """Delete what a killed run left half-written or half-deleted."""
    for folder in (*run_dir.glob("partial_*"), *(run_dir / "checkpoints").glob("partial_*")):
        shutil.rmtree(folder)


def _remove(folder: Path) -> None:
    """Delete a folder under another name, so that a kill half-way leaves nothing that looks whole."""
    if folder.exists():
        doomed = folder.with_name(f"partial_old_{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folders = (run_dir / "checkpoints").glob("step_*")
    return sorted(f for f in folders if re.fullmatch(r"step_\d{8}", f.name) and (f / STATE_NAME).is_file())


def model_folder(source: str | Path) -> Path:
    """Where the weights are: `source` itself, or of a run folder its final model, else its newest checkpoint.

    Raises CheckpointError for what is no folder and for a run without a checkpoint.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise CheckpointError(f"{source} is no folder: expected a run, checkpoint or model folder")
    if not (folder / RUN_CONFIG_NAME).is_file():
        return folder
    candidates = [folder / "model"] if (folder / "model").is_dir() else list_checkpoints(folder)[-1:]
    if not candidates:
        raise CheckpointError(f"{folder} is a run without a checkpoint yet")
    return candidates[0]


def weights_of(source: str) -> Path:
    """A checkpoint file, or the folder with the weights where `source` is a run, checkpoint or model folder."""
    return model_folder(source) if Path(source).is_dir() else Path(source)


def tokenizer_beside(weights: Path) -> Tokenizer | None:
    """The tokenizer of a folder of weights, or None where there is none."""
    if any((weights / name).is_file() for name in TOKENIZER_NAMES):
        return load_tokenizer(weights)
    return None


def write_reading(folder: Path, framing: str) -> None:
    """Say beside a model how frames came to its size, see `CropSampling`."""
    (folder / READING_NAME).write_text(json.dumps({"framing": framing}) + "\n")


def read_framing(folder: Path) -> str:
    """What `write_reading` wrote; "crop" where nothing says. Raises CheckpointError for another content."""
    return recorded_framing(folder) or DEFAULT_FRAMING


def recorded_framing(folder: Path) -> str | None:
    """The same, but None where nothing says. Earlier versions called the framing "fit"."""
    path = folder / READING_NAME
    if not path.is_file():
        return None
    try:
        reading = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if reading not in [{key: framing} for key in ("framing", "fit") for framing in FRAMINGS]:
        raise CheckpointError(f"{path}: expected the key 'framing', one of {', '.join(FRAMINGS)}, got {reading}")
    return reading.get("framing") or reading["fit"]


def saved_model_config(folder: Path, config_class: type) -> Any:
    """The configuration of the model in a checkpoint, what its weights brought along included: a recipe does not know
    it. Raises CheckpointError with one line."""
    return build_config(config_class, read_description(folder)["config"], folder)


ENTITIES_NAME = "entities.txt"
