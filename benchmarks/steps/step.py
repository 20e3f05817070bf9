"""Gives the training steps of all models what they share: the step as a call, its cost, its captions, its case."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..harness.case import Case, Cost, Missing, Options
from ..harness.memory import Graphed
from ..harness.record import Direction
from ..harness.timing import Function
from ..harness.variants import compiled

# Relative difference of the loss from the float32 one.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
SMOKE_TEXT: dict[str, Any] = {"vocab_size": 200, "mask_token_id": 4, "special_token_ids": (0, 1, 2, 3, 4)}
FIRST_WORD_ID = 150
SHORTEST_CAPTION = 10

# A model, its loss as a function, and the inputs of that function.
Side = tuple[nn.Module, Callable[..., Tensor], tuple[Any, ...]]


class Loss(nn.Module):
    """This wrapper returns the loss [] alone of what a model of the library returns."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Tensor:
        return self.model(*inputs).loss


def block_flops(asking: int, keys: int, pairs: int, width: int, mlp_ratio: float) -> int:
    """Count the forward FLOP of a block: 2 per weight and row, 4 * width per pair of a row and one that it looks at.

    Queries, projection and MLP ((2 + 2 mlp_ratio) width^2 weights) are those of the rows that ask, the others (2
    width^2) those of the keys.
    """
    return int(2 * ((2 + 2 * mlp_ratio) * asking + 2 * keys) * width**2 + 4 * pairs * width)


def sharing_flops(distinct: int, rows: int, asking: int, keys: int, width: int) -> int:
    """Count the forward FLOP that a first block saves where `rows` begin as one of only `distinct` different rows.

    It projects each of those once. Of all rows, `asking` ask and `keys` are looked at.
    """
    spared = max(asking - distinct, 0) + 2 * max(keys - distinct, 0)
    return 2 * width**2 * spared if distinct < rows else 0


def transformer_flops(tokens: int, pairs: int, width: int, depth: int, mlp_ratio: float) -> int:
    """Count the forward FLOP of `depth` blocks in which every row asks and is looked at."""
    return depth * block_flops(tokens, tokens, pairs, width, mlp_ratio)


def draw_captions(clips: int, vocab_size: int, longest: int, generator: torch.Generator) -> tuple[Tensor, list[int]]:
    """Draw captions of random words; return packed ids int64 [N], and the captions' lengths, 10 to `longest`."""
    lengths = torch.randint(SHORTEST_CAPTION, longest + 1, (clips,), generator=generator).tolist()
    return torch.randint(FIRST_WORD_ID, vocab_size, (sum(lengths),), generator=generator), lengths


def padded(packed: Tensor, lengths: list[int], fill: int) -> Tensor:
    """Pad packed captions [N] to [captions, longest]."""
    return pad_sequence(list(packed.split(lengths)), batch_first=True, padding_value=fill)


def training_step(
    make: Callable[[], Side], options: Options, *, compile: bool = False, capturable: bool = False
) -> Function:
    """Return the training step of what `make` gives on the first call: a variant that is left out costs nothing."""

    @cache
    def made() -> tuple[Callable[[], Tensor], torch.optim.Optimizer]:
        model, function, inputs = make()
        function = compiled(function, options) if compile else function
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return partial(function, *inputs), torch.optim.AdamW(trained, lr=0.0, fused=True, capturable=capturable)

    def step() -> Tensor:
        forward, optimizer = made()
        with torch.autocast(options.device.type, options.dtype, enabled=options.dtype != torch.float32):
            loss = forward()
        loss.backward()
        if options.optimizer:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def direction_of(options: Options) -> Direction:
    """Say what is timed: a whole step, or without the optimizer forward and backward."""
    return "step" if options.optimizer else "forward+backward"


def graphed(step: Function, device: torch.device) -> Function | Missing:
    """Return the step as one replay of all its launches; the gradients' memory is the graph's own."""
    return Graphed(step) if device.type == "cuda" else Missing("CUDA graphs need a CUDA device")


def compared(
    name: str,
    options: Options,
    others: Mapping[str, Function | Missing],
    ours: Callable[[], Side],
    *,
    baseline: str,
    expected: float,
    flops: int,
    shape: dict[str, int],
) -> Case:
    """Build the case of one model: the library's step beside those of `others`.

    `expected` is the right loss, in float32, and `flops` counts what the library's model computes in a step.
    """
    step = partial(training_step, options=options)
    variants: dict[str, Function | Missing] = {
        **others,
        "fastvtp": step(ours),
        "fastvtp, compiled": step(ours, compile=True),
        "fastvtp, graph": graphed(step(ours, capturable=True), options.device),
    }
    return Case(
        op="train_step",
        name=name,
        direction=direction_of(options),
        shape=shape,
        dtype=options.dtype,
        device=options.device,
        cost=Cost(0, flops),
        variants=variants,
        baseline=baseline,
        error=lambda loss: abs(loss.item() - expected) / abs(expected),
        tolerance=TOLERANCES[options.dtype],
    )


def case_of(
    name: str,
    options: Options,
    *,
    released: Callable[[str], Side],
    ours: Callable[[], Side],
    shape: dict[str, int],
    flops: int,
    peers: Mapping[str, Function | Missing] | None = None,
) -> Case:
    """Build the case of a model whose training was released: the library's step beside the released structure's.

    `released` makes the latter with the attention "manual" or "sdpa", and the loss of "manual" in float32 is the truth.
    `peers` are further variants, and `flops` counts what the library's model computes in a step.
    """
    step = partial(training_step, options=options)
    others = {
        "released": step(partial(released, "manual")),
        "released, sdpa": step(partial(released, "sdpa")),
        "released, sdpa, compiled": step(partial(released, "sdpa"), compile=True),
        **(peers or {}),
    }
    _, truth, inputs = released("manual")
    with torch.no_grad():
        expected = truth(*inputs).item()
    return compared(name, options, others, ours, baseline="released, sdpa", expected=expected, flops=flops, shape=shape)
