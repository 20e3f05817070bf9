"""Saving and resuming a run.

A checkpoint is a folder `checkpoints/step_00000500` with the model (model.safetensors, config.json), the tokenizer, and
training_state.pt. It is written under another name and renamed when complete, so that a run killed at any moment
leaves only whole checkpoints. The data stream is a function of (seed, step) and needs no state.
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastvtp.checkpoints.native import CheckpointError, load_weights, read_weights, write_model_folder
from fastvtp.data.tokenization import CaptionTokenizer
from fastvtp.models.simvtp import SimVTP

STATE_NAME, TOKENIZER_NAME = "training_state.pt", "tokenizer.json"


@dataclass
class Progress:
    """What a run carries from step to step besides weights, optimizer and random state."""

    step: int = 0
    """Steps done."""
    train_seconds: float = 0.0
    bad_files: dict[str, str] = field(default_factory=dict)
    """Undecodable files met so far, with the reason."""


def _fsync_tree(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_inference_folder(folder: Path, model: SimVTP, tokenizer: CaptionTokenizer) -> None:
    """All that evaluation needs: weights, config and tokenizer."""
    write_model_folder(folder, model, "simvtp")
    tokenizer.save(folder / TOKENIZER_NAME)


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step_[0-9]*"))


def save_checkpoint(
    run_dir: Path,
    model: SimVTP,
    tokenizer: CaptionTokenizer,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    keep: int,
) -> Path:
    """Write the checkpoint of `progress.step` and delete all but the newest `keep`."""
    final = run_dir / "checkpoints" / f"step_{progress.step:08d}"
    partial = final.with_name(f"partial_{progress.step:08d}")
    shutil.rmtree(partial, ignore_errors=True)
    write_inference_folder(partial, model, tokenizer)
    state: dict[str, Any] = {
        "optimizer": optimizer.state_dict(),
        "progress": vars(progress),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(state, partial / STATE_NAME)
    _fsync_tree(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in list_checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return final


def restore_checkpoint(folder: Path, model: SimVTP, optimizer: torch.optim.Optimizer) -> Progress:
    """Load weights, optimizer and random state in place; returns the progress. Raises CheckpointError with one line."""
    load_weights(model, read_weights(folder), folder)
    path = folder / STATE_NAME
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        return Progress(**state["progress"])
    except Exception as error:  # damaged bytes make torch.load raise nearly anything
        raise CheckpointError(f"{path} is not a usable training state: {error}".splitlines()[0]) from None
