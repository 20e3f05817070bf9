"""What a run goes on from, and how it is read from a checkpoint by any number of processes.

A checkpoint is a model folder `checkpoints/step_00000500` whose tensors are in shards (`fastvtp.tensor_files`): the
weights being trained, their average where there is one, and what the optimizer keeps of each weight, all by the names
of the model's parameters. training_state.json beside them holds what is no tensor. Which process held what, and how
many there were, is nowhere recorded: a run may go on with another number of processes, whole weights or shards.
Random numbers and the data stream are functions of the seed and the step, and need no state.

`fastvtp.training.checkpoints` writes checkpoints; `fastvtp.training.earlier_state` reads those of earlier versions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastvtp.errors import CheckpointError
from fastvtp.model_folder import STATE_NAME, check_fit
from fastvtp.modules.bounds import warn_beyond_bounds
from fastvtp.processes import all_or_none
from fastvtp.tensor_files import AVERAGE, MODEL, OPTIMIZER, has_shards, load_tensors, stored_tensors
from fastvtp.training.average import WeightAverage, check_average
from fastvtp.training.earlier_state import one_line, read_earlier_progress, restore_earlier
from fastvtp.training.optimizer_state import load_by_position, parameter_names, plain_values, room_for, same_groups

VALUES_NAME = "training_state.json"
FORMAT = 2
"""Of training_state.json; 1 was training_state.pt."""


@dataclass
class Progress:
    """What a run carries from step to step besides weights and optimizer."""

    annotations: str = ""
    """Digest of the training data, labels included; others would give another stream of clips."""
    device: str = "cpu"
    """Kind of device; another one rounds differently."""
    step: int = 0
    """Steps done."""
    train_seconds: float = 0.0
    bad_files: dict[str, str] = field(default_factory=dict)
    """Undecodable files met so far, with the reason."""
    best: dict[str, Any] | None = None
    """Of the best checkpoint so far by the metric that was asked for: its "metric", "value" and "step"; None: there is
    none."""


@dataclass
class TrainingState:
    """What training goes on from, on every process of a run.

    Attributes:
        model: as it was built, or in shards by `fully_shard`; never what DDP or torch.compile put around it.
        optimizer: of the model's parameters.
        average: of the weights; None: none is kept.
        progress: of the run.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    progress: Progress


def tensors_of(state: TrainingState) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint by name, not copied."""
    tensors = {f"{MODEL}{name}": tensor for name, tensor in state.model.state_dict().items()}
    if state.average is not None:
        tensors |= {f"{AVERAGE}{name}": tensor for name, tensor in state.average.tensors.items()}
    for parameter, name in parameter_names(state.model).items():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{name}.{key}"] = value
    return tensors


def values_of(state: TrainingState, progress: Progress, metrics: Mapping[str, float]) -> str:
    """Return the content of training_state.json. Raises TypeError for what JSON does not hold."""
    average = None if state.average is None else {"decay": state.average.decay, "updates": state.average.updates}
    values = {
        "format": FORMAT,
        "progress": vars(progress),
        "metrics": dict(metrics),
        "average": average,
        "optimizer": plain_values(state.optimizer, parameter_names(state.model)),
    }
    return json.dumps(values, indent=1) + "\n"


def read_progress(checkpoint: Path) -> Progress:
    """Read how far the run of a checkpoint was. Raises CheckpointError with one line."""
    if not has_shards(checkpoint):
        return _progress(read_earlier_progress(checkpoint), checkpoint / STATE_NAME)
    return _progress(_read_values(checkpoint).get("progress"), checkpoint / VALUES_NAME)


def restore(checkpoint: Path, state: TrainingState) -> None:
    """Load a checkpoint into `state` in place, on all processes of the run, of which each reads what it holds itself.

    Raises CheckpointError with one line, on all of them where it does on one; the state is then of no use.
    """
    all_or_none(lambda: _restore(checkpoint, state))


def _restore(checkpoint: Path, state: TrainingState) -> None:
    progress = read_progress(checkpoint)
    if has_shards(checkpoint):
        _restore_shards(checkpoint, state)
    else:
        restore_earlier(checkpoint, state.model, state.optimizer, state.average)
    warn_beyond_bounds(state.model, str(checkpoint))
    vars(state.progress).update(vars(progress))


def _restore_shards(checkpoint: Path, state: TrainingState) -> None:
    values, stored = _read_values(checkpoint), stored_tensors(checkpoint)
    weights = state.model.state_dict()
    shapes = {name.removeprefix(MODEL): stored[name].size for name in stored if name.startswith(MODEL)}
    check_fit(state.model, shapes, checkpoint)
    targets = {f"{MODEL}{name}": tensor for name, tensor in weights.items()}
    check_average(state.average, values["average"] is not None, checkpoint)
    if state.average is not None:
        targets |= {f"{AVERAGE}{name}": tensor for name, tensor in state.average.tensors.items()}
    with one_line(checkpoint / VALUES_NAME):
        names, saved = parameter_names(state.model), values["optimizer"]
        grouped = [[names[parameter] for parameter in group["params"]] for group in state.optimizer.param_groups]
        same_groups(grouped, [group.pop("parameters") for group in saved["groups"]])
        moments: dict[int, dict[str, Any]] = {}
        parameters = {name: parameter for parameter, name in names.items()}
        for position, name in enumerate(name for group in grouped for name in group):
            if (kept := saved["state"].get(name)) is None:
                continue
            moments[position] = dict(kept["values"])
            for key in kept["tensors"]:
                place = f"{OPTIMIZER}{name}.{key}"
                room = room_for(parameters[name], key, stored[place].size, stored[place].properties.dtype)
                moments[position][key] = targets[place] = room
    load_tensors(checkpoint, targets)
    with one_line(checkpoint / VALUES_NAME):
        load_by_position(state.optimizer, moments, saved["groups"])
        if state.average is not None:
            state.average.updates = int(values["average"]["updates"])


def _read_values(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / VALUES_NAME
    try:
        values = json.loads(path.read_bytes())
        found = values["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a usable training state: {error}") from None
    if found != FORMAT:
        raise CheckpointError(f"{path} has format {found}, this version of fastvtp reads {FORMAT}")
    return values


def _progress(values: Any, path: Path) -> Progress:
    with one_line(path):
        return Progress(**values)
