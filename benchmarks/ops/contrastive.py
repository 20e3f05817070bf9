"""Measures contrastive_loss, sigmoid_loss and hard_negatives beside the usual code, which holds all B x B logits.

open_clip             contrastive_loss: ClipLoss, logits computed for each direction; sigmoid_loss: SigLipLoss
one product           contrastive_loss: one matrix of logits, and its transpose
albef                 hard_negatives: softmax, diagonal set to 0, torch.multinomial, all rows at once
compiled ...          the same under torch.compile
inf_cl                contrastive_loss: the package's kernels, a pass per direction, products in TF32; no B x B
reference, triton     no B x B. The reference is not compiled: the losses are one operator each, and a compiler would
                      write the sampler's loop over strips out

Features have 512 values and are normalised. B goes from 1k to 64k on CUDA, from 1k to 4k on the CPU, where that takes a
few minutes (with --batches 16384 about an hour). What would not fit into memory is missing, not tried. The losses are
compared with the chunked reference in float64. Draws are random: their error is how many standard deviations the mean
logit of the chosen is away from what the softmax over the others gives.

Gradients are those of both features, the scale and (sigmoid_loss) the bias.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvtp_kernels import contrastive_loss, hard_negatives, sigmoid_loss

from ..harness.case import Case, CaseFactory, Cost, Missing, Options
from ..harness.command import command_line, measure, plot_path
from ..harness.record import Direction, Row
from ..harness.variants import TOLERANCES, bind
from ..harness.variants import op_variants as backends_of
from ..peers.contrastive import peers

WIDTH, SMOKE_WIDTH = 512, 128
BATCHES = tuple(1 << power for power in range(10, 17))
CPU_BATCHES, SMOKE_BATCHES = BATCHES[:3], (8,)
LOSSES: dict[str, Callable[..., Tensor]] = {"contrastive_loss": contrastive_loss, "sigmoid_loss": sigmoid_loss}
# Scale and, for the sigmoid loss, bias as training starts from them.
SCALARS = {"contrastive_loss": (1 / 0.07,), "sigmoid_loss": (10.0, -10.0), "hard_negatives": (1 / 0.07,)}
# Matrix products of 2 * B * B * D FLOP, forward and forward+backward.
PRODUCTS = {"contrastive_loss": (1, 4), "sigmoid_loss": (1, 3), "hard_negatives": (1,)}
SCALAR_BYTES, LOSS_BYTES, INDEX_BYTES = 4, 4, 8
# Length of the part of a row of b that does not belong to its row of a: as early in training.
NOISE = 2.0
# Standard deviations that a mean of right draws may be off.
DRAW_TOLERANCE = 5.0
STRIP_LOGITS = 1 << 24


def contrastive_cost(op: str, batch: int, width: int, itemsize: int, backward: bool) -> Cost:
    """Return the cost of an op that reads features and scalars once and writes its loss or indices, and the gradients.

    FLOP are those of the matrix products alone: forward, of the logits. With the backward pass the sigmoid loss
    multiplies them with either features; InfoNCE must know all logits first and computes them twice (an implementation
    that keeps B x B of them does with three products). What is done to each logit beside is not counted.
    """
    inputs = 2 * batch * width * itemsize + len(SCALARS[op]) * SCALAR_BYTES
    results = 2 * batch * INDEX_BYTES if op == "hard_negatives" else LOSS_BYTES
    return Cost((1 + backward) * inputs + results, PRODUCTS[op][backward] * 2 * batch**2 * width)


def cases(options: Options, batches: Sequence[int] | None = None) -> list[CaseFactory]:
    """Return the cases of the given batch sizes; without any, of those that suit the device."""
    if not batches:
        batches = SMOKE_BATCHES if options.smoke else CPU_BATCHES if options.device.type == "cpu" else BATCHES
    found: list[CaseFactory] = []
    for batch in batches:
        for op in LOSSES:
            found += [partial(loss_case, op, batch, options, way) for way in ("forward", "forward+backward")]
        found.append(partial(negatives_case, batch, options))
    return found


def inputs_of(op: str, batch: int, options: Options) -> list[Tensor]:
    """Return features a and b [B, D] of length one that belong together row by row, then the scalars, float32 []."""
    shape, device = (batch, SMOKE_WIDTH if options.smoke else WIDTH), options.device
    a, noise = (F.normalize(torch.randn(shape, device=device), dim=1) for _ in range(2))
    b = F.normalize(a + NOISE * noise, dim=1)
    return [a.to(options.dtype), b.to(options.dtype), *(torch.tensor(value, device=device) for value in SCALARS[op])]


def _functions(op: str, call: Callable[..., Any], a: Tensor, options: Options) -> dict[str, Any]:
    own = backends_of(op, call, options)
    del own["compiled reference"]
    batch, width = a.shape
    return {**peers(op, batch, width, options), **own}


def _case(op: str, direction: Direction, a: Tensor, **rest: Any) -> Case:
    batch, width = a.shape
    cost = contrastive_cost(op, batch, width, a.itemsize, direction == "forward+backward")
    shape = {"batch": batch, "width": width}
    return Case(op, f"B = {batch}", direction, shape, a.dtype, a.device, cost, **rest)


def loss_case(op: str, batch: int, options: Options, direction: Direction) -> Case:
    """Build the case of one loss at one batch size."""
    leaves = inputs_of(op, batch, options)
    functions = _functions(op, LOSSES[op], leaves[0], options)
    variants, error = bind(functions, partial(LOSSES[op], backend="reference"), leaves, direction)
    return _case(
        op,
        direction,
        leaves[0],
        variants=variants,
        baseline="open_clip",
        error=error,
        tolerance=TOLERANCES[options.dtype],
    )


def negatives_case(batch: int, options: Options) -> Case:
    """Build the case of the draws of hard negatives at one batch size."""
    inputs = inputs_of("hard_negatives", batch, options)
    functions = _functions("hard_negatives", partial(hard_negatives, seed=0), inputs[0], options)
    variants = {
        name: found if isinstance(found, Missing) else partial(found, *inputs) for name, found in functions.items()
    }
    return _case(
        "hard_negatives",
        "forward",
        inputs[0],
        variants=variants,
        baseline="albef",
        error=draw_error(*inputs),
        tolerance=DRAW_TOLERANCE,
    )


def draw_error(a: Tensor, b: Tensor, scale: Tensor) -> Callable[[Any], float]:
    """Return a judge of draws: how many standard deviations their mean logit is off, in the worse direction.

    An index that must not be drawn is infinitely wrong. Each row's logit has its expectation and variance under the
    softmax; the sum over B rows is near normal.
    """
    directions = [(x, y, *_moments(x, y, scale)) for x, y in ((a.float(), b.float()), (b.float(), a.float()))]
    own = torch.arange(len(a), device=a.device)

    def error(output: Sequence[Tensor]) -> float:
        worst = 0.0
        for chosen, (x, y, mean, variance) in zip(output, directions, strict=True):
            if chosen.shape != own.shape or ((chosen < 0) | (chosen >= len(own)) | (chosen == own)).any():
                return float("inf")
            logits = scale * (x * y[chosen]).sum(dim=1)
            deviation = (logits - mean).sum(dtype=torch.float64) / variance.sum(dtype=torch.float64).sqrt()
            worst = max(worst, deviation.abs().item())
        return worst

    return error


def _moments(x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance [B] of each row's logit under the softmax over the others, a strip of rows at a time."""
    means, variances = [], []
    for rows in torch.arange(len(x), device=x.device).split(max(1, STRIP_LOGITS // len(x))):
        logits = scale * (x[rows] @ y.T)
        weights = logits.scatter(1, rows[:, None], float("-inf")).softmax(dim=1)
        means.append((weights * logits).sum(dim=1))
        variances.append((weights * (logits - means[-1][:, None]) ** 2).sum(dim=1))
    return torch.cat(means), torch.cat(variances)


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Save a plot of time, with the floor, and of peak memory over B, in a column per op and direction."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.median_s is not None]
    variants = sorted({row.variant for row in rows})
    colours = {variant: colormaps["tab10"](number % 10) for number, variant in enumerate(variants)}
    columns = list(dict.fromkeys((row.op, row.direction) for row in rows))
    figure = Figure(figsize=(2 + 4 * len(columns), 8), layout="constrained")
    handles = {}
    axes = figure.subplots(2, len(columns), sharex=True, squeeze=False)
    for column, (time, memory) in zip(columns, axes.T, strict=True):
        _draw(time, memory, [row for row in rows if (row.op, row.direction) == column], colours)
        time.set_title(", ".join(column))
        handles |= {line.get_label(): line for line in time.lines}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw(time: Any, memory: Any, rows: Sequence[Row], colours: dict[str, Any]) -> None:
    curves: dict[str, list[tuple[int, float, float]]] = {}
    for row in rows:
        assert row.median_s is not None
        point = row.shape["batch"], row.median_s * 1e3, (row.peak_bytes or 0) / 1e6
        curves.setdefault(row.variant, []).append(point)
    for variant, points in curves.items():
        batch, milliseconds, megabytes = zip(*sorted(points), strict=True)
        time.plot(batch, milliseconds, label=variant, color=colours[variant], marker="o")
        memory.plot(batch, megabytes, color=colours[variant], marker="o")
    floors = sorted({(row.shape["batch"], row.floor_s * 1e3) for row in rows})
    time.plot(*zip(*floors, strict=True), label="floor", color="black", linestyle="--")
    time.set(yscale="log", ylabel="ms")
    memory.set(yscale="log", ylabel="peak MB", xlabel="B")
    memory.set_xscale("log", base=2)


def _batch(text: str) -> int:
    batch = int(text)
    if batch < 3:
        raise argparse.ArgumentTypeError(f"{text} pairs, expected at least three: of two, none is left to choose from")
    return batch


def contrastive_main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from its command line and, where asked for, save the plot."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--batches", type=_batch, nargs="+", metavar="B", help=f"measure these batch sizes; default on CUDA: {BATCHES}"
    )
    parser.add_argument("--plot", type=plot_path, metavar="FILE", help="save a plot of all there (needs matplotlib)")
    given = parser.parse_args(arguments)
    record = measure(partial(cases, batches=given.batches), parser, given)
    if given.plot:
        save_plot(record.rows, given.plot)


if __name__ == "__main__":
    contrastive_main()
