"""Training states to save and restore: a tiny model, whole or in shards, with an optimizer that has taken steps."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastvtp
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.model_folder import write_model_folder
from fastvtp.training.average import WeightAverage
from fastvtp.training.config import OptimizerConfig
from fastvtp.training.optimizer import build_optimizer
from fastvtp.training.state import Progress, TrainingState, tensors_of

SIZES = {"width": 48, "depth": 1, "num_heads": 2, "decoder_width": 24, "decoder_num_heads": 2, "vocab_size": 121}


def write_tokenizer(folder: Path) -> None:
    CaptionTokenizer.train(["a red star", "a blue ring"], vocab_size=60).save(folder)


def make_state(
    kind: str = "plain", *, steps: int = 2, seed: int = 0, ema: bool = True, **optimizer: Any
) -> TrainingState:
    """Return a state after `steps` steps with gradients that follow from `seed`.

    kind: "plain", "ddp", "fsdp" or, for pairs of processes, "hsdp"; all processes must call this. steps: 0 is a state
    as a run that resumes has it, with weights that are garbage.
    """
    torch.manual_seed(seed)
    model = fastvtp.create_model("simvtp_tiny", **SIZES)
    model.contrast.bias_of_one = nn.Parameter(torch.randn(1))  # fewer rows than processes
    model.contrast.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
    model.contrast.register_buffer("counts", torch.arange(5))
    if steps == 0:
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.fill_(7)
    if kind == "ddp":
        nn.parallel.DistributedDataParallel(model)
    elif kind != "plain":
        shard(model, kind)
    state = TrainingState(
        model,
        build_optimizer(model, OptimizerConfig(**optimizer)),
        WeightAverage(model, 0.5) if ema else None,
        Progress(annotations="digest", step=steps, train_seconds=1.5, bad_files={"a.mp4": "empty"} if steps else {}),
    )
    for number in range(steps):
        take_step(state, seed + number)
    return state


def shard(model: nn.Module, kind: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    world = torch.distributed.get_world_size()
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (world,))
    else:
        mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("replicate", "shard"))
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    for block in model.encoder.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=scalars)


def take_step(state: TrainingState, seed: int) -> None:
    """Step with gradients that do not depend on who holds what."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in state.model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        if parameter.requires_grad:
            parameter.grad = placed(gradient, parameter)
    state.optimizer.step()
    state.optimizer.zero_grad()
    if state.average is not None:
        state.average.update()


def placed(whole: Tensor, like: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(like, DTensor):
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return whole


def contents(state: TrainingState) -> dict[str, Any]:
    """All that a state holds, whole."""
    from torch.distributed.tensor import DTensor

    tensors = {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
        for name, tensor in tensors_of(state).items()
    }
    groups = [{k: v for k, v in group.items() if k != "params"} for group in state.optimizer.param_groups]
    kept = [
        {key: value for key, value in entries.items() if not isinstance(value, Tensor)}
        for entries in state.optimizer.state.values()
    ]
    updates = None if state.average is None else state.average.updates
    return {
        "tensors": tensors,
        "groups": groups,
        "kept": kept,
        "updates": updates,
        "progress": deepcopy(vars(state.progress)),
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["tensors"].keys() == expected["tensors"].keys()
    for name, tensor in expected["tensors"].items():
        assert found["tensors"][name].dtype == tensor.dtype, name
        assert torch.equal(found["tensors"][name], tensor), name
    for part in ("groups", "kept", "updates", "progress"):
        assert found[part] == expected[part], part


def write_earlier(folder: Path, state: TrainingState) -> None:
    """Write a checkpoint as versions before 2 did: one process, training_state.pt."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model, average, kept = state.model, state.average, None
    if average is not None:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(average.decay))
        averaged.n_averaged.fill_(average.updates)
        averaged.module.load_state_dict({**model.state_dict(), **average.tensors})
        model, kept = averaged.module, {"n_averaged": averaged.n_averaged, "raw_weights": state.model.state_dict()}
    write_model_folder(folder, model, "simvtp")
    write_tokenizer(folder)
    progress = {key: value for key, value in vars(state.progress).items() if key != "best"}
    content = {"optimizer": state.optimizer.state_dict(), "averaged": kept, "progress": progress}
    torch.save({**content, "rng": torch.get_rng_state(), "cuda_rng": None}, folder / "training_state.pt")
