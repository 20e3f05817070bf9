"""What a process of a run holds and sends under each strategy: a model, made of the configuration and of sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import nn

from fastvtp.training.config import TrainConfig, find_task
from fastvtp.training.sizes import FLOAT32, activation_bytes, cast_bytes, count, parts_of, state_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes that a process holds at most, under one strategy.

    Attributes:
        weights, gradients, optimizer, average: see `fastvtp.training.sizes.StateBytes`.
        gathered: what FSDP2 gathers for a time: two blocks, and what is in none.
        summed: gradients of whole matrices, which FSDP2 adds up where a process has several micro-batches a step.
        casts: copies of weights in bfloat16 that autocast makes.
        activations: of a micro-batch, see `fastvtp.training.sizes.activation_bytes`; None: the model does not tell.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    gathered: int
    summed: int
    casts: int
    activations: float | None

    @property
    def total(self) -> float:
        return sum(getattr(self, entry.name) or 0 for entry in fields(self))


@dataclass(frozen=True)
class Layout:
    """Where the processes of a run are.

    processes: of the run. on_node: of a machine. shards: processes that share one copy of the model, neighbours; 1:
    each has all of it. each: micro-batches of a step that one of them computes.
    """

    processes: int
    on_node: int
    shards: int
    each: int

    @property
    def nodes(self) -> int:
        return -(-self.processes // self.on_node)


@dataclass(frozen=True)
class Traffic:
    """Bytes a step of weights and gradients, under one strategy: sent by a process, and by a machine to others.

    Rings are assumed, in which all-gather and reduce-scatter among n send (n - 1) / n of the whole, all-reduce twice
    that.
    """

    process: float
    node: float


def memory_of(config: TrainConfig, model: nn.Module, layout: Layout, rows: Mapping[str, float] | None) -> Memory:
    """Return what a process holds. rows: of a clip, as `Architecture.rows` gives them."""
    state = state_bytes(model, config.optimizer, shards=layout.shards, averaged=config.ema_decay is not None)
    half = config.parallel.param_dtype == "bfloat16"
    parts, sharded = parts_of(model), layout.shards > 1
    activations = None
    if rows is not None:
        activations = activation_bytes(
            model, rows, clips=config.clips_at_a_time, precision=config.precision, recompute=config.recompute
        )
    return Memory(
        weights=state.weights,
        gradients=state.gradients,
        optimizer=state.optimizer,
        average=state.average,
        gathered=(2 * parts.largest_block * (2 if half else FLOAT32) + FLOAT32 * parts.root) if sharded else 0,
        summed=_trained_bytes(model) if sharded and layout.each > 1 else 0,
        casts=cast_bytes(model) if config.precision == "bfloat16" and not (sharded and half) else 0,
        activations=activations,
    )


def traffic_of(config: TrainConfig, model: nn.Module, layout: Layout) -> Traffic:
    """Return what a step sends."""
    trained, shards, nodes = _trained_bytes(model), layout.shards, layout.nodes
    if shards == 1:
        return Traffic(2 * others(layout.processes) * trained, 2 * others(nodes) * trained)
    parts, size = parts_of(model), 2 if config.parallel.param_dtype == "bfloat16" else FLOAT32
    # blocks are gathered for the forward pass and, if they have gradients, once more; what is in none once
    passes = size * (parts.blocks + parts.trained) + FLOAT32 * parts.root
    if looks_around(config, layout):
        passes += size * parts.blocks + FLOAT32 * parts.root
    of_copy = layout.each * passes + trained  # gradients are summed with the last micro-batch
    on_node = min(layout.processes, layout.on_node)
    nodes_of_copy, copies_on_node = max(shards // on_node, 1), max(on_node // shards, 1)
    between_copies = others(nodes // nodes_of_copy) * trained * min(on_node, shards) / shards
    return Traffic(
        process=others(shards) * of_copy + 2 * others(layout.processes // shards) * trained / shards,
        node=copies_on_node * others(nodes_of_copy) * of_copy + 2 * between_copies,
    )


def looks_around(config: TrainConfig, layout: Layout) -> bool:
    """Tell whether the features of a step are computed beforehand, once more than otherwise."""
    task, (contrast, matching) = find_task(config.task), config.scopes
    if layout.each * layout.processes == 1:
        return False
    return (task.contrasts and contrast == "global" and layout.each > 1) or (task.matches and matching == "global")


def others(count: int) -> float:
    """Return the share of what `count` have together that the others of one have."""
    return (count - 1) / count


def _trained_bytes(model: nn.Module) -> int:
    return FLOAT32 * count(parameter for parameter in model.parameters() if parameter.requires_grad)
