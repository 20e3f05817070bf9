"""Saving and resuming a run.

A checkpoint is a folder `checkpoints/step_00000500` with the model (model.safetensors, config.json), its tokenizer and
labels, how its clips were read (reading.json), and training_state.pt. Where weights are averaged, the model is their
average, which is what evaluation wants, and training_state.pt also holds the weights that training goes on from. A
checkpoint is written under another name and renamed when complete, so that a run killed at any moment leaves only whole
checkpoints. The data stream is a function of (seed, step) and needs no state.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from fastvtp.checkpoints.native import (
    CheckpointError,
    build_config,
    load_weights,
    read_description,
    read_weights,
    write_model_folder,
)
from fastvtp.data.prism_tokenization import SENTENCEPIECE_NAMES
from fastvtp.data.sampling import FITS
from fastvtp.data.tokenization import CaptionTokenizer
from fastvtp.models.registry import architecture_of

CONFIG_NAME, STATE_NAME, TOKENIZER_NAME = "train_config.json", "training_state.pt", "tokenizer.json"
READING_NAME = "reading.json"
_TOKENIZER_FILES = (TOKENIZER_NAME, "vocab.txt", *SENTENCEPIECE_NAMES)


@dataclass
class Progress:
    """What a run carries from step to step besides weights, optimizer and random state."""

    annotations: str = ""
    """Digest of the training data, labels included; others would give another stream of clips."""
    device: str = "cpu"
    """Kind of device; another one rounds differently."""
    step: int = 0
    """Steps done."""
    train_seconds: float = 0.0
    bad_files: dict[str, str] = field(default_factory=dict)
    """Undecodable files met so far, with the reason."""


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
    if not (folder / CONFIG_NAME).is_file():
        return folder
    candidates = [folder / "model"] if (folder / "model").is_dir() else list_checkpoints(folder)[-1:]
    if not candidates:
        raise CheckpointError(f"{folder} is a run without a checkpoint yet")
    return candidates[0]


def weights_of(source: str) -> Path:
    """A checkpoint file, or the folder with the weights where `source` is a run, checkpoint or model folder."""
    return model_folder(source) if Path(source).is_dir() else Path(source)


def tokenizer_beside(weights: Path) -> CaptionTokenizer | None:
    """The tokenizer of a folder of weights, or None where there is none."""
    if any((weights / name).is_file() for name in _TOKENIZER_FILES):
        return CaptionTokenizer.load(weights)
    return None


def write_reading(folder: Path, fit: str) -> None:
    """Say beside a model how frames came to its size, see `CropSampling`."""
    (folder / READING_NAME).write_text(json.dumps({"fit": fit}) + "\n")


def read_fit(folder: Path) -> str:
    """What `write_reading` wrote; "crop" where nothing says. Raises CheckpointError for another content."""
    return recorded_fit(folder) or "crop"


def recorded_fit(folder: Path) -> str | None:
    """The same, but None where nothing says."""
    path = folder / READING_NAME
    if not path.is_file():
        return None
    try:
        reading = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if reading not in [{"fit": fit} for fit in FITS]:
        raise CheckpointError(f"{path}: expected the key 'fit', one of {', '.join(FITS)}, got {reading}")
    return reading["fit"]


def write_inference_folder(folder: Path, model: Any, write_companions: Callable[[Path], None]) -> None:
    """All that evaluation needs: weights, config, and what `write_companions` adds (tokenizer, labels)."""
    write_model_folder(folder, model, architecture_of(model))
    write_companions(folder)


def save_checkpoint(
    run_dir: Path,
    model: Any,
    optimizer: torch.optim.Optimizer,
    averaged: AveragedModel | None,
    progress: Progress,
    write_companions: Callable[[Path], None],
    *,
    keep: int,
) -> Path:
    """Write the checkpoint of `progress.step` and delete all but the newest `keep`."""
    kept, average = model, None
    if averaged is not None:
        kept, average = averaged.module, {"n_averaged": averaged.n_averaged, "raw_weights": model.state_dict()}
    state: dict[str, Any] = {
        "optimizer": optimizer.state_dict(),
        "averaged": average,
        "progress": vars(progress),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(model.device) if model.device.type == "cuda" else None,
    }

    def write(folder: Path) -> None:
        write_inference_folder(folder, kept, write_companions)
        torch.save(state, folder / STATE_NAME)

    final = run_dir / "checkpoints" / f"step_{progress.step:08d}"
    publish_folder(final, write)
    for old in list_checkpoints(run_dir)[:-keep]:
        _remove(old)
    return final


def saved_model_config(folder: Path, config_class: type) -> Any:
    """The configuration of the model in a checkpoint, what its weights brought along included: a recipe does not know
    it. Raises CheckpointError with one line."""
    return build_config(config_class, read_description(folder)["config"], folder)


def read_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds besides weights, its "progress" as a `Progress`. Raises CheckpointError with one line."""
    with _one_line(folder):
        state = torch.load(folder / STATE_NAME, map_location="cpu", weights_only=True)
        return {**state, "progress": Progress(**state["progress"])}


def restore_checkpoint(
    folder: Path,
    state: dict[str, Any],
    model: Any,
    optimizer: torch.optim.Optimizer,
    averaged: AveragedModel | None,
) -> None:
    """Load the weights of `folder` and its `state`, from `read_state`, in place, torch's generators included.

    Raises CheckpointError with one line.
    """
    load_weights(model if averaged is None else averaged.module, read_weights(folder), folder)
    with _one_line(folder):
        optimizer.load_state_dict(state["optimizer"])
        if averaged is not None:
            averaged.n_averaged.copy_(state["averaged"]["n_averaged"])
            load_weights(model, state["averaged"]["raw_weights"], folder)
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and model.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], model.device)


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damaged bytes make torch.load raise nearly anything
        path = folder / STATE_NAME
        raise CheckpointError(f"{path} is not a usable training state: {error}".splitlines()[0]) from None
