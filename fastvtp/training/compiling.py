"""What torch.compile makes of a model, and what its blocks compute again in the backward pass.

Both follow from the structure of a model alone: its blocks are the members of its `ModuleList`s.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from fastvtp import processes
from fastvtp.errors import ConfigError
from fastvtp.training.config import TrainConfig

logger = logging.getLogger(__name__)

# blocks of all kinds run through one function of torch's, which gives up at 8 ways of calling it: by kind, with and
# without gradients, queries, sources, padding
_WAYS = 64
_NO_ATTENTION = ("attention_order",)  # the places of short sequences
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the members of all `ModuleList`s that have parameters, inner ones before those that hold them."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    found = (member for members in lists for member in members if any(True for _ in member.parameters()))
    return list(dict.fromkeys(found))[::-1]


# --- Computing again


def recompute_blocks(model: nn.Module, what: str = "blocks") -> None:
    """Make every block compute its insides again in the backward pass; names of parameters stay what they are.

    what: "blocks", all of the insides; "selective", all but the results of matrix products and of attention.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)

    def recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
        # a function of ours, not a partial one of torch's: torch.compile passes over frames of torch's own
        @functools.wraps(forward)
        def compute(*args: Any, **kwargs: Any) -> Any:
            return checkpoint(forward, *args, **options, **kwargs)

        return compute

    for block in blocks_of(model):
        block.forward = recomputed(block.forward)


def _policy(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = isinstance(op, torch._ops.OpOverload) and _is_dear(op.namespace, op._opname)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _is_dear(namespace: str, name: str) -> bool:
    """Tell whether an op takes long for the memory of its result: a product of matrices, or an attention."""
    attends = ("attention" in name or "attn" in name) and name not in _NO_ATTENTION and "backward" not in name
    return attends or (namespace == "aten" and name in _PRODUCTS)


# --- Compiling


def compile_mode(config: TrainConfig, device: torch.device) -> str:
    """Return what is compiled on `device`: "none", "blocks", "step" or "graphs".

    Where "auto" would compile and this machine cannot, nothing is compiled, and a warning says why. Raises ConfigError
    where a mode that was asked for cannot be had.
    """
    mode = config.compile
    if mode == "graphs" and device.type != "cuda":
        raise ConfigError(f"compile=graphs captures CUDA graphs, the device is {device.type}: set compile=step")
    chosen = ("blocks" if device.type == "cuda" else "none") if mode == "auto" else mode
    if chosen == "none":
        return chosen
    reasons = [reason for reason in processes.gather(why_not(device)) if reason]
    if not reasons:
        return chosen
    if mode != "auto":
        raise ConfigError(f"compile={mode}: torch.compile does not work here: {reasons[0]}")
    logger.warning("compile=auto compiles nothing: torch.compile does not work here: %s", reasons[0])
    return "none"


def why_not(device: torch.device) -> str:
    """Compile a function of a few values for `device`; returns what went wrong in one line, empty where it works."""
    try:
        torch.compile(lambda x: x.sin() + 1, fullgraph=True)(torch.ones(8, device=device))
    except Exception as error:  # whatever a compiler, or its absence, raises
        return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return ""


def check_graphs(strategy: str, micro_batches: int) -> None:
    """Raise ConfigError where a step cannot be one CUDA graph. micro_batches: of a step on this process."""
    if strategy != "none":
        raise ConfigError(f"compile=graphs is for one process, the strategy is {strategy}: set compile=blocks")
    if micro_batches > 1:
        raise ConfigError(
            f"compile=graphs takes one micro-batch a step, got {micro_batches}: gradients are added up in memory that "
            "the next replay writes to; set compile=blocks, or micro_batch=none"
        )


def compile_blocks(model: nn.Module, *, drawing: bool) -> None:
    """Compile each block by itself, as one graph. drawing: also those that draw random numbers; compiled code draws
    others, and not always the same ones with gradients and without."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _WAYS)
    blocks = blocks_of(model)
    fitting = [block for block in blocks if drawing or not draws(block)]
    for block in fitting:
        block.compile(fullgraph=True)
    if len(fitting) < len(blocks):
        logger.warning(
            "compile: %d of %d blocks are not compiled, for their dropout or drop_path must draw the same twice: the "
            "features of a step are computed beforehand",
            len(blocks) - len(fitting),
            len(blocks),
        )


def compile_step(compute: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """Compile what computes a loss. mode: "step", or "graphs", for replays of which the caller marks the beginning."""
    return torch.compile(compute, mode="reduce-overhead") if mode == "graphs" else torch.compile(compute)


def draws(block: nn.Module) -> bool:
    """Tell whether a forward pass of this block draws random numbers: dropout, or branches that are skipped."""

    def share(module: nn.Module) -> float:
        of_layer = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", 0.0)
        return max(value for value in (of_layer, getattr(module, "drop_path", 0.0), 0.0) if isinstance(value, float))

    return any(module.training and share(module) > 0 for module in block.modules())
