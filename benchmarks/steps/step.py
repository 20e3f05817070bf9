"""What the training-step benchmarks of all models share: a step as a call, its cost, its captions, its case."""

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

# A model, its loss as a function of what follows: its inputs.
Side = tuple[nn.Module, Callable[..., Tensor], tuple[Any, ...]]


class Loss(nn.Module):
    """The loss [] alone of a model of the library."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Tensor:
        return self.model(*inputs).loss


def block_flops(asking: int, keys: int, pairs: int, width: int, mlp_ratio: float) -> int:
    """Forward FLOP of a block: 2 per weight and row, 4 width per pair of a row that asks and one that it looks at.

    Queries, projection and MLP ((2 + 2 mlp_ratio) width^2 weights) are those of the rows that ask, the others (2
    width^2) those of the keys.
    """
    return int(2 * ((2 + 2 * mlp_ratio) * asking + 2 * keys) * width**2 + 4 * pairs * width)


def sharing_flops(distinct: int, rows: int, asking: int, keys: int, width: int) -> int:
    """Forward FLOP that a first block saves by projecting `distinct` rows, not all `rows` that begin as one of them.

    `asking` of these ask, `keys` are looked at.
    """
    spared = max(asking - distinct, 0) + 2 * max(keys - distinct, 0)
    return 2 * width**2 * spared if distinct < rows else 0


def transformer_flops(tokens: int, pairs: int, width: int, depth: int, mlp_ratio: float) -> int:
    """Forward FLOP of `depth` blocks in which every row asks and is looked at."""
    return depth * block_flops(tokens, tokens, pairs, width, mlp_ratio)


def draw_captions(clips: int, vocab_size: int, longest: int, generator: torch.Generator) -> tuple[Tensor, list[int]]:
    """Captions of random words: packed ids int64 [N], and their lengths, 10 to `longest`."""
    lengths = torch.randint(SHORTEST_CAPTION, longest + 1, (clips,), generator=generator).tolist()
    return torch.randint(FIRST_WORD_ID, vocab_size, (sum(lengths),), generator=generator), lengths


def padded(packed: Tensor, lengths: list[int], fill: int) -> Tensor:
    """[N] -> [captions, longest]."""
    return pad_sequence(list(packed.split(lengths)), batch_first=True, padding_value=fill)


def training_step(
    make: Callable[[], Side], options: Options, *, compile: bool = False, capturable: bool = False
) -> Function:
    """A step of what `make` gives; it is made on the first call, so that a variant left out costs nothing."""

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
    """What is timed."""
    return "step" if options.optimizer else "forward+backward"


def graphed(step: Function, device: torch.device) -> Function | Missing:
    """One replay of all the step's launches; the gradients' memory is the graph's own."""
    return Graphed(step) if device.type == "cuda" else Missing("CUDA graphs need a CUDA device")


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
    """The variants of one model's step beside one another.

    released: the released structure with the attention "manual" or "sdpa"; the former's loss in float32 is the truth.
    ours: the library's model. flops: of a step. peers: further variants.
    """
    step = partial(training_step, options=options)
    variants: dict[str, Function | Missing] = {
        "released": step(partial(released, "manual")),
        "released, sdpa": step(partial(released, "sdpa")),
        "released, sdpa, compiled": step(partial(released, "sdpa"), compile=True),
        **(peers or {}),
        "fastvtp": step(ours),
        "fastvtp, compiled": step(ours, compile=True),
        "fastvtp, graph": graphed(step(ours, capturable=True), options.device),
    }
    _, truth, inputs = released("manual")
    with torch.no_grad():
        expected = truth(*inputs).item()
    return Case(
        op="train_step", name=name, direction=direction_of(options), shape=shape, dtype=options.dtype,
        device=options.device, cost=Cost(0, flops), variants=variants, baseline="released, sdpa",
        error=lambda loss: abs(loss.item() - expected) / abs(expected), tolerance=TOLERANCES[options.dtype],
    )  # fmt: skip
