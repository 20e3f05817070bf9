"""How the processes of a run share its model: torch's DDP and FSDP2, put around any model from outside.

Models know nothing of it. What is wrapped and where follows from their structure: each member of a `ModuleList`, which
is how transformers hold their blocks, is a unit of its own, and the rest is another.
"""

import inspect
import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fastvtp import processes
from fastvtp.errors import ConfigError
from fastvtp.training.compiling import (
    blocks_of,
    check_graphs,
    compile_blocks,
    compile_mode,
    compile_step,
    draws,
    recompute_blocks,
)
from fastvtp.training.config import TrainConfig
from fastvtp.training.division import SHARDED, strategy_of
from fastvtp.training.exchange import means_of_processes

logger = logging.getLogger(__name__)

# what is called besides `forward`, and needs the matrices whole
_SHARED_METHODS = {"collect", "encode_video", "encode_text", "embed_video", "embed_text"}


def choose_strategy(config: TrainConfig, model: nn.Module, device: torch.device) -> str:
    """Return "none", "ddp", "fsdp2" or "hsdp": what is set, and for "auto" what fits the device.

    Raises ConfigError for a strategy that the number of processes, or the optimizer, does not allow.
    """
    settings, algorithm = config.parallel, config.optimizer.algorithm
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    strategy = strategy_of(settings, algorithm, processes.size(), trained, memory).name
    if strategy not in SHARDED and settings.param_dtype != "float32":
        raise ConfigError(f"parallel.param_dtype={settings.param_dtype} is for fsdp2 and hsdp, not for {strategy}")
    return strategy


class Parallel:
    """A model as the processes of a run share it.

    leaves_out: some steps give some parameters no gradient, see `Task.leaves_out`. twice: a step computes some of its
    features twice, see `fastvtp.training.gradients`, and what is random must come out alike.

    Attributes:
        model: the model itself; under fsdp2 and hsdp its parameters are DTensors, those without a dimension excepted.
        compute: what computes a loss: the model, or DDP around it.
        strategy: "none", "ddp", "fsdp2" or "hsdp".
        compiled: whether all of it is compiled as one; else blocks may be.
        replays: whether it is replayed as a CUDA graph, which writes its results where it wrote those of the last time.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, device: torch.device, *, leaves_out: bool, twice: bool = False
    ):
        self.strategy, self.model = choose_strategy(config, model, device), model
        self.compute: Callable[..., Any] = model
        self._scalars: list[nn.Parameter] = []
        if config.recompute != "none":
            recompute_blocks(model, config.recompute)
        mode = compile_mode(config, device)
        # the whole of a sharded model takes a minute a step to compile
        by_block = mode == "blocks" or (mode == "step" and (self.strategy in SHARDED or (twice and draws(model))))
        if mode == "graphs":
            check_graphs(self.strategy, config.batch_size // config.clips_at_a_time)
        if by_block:
            compile_blocks(model, drawing=not twice)
        if self.strategy == "ddp":
            # buffers are constants here; 2.13 of torch renamed the argument that keeps them from being sent
            known = inspect.signature(DistributedDataParallel.__init__).parameters
            buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            options: dict[str, Any] = {buffers: False, "gradient_as_bucket_view": True}
            self.compute = self._ddp = DistributedDataParallel(model, find_unused_parameters=leaves_out, **options)
        elif self.strategy != "none":
            self._shard(config, device)
        self.compiled, self.replays = mode in ("step", "graphs") and not by_block, mode == "graphs"
        if self.compiled:
            self.compute = compile_step(self.compute, mode)
        if processes.size() > 1:
            logger.info("%d processes, %s", processes.size(), self.strategy)

    def _shard(self, config: TrainConfig, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        world, size = processes.size(), config.parallel.shard_size
        shape, names = ((world,), ("shard",)) if size is None else ((world // size, size), ("replicate", "shard"))
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
        half = torch.bfloat16 if config.parallel.param_dtype == "bfloat16" else None
        for block in blocks_of(self.model):
            for norm in (module for module in block.modules() if half and isinstance(module, nn.LayerNorm)):
                fully_shard(norm, mesh=mesh)  # it adds up in float32
            # torch looks for gradients to add up in float32 in blocks that never ran, as frozen ones may not
            summed = torch.float32 if half and any(x.requires_grad for x in block.parameters()) else None
            fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(half, summed, cast_forward_inputs=False))
        self._scalars = [parameter for parameter in self.model.parameters() if parameter.ndim == 0]
        fully_shard(self.model, mesh=mesh, ignored_params=set(self._scalars))
        # outputs are read and never written to, which is what it warns of
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        for name in sorted(_SHARED_METHODS & set(dir(type(self.model)))):
            register_fsdp_forward_method(self.model, name)

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Return the context of the forward and backward pass of a micro-batch; gradients are summed over the processes
        with the last one of a step."""
        if self.strategy == "ddp" and not last:
            return self._ddp.no_sync()
        if self.strategy in SHARDED:
            self.model.set_requires_gradient_sync(last)  # pyright: ignore[reportCallIssue]
        return nullcontext()

    def average_scalars(self) -> None:
        """Average over the processes the gradients of single numbers, which FSDP2 leaves aside; call it once a step."""
        gradients = [parameter.grad for parameter in self._scalars if parameter.grad is not None]
        if gradients and processes.size() > 1:
            for gradient, mean in zip(gradients, means_of_processes(gradients), strict=True):
                gradient.copy_(mean)

    def clip_gradients(self, bound: float) -> Tensor:
        """Scale all gradients so that their norm is at most `bound`; returns the norm before that, []."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), bound)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm
