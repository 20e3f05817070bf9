"""Checkpoints of earlier versions, which one process wrote: model.safetensors and training_state.pt.

Where weights are averaged, the model is their average, and training_state.pt also holds the weights that training goes
on from. The state of the random number generators in it is of no use any more.
"""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastvtp.errors import CheckpointError
from fastvtp.model_folder import STATE_NAME, WEIGHTS_NAME, check_fit, read_weights
from fastvtp.tensor_files import check_readable
from fastvtp.training.average import WeightAverage, check_average
from fastvtp.training.optimizer_state import load_by_position, room_for


def read_earlier_progress(folder: Path) -> dict[str, Any]:
    """Read the fields of a `fastvtp.training.state.Progress`. Raises CheckpointError with one line."""
    with one_line(folder / STATE_NAME):
        return dict(_read(folder)["progress"])


def restore_earlier(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> None:
    """Load a checkpoint in place; each process takes what it holds of the whole tensors.

    Raises CheckpointError with one line.
    """
    kept = read_weights(folder)
    with one_line(folder / STATE_NAME):
        state = _read(folder)
        averaged, saved = state["averaged"] or {}, state["optimizer"]
        check_average(average, bool(averaged), folder)
        weights = averaged["raw_weights"] if averaged else kept
        check_fit(model, {name: tensor.shape for name, tensor in weights.items()}, folder)
        for name, target in model.state_dict().items():
            _fill(target, weights[name])
        if average is not None:
            for name, target in average.tensors.items():
                _fill(target, kept[name])
            average.updates = int(averaged["n_averaged"])
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moments = {
            position: {key: _of_kind(value, key, parameters[position]) for key, value in entries.items()}
            for position, entries in saved["state"].items()
        }
        load_by_position(optimizer, moments, saved["param_groups"])


def damage_of_earlier(folder: Path) -> str | None:
    """Tell what is wrong with the files of a checkpoint, as far as their formats show; None: nothing."""
    try:
        for name in (WEIGHTS_NAME, STATE_NAME):
            if not (folder / name).is_file():
                return f"{folder} has no {name}"
        with zipfile.ZipFile(folder / STATE_NAME) as archive:
            if (broken := archive.testzip()) is not None:
                return f"{folder / STATE_NAME}: the bytes of {broken} are not those that were written"
        check_readable(folder / WEIGHTS_NAME)
    except (OSError, zipfile.BadZipFile) as error:
        return f"{folder / STATE_NAME} cannot be read: {error}"
    except CheckpointError as error:
        return str(error)
    return None


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Raise CheckpointError, which names the file, for whatever its content makes go wrong."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes make torch.load raise nearly anything
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path} is not a usable training state: {reason}".splitlines()[0]) from None


def _read(folder: Path) -> Mapping[str, Any]:
    return torch.load(folder / STATE_NAME, map_location="cpu", weights_only=True, mmap=True)


@torch.no_grad()
def _fill(target: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into `target`, of a DTensor into the part that this process holds."""
    from torch.distributed.tensor import DTensor, distribute_tensor  # here, as it takes long to import

    if isinstance(target, DTensor):
        mesh = target.device_mesh
        parts = distribute_tensor(whole.to(target.device), mesh, target.placements, src_data_rank=None)
        target.to_local().copy_(parts.to_local())
    else:
        target.copy_(whole)


def _of_kind(value: Any, key: str, parameter: Tensor) -> Any:
    """Return what an optimizer kept of a parameter, copied, in shards where the parameter is."""
    if not isinstance(value, Tensor):
        return value
    room = room_for(parameter, key, value.shape, value.dtype)
    _fill(room, value)
    return room
