"""What an optimizer keeps, apart from the numbers of its parameters and from who holds which part of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastvtp.errors import CheckpointError

# How a group computes, not what: it follows from the device and from whether the weights are in shards.
_HOW = ("fused", "foreach", "capturable", "differentiable")


def parameter_names(model: nn.Module) -> dict[Tensor, str]:
    """Return the name of each parameter of `model`; where several modules share one, the first."""
    model.state_dict()  # has FSDP put its shards back in place, which are the parameters that an optimizer knows
    return {parameter: name for name, parameter in model.named_parameters()}


def plain_values(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Any]:
    """Return what an optimizer keeps that is no tensor.

    "groups": the settings of each, with the names of its "parameters". "state": of each parameter that has one, which
    of its entries are "tensors", and the "values" of all others.
    """
    groups = [
        {
            **{key: value for key, value in group.items() if key != "params"},
            "parameters": [names[p] for p in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    state = {
        names[parameter]: {
            "tensors": [key for key, value in kept.items() if isinstance(value, Tensor)],
            "values": {key: value for key, value in kept.items() if not isinstance(value, Tensor)},
        }
        for parameter, kept in optimizer.state.items()
    }
    return {"groups": groups, "state": state}


def room_for(parameter: Tensor, key: str, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor for what an optimizer keeps of a parameter under `key`: in shards like the parameter where it
    has its shape, else whole and on the CPU, from where `load_by_position` has it brought to its device."""
    if key != "step" and tuple(size) == tuple(parameter.shape):
        return torch.empty_like(parameter.detach(), dtype=dtype)
    return torch.empty(tuple(size), dtype=dtype)


def load_by_position(
    optimizer: torch.optim.Optimizer, state: Mapping[int, dict[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> None:
    """Have an optimizer go on from `state`, which is of its parameters as it counts them through its groups, and from
    the settings of `groups`."""
    own = optimizer.state_dict()["param_groups"]
    merged = []
    for present, saved in zip(own, groups, strict=True):
        settings = {key: _as(present.get(key), value) for key, value in saved.items() if key not in _HOW}
        merged.append({**present, **settings, "params": present["params"]})
    optimizer.load_state_dict({"state": dict(state), "param_groups": merged})


def _as(present: Any, value: Any) -> Any:
    return tuple(value) if isinstance(present, tuple) else value  # which JSON makes a list of


def same_groups(own: Iterable[Sequence[str]], saved: Iterable[Sequence[str]]) -> None:
    """Raise CheckpointError where the parameters of an optimizer's groups, by name, are others than those saved."""
    pairs = list(own), list(saved)
    if [sorted(names) for names in pairs[0]] != [sorted(names) for names in pairs[1]]:
        counts = [", ".join(str(len(names)) for names in groups) for groups in pairs]
        raise CheckpointError(f"the optimizer has groups of {counts[0]} parameters, the checkpoint of {counts[1]}")
