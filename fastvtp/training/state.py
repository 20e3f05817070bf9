"""Saving and resuming a run.

A checkpoint is a folder `checkpoints/step_00000500` with the model (model.safetensors, config.json), its tokenizer and
labels, how its clips were read (reading.json), and training_state.pt. Where weights are averaged, the model is their
average, which is what evaluation wants, and training_state.pt also holds the weights that training goes on from. A
checkpoint is written under another name and renamed when complete, so that a run killed at any moment leaves only whole
checkpoints. The data stream is a function of (seed, step) and needs no state.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from fastvtp.architecture import architecture_of
from fastvtp.errors import CheckpointError
from fastvtp.files import publish_folder, remove_folder
from fastvtp.model_folder import (
    STATE_NAME,
    list_checkpoints,
    load_weights,
    read_weights,
    write_model_folder,
)


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


def write_inference_folder(folder: Path, model: Any, write_files_beside: Callable[[Path], None]) -> None:
    """Write all that evaluation needs: weights, config, and what `write_files_beside` adds (tokenizer, labels)."""
    write_model_folder(folder, model, architecture_of(model).name)
    write_files_beside(folder)


def save_checkpoint(
    run_dir: Path,
    model: Any,
    optimizer: torch.optim.Optimizer,
    averaged: AveragedModel | None,
    progress: Progress,
    write_files_beside: Callable[[Path], None],
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
        write_inference_folder(folder, kept, write_files_beside)
        torch.save(state, folder / STATE_NAME)

    final = run_dir / "checkpoints" / f"step_{progress.step:08d}"
    publish_folder(final, write)
    for old in list_checkpoints(run_dir)[:-keep]:
        remove_folder(old)
    return final


def read_state(folder: Path) -> dict[str, Any]:
    """Read what a checkpoint holds besides weights, its "progress" as a `Progress`. Raises CheckpointError with one
    line."""
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
