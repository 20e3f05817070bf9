"""fastvtp's own folders: every name in them, written and read here alone.

A model folder holds config.json and model.safetensors; beside them, where there are such, the tokenizer, lists that say
what outputs mean, and how clips were read:

    runs/mine/                      a run: train_config.json, metrics.jsonl, report.json, ...
        checkpoints/step_00000500/  a model folder whose weights are in shards, see `fastvtp.tensor_files`, with
                                    training_state.json; of earlier versions with model.safetensors, training_state.pt
        model/                      a model folder: the final weights
            config.json             {"architecture": ..., "config": {...}}, converted with "heads": {...}
            model.safetensors
            tokenizer.json          or vocab.txt, or SentencePiece's .model
            answers.json, classes.json, entities.txt
            reading.json
"""

import json
import logging
import math
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastvtp.architecture import architecture_of, build_model, check_options, find_architecture
from fastvtp.data.classes import read_class_names
from fastvtp.data.entities import read_entities
from fastvtp.data.questions import AnswerVocabulary
from fastvtp.data.reading import DEFAULT_FRAMING
from fastvtp.data.sampling import FRAMINGS
from fastvtp.data.text import Tokenizer
from fastvtp.data.tokenizers import TOKENIZER_NAMES, load_tokenizer
from fastvtp.errors import CheckpointError, few_of
from fastvtp.modules.bounds import warn_beyond_bounds
from fastvtp.modules.fitting import resize_tables
from fastvtp.modules.positions import describe_positions, keep_trained_sizes
from fastvtp.settings import from_json
from fastvtp.tensor_files import has_shards, read_model
from fastvtp.version import __version__

logger = logging.getLogger(__name__)

WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
RUN_CONFIG_NAME, STATE_NAME, TOKENIZER_NAME = "train_config.json", "training_state.pt", "tokenizer.json"
ANSWERS_NAME, CLASSES_NAME, ENTITIES_NAME = "answers.json", "classes.json", "entities.txt"
READING_NAME = "reading.json"
WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")  # of any origin


# --- Weights and configuration


def write_model_folder(
    folder: Path, model: nn.Module, architecture: str, *, heads: Mapping[str, str] | None = None
) -> None:
    """Write `model` (with a dataclass `config`) to `folder`, which is created. heads: where its numbers of heads come
    from, in words."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, model.state_dict())
    write_description(folder, model.config, architecture, heads=heads)


def write_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write model.safetensors. Raises OSError where the disk takes no more."""
    from safetensors import SafetensorError  # here, so that models can be built without it
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS_NAME)
    except SafetensorError as error:
        raise OSError(f"{folder / WEIGHTS_NAME}: {error}") from None
    # safetensors gives it to its owner alone; readable by whom a file here is
    (folder / WEIGHTS_NAME).chmod(stat.S_IMODE(folder.stat().st_mode) & 0o666)


def write_description(folder: Path, config: Any, architecture: str, *, heads: Mapping[str, str] | None = None) -> None:
    """Write config.json of a model with the dataclass `config`."""
    description = {"architecture": architecture, "fastvtp_version": __version__, "config": asdict(config)}
    if heads:
        description["heads"] = dict(heads)
    (folder / CONFIG_NAME).write_text(json.dumps(description, indent=2) + "\n")


def read_description(folder: Path) -> dict[str, Any]:
    """Read the content of config.json: architecture and config. Raises CheckpointError where it is absent or
    malformed."""
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
    if not isinstance(description["architecture"], str):
        raise CheckpointError(f"{path}: architecture must be a name, got {description['architecture']!r}")
    if not isinstance(description["config"], dict):
        raise CheckpointError(f"{path}: config must be an object of settings, got {description['config']!r}")
    return description


def build_config(config_class: type, values: dict[str, Any], source: Path) -> Any:
    """Return `config_class(**values)`, with unknown names reported as one line that names the file."""
    known = {field.name for field in fields(config_class)}
    if unknown := sorted(set(values) - known):
        raise CheckpointError(f"{source} has unknown {config_class.__name__} fields: {', '.join(unknown)}")
    try:
        return from_json(config_class, values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}") from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of model.safetensors, or of shards, on the CPU."""
    from safetensors.torch import load_file

    path = folder / WEIGHTS_NAME
    if not path.is_file():
        if has_shards(folder):
            return read_model(folder)
        raise CheckpointError(f"{folder} has no {WEIGHTS_NAME}")
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own unexported type on malformed files
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str | Path) -> None:
    """Copy `weights` into `model`. Raises CheckpointError for missing, unexpected or wrongly shaped keys."""
    check_fit(model, {name: tensor.shape for name, tensor in weights.items()}, source)
    model.load_state_dict(weights)
    warn_beyond_bounds(model, str(source))


def check_fit(model: nn.Module, shapes: Mapping[str, Sequence[int]], source: str | Path) -> None:
    """Raise CheckpointError where entries of these names and shapes are not those of `model`."""
    own = model.state_dict()
    problems = [f"missing {key}" for key in own.keys() - shapes.keys()]
    problems += [f"unexpected {key}" for key in shapes.keys() - own.keys()]
    problems += [
        f"{key} is {list(shapes[key])}, the model has {list(own[key].shape)}"
        for key in own.keys() & shapes.keys()
        if tuple(own[key].shape) != tuple(shapes[key])
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit {type(model).__name__}: {few_of(problems)}", problems)


def saved_model_config(folder: Path, config_class: type) -> Any:
    """Return the configuration of the model in a checkpoint, what its weights brought along included: a recipe does not
    know it. Raises CheckpointError with one line."""
    return build_config(config_class, read_description(folder)["config"], folder)


def load_pretrained(
    source: str | Path, *, device: torch.device | str = "cpu", position_resize: str = "bicubic", **overrides: Any
) -> Any:
    """Load a model in evaluation mode from what `find_folder` finds.

    overrides: fields of the config in place of the folder's, such as `num_frames=32`; tables of positions are brought
    to such sizes as `positions` and, of learned ones, `position_resize` say (see `load_checkpoint`), each with a
    warning. Raises CheckpointError with one line where the folder does not hold a fastvtp model or its weights do not
    fit, UserError for an unknown override.
    """
    folder = find_folder(source)
    config = described_config(folder, **overrides)
    model = build_model(config, device)  # initialised, since checkpoints leave position tables out
    weights, change = read_weights(folder), describe_positions(config)
    if overrides:
        weights = resize_tables(weights, model.state_dict(), position_resize, folder)
    load_weights(model, weights, folder)
    if change is not None:
        logger.warning("%s: %s", folder, change)
    return model.eval()


def find_folder(source: str | Path) -> Path:
    """Return the folder with the weights of a model, checkpoint or run folder, or of a repository of the Hugging Face
    hub, "user/name", which is downloaded. Raises CheckpointError for anything else, without asking the hub for what is
    named like a file."""
    folder = Path(source)
    if not str(source):
        raise CheckpointError("a model's name is empty: give a file, a folder, or user/name of the hub")
    if folder.exists():
        return model_folder(folder)
    if folder.suffix in (*WEIGHTS_SUFFIXES, ".ckpt", ".tar", ".pkl", ".h5", ".msgpack") or folder.parts[0] == "runs":
        raise CheckpointError(f"{source}: no such file or folder")
    if folder.is_absolute() or str(source).count("/") != 1 or str(source).startswith("."):
        raise CheckpointError(f"{source} is no folder (and not of the form user/name, a repository of the hub)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=[WEIGHTS_NAME, CONFIG_NAME]))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{source} is neither a local folder nor a reachable repository: {reason}") from None


def described_config(folder: Path, **overrides: Any) -> Any:
    """Return the configuration of the model in a folder, with these fields in place of the folder's. Raises
    CheckpointError with one line, and UserError for an unknown architecture or field."""
    description = read_description(folder)
    architecture, stated = find_architecture(description["architecture"]), description["config"]
    free = check_options(architecture.name, architecture.config, overrides)
    values = keep_trained_sizes(stated, {**architecture.recommended, **stated, **overrides}, free)
    return build_config(architecture.config, values, folder)


# --- Runs and their checkpoints


def clear_partial_folders(run_dir: Path) -> None:
    """Delete what a killed run left half-written or half-deleted."""
    for folder in (*run_dir.glob("partial_*"), *(run_dir / "checkpoints").glob("partial_*")):
        shutil.rmtree(folder)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first; their files may have been damaged since."""
    return [folder for folder in step_folders(run_dir) if has_shards(folder) or (folder / STATE_NAME).is_file()]


def step_folders(run_dir: Path) -> list[Path]:
    """Folders that bear the name of a checkpoint, oldest first."""
    folders = (run_dir / "checkpoints").glob("step_*")
    return sorted(folder for folder in folders if re.fullmatch(r"step_\d{8}", folder.name))


def model_folder(source: str | Path) -> Path:
    """Tell where the weights are: `source` itself, or of a run folder its final model, else its newest checkpoint.

    Raises CheckpointError for what is no folder and for a run without a checkpoint.
    """
    folder = Path(source)
    if folder.is_file():
        raise CheckpointError(f"{source} is no folder: make one of it first (fastvtp convert {source} FOLDER)")
    if not folder.is_dir():
        raise CheckpointError(f"{source} is no folder: expected a run, checkpoint or model folder")
    if not (folder / RUN_CONFIG_NAME).is_file():
        return folder
    candidates = [folder / "model"] if (folder / "model").is_dir() else list_checkpoints(folder)[-1:]
    if not candidates:
        raise CheckpointError(f"{folder} is a run without a checkpoint yet")
    return candidates[0]


def weights_of(source: str) -> Path:
    """Return a checkpoint file, or the folder with the weights where `source` is a run, checkpoint or model folder."""
    return model_folder(source) if Path(source).is_dir() else Path(source)


# --- Beside the weights


def tokenizer_beside(weights: Path) -> Tokenizer | None:
    """Return the tokenizer of a folder of weights, or None where there is none."""
    if any((weights / name).is_file() for name in TOKENIZER_NAMES):
        return load_tokenizer(weights)
    return None


def write_reading(folder: Path, framing: str, fps: float | None = None) -> None:
    """Say beside a model how frames came to its size, see `CropSampling`, and of clips that were read by time how many
    frames a second they had."""
    spacing = {} if fps is None else {"fps": fps}
    (folder / READING_NAME).write_text(json.dumps({"framing": framing, **spacing}) + "\n")


def read_framing(folder: Path) -> str:
    """Read what `write_reading` wrote; "crop" where nothing says. Raises CheckpointError for another content."""
    return recorded_framing(folder) or DEFAULT_FRAMING


def recorded_framing(folder: Path) -> str | None:
    """Read the framing as `read_framing` does, but None where nothing says."""
    reading = _recorded_reading(folder)
    return reading.get("framing") or reading.get("fit")


def recorded_fps(folder: Path) -> float | None:
    """Read how many frames a second the clips had that a model was trained on; None where nothing says, or they were
    read by frames. Raises CheckpointError as `read_framing` does."""
    return _recorded_reading(folder).get("fps")


def _recorded_reading(folder: Path) -> dict[str, Any]:
    """Read what `write_reading` wrote; empty where it did not. Earlier versions called the framing "fit"."""
    path = folder / READING_NAME
    if not path.is_file():
        return {}
    try:
        reading = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    said = dict(reading) if isinstance(reading, dict) else {}
    fps = said.pop("fps", 1)
    if said not in [{key: framing} for key in ("framing", "fit") for framing in FRAMINGS]:
        raise CheckpointError(f"{path}: expected the key 'framing', one of {', '.join(FRAMINGS)}, got {reading}")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise CheckpointError(f"{path}: expected 'fps', if there is one, to be a positive number, got {reading}")
    return reading


# --- A model with all of that


@dataclass(frozen=True)
class OpenedModel:
    """A model ready for evaluation, with what stands beside its weights.

    Attributes:
        model: in evaluation mode.
        known_tokenizer: None where the folder has none, which will do for videos, or the model reads no text.
        answers: those of an open-ended question answerer.
        class_names: those of a classifier; their numbers where nobody named them.
        entities: what a model that names things in crops was taught to look for.
        folder: where all of these come from.
        framing: how frames came to the model's size in its training.
        fps: frames a second of the clips that it was trained on; None: they were read by frames, or nobody knows.
    """

    model: Any
    known_tokenizer: Tokenizer | None
    answers: AnswerVocabulary | None = None
    class_names: Sequence[str] = ()
    entities: Sequence[str] = ()
    folder: Path | None = None
    framing: str = DEFAULT_FRAMING
    fps: float | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """Reads texts the way the model learned them. Raises CheckpointError where the folder has none."""
        if self.known_tokenizer is None:
            raise CheckpointError(
                f"{self.folder} has no {TOKENIZER_NAME}: texts cannot be read the way the model learned them"
            )
        return self.known_tokenizer


def open_model(source: str | Path, device: torch.device, **overrides: Any) -> OpenedModel:
    """Open the model of a model folder, a checkpoint, or a run folder (its final or newest weights), with what stands
    beside it. overrides: as in `load_pretrained`.

    Raises CheckpointError for anything else.
    """
    folder = model_folder(source)
    return with_files_beside(load_pretrained(folder, device=device, **overrides), folder)


def with_files_beside(model: Any, folder: Path) -> OpenedModel:
    """Return a model with the tokenizer and the lists in `folder`.

    Raises CheckpointError where a list is of another length than the model's head, or the answers are absent.
    """
    architecture = architecture_of(model)
    sizes = architecture.labels(model.config)
    answers, names, entities = None, (), ()
    path = folder / ANSWERS_NAME
    if "answers" in sizes and (sizes["answers"] > 1 or path.is_file()):
        if not path.is_file():
            raise CheckpointError(f"{folder} has no {ANSWERS_NAME}: nobody knows what the model's answers mean")
        answers = AnswerVocabulary.load(path)
        if len(answers) != sizes["answers"]:
            raise CheckpointError(f"{path} has {len(answers)} answers, the model {sizes['answers']}")
    path = folder / CLASSES_NAME
    if "classes" in sizes:
        names = read_class_names(path) if path.is_file() else tuple(map(str, range(sizes["classes"])))
        if len(names) != sizes["classes"]:
            raise CheckpointError(f"{path} has {len(names)} classes, the model {sizes['classes']}")
    path = folder / ENTITIES_NAME
    if "entities" in sizes and path.is_file():
        entities = read_entities(path)
    tokenizer = tokenizer_beside(folder) if architecture.reads_text else None
    return OpenedModel(model, tokenizer, answers, names, entities, folder, read_framing(folder), recorded_fps(folder))
