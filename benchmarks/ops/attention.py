"""Measures varlen_attention beside padded SDPA and the libraries' kernels, with 12 heads of 64.

padded sdpa                     the usual code: pad query, key and value, SDPA under a mask, take the rows out again.
                                Where lengths are equal it neither copies nor masks.
padded sdpa, padded input given the same for a model that keeps everything padded: no padding is timed, but the
                                attention over it is
sdpa flash, cudnn, efficient    padded sdpa through that kernel alone
torch varlen, flash_attn, flash_attn_3, flash_attn_4, xformers cutlass, flex attention
                                kernels for packed rows, as each comes; what is named after a kernel fails where torch
                                runs another one
naive                           the formula
backend flash_attn, ...         varlen_attention through that library, on CUDA: with what the adapter adds
backend flash_attn, any order   the same where a backward pass need not repeat bit for bit

A case has sequences of L tokens each, or of L video tokens with 10 to 32 text tokens after them, and is measured
forward, and forward and backward. The backward pass alone is the difference of the two, in the second table. On CUDA a
case has about as many tokens as a training step of 64 clips; on the CPU it has about a thousand, and two more cases are
those that the CPU path is accepted by: reference against padded sdpa at equal lengths (no slower) and at lengths from
10 to 400 (1.5 times as fast). There a case is timed for 5 s.

Gradients are those of query, key and value.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastvtp_kernels import varlen_attention
from fastvtp_kernels.dispatch import ATTENTION_BACKENDS

from ..harness.case import Case, CaseFactory, Cost, Missing, Options
from ..harness.command import command_line, measure, plot_path
from ..harness.record import Direction, Record, Row
from ..harness.timing import Ceilings
from ..harness.variants import TOLERANCES, bind
from ..harness.variants import op_variants as backends_of
from ..peers.attention import Batch, exact, exact_padded, padded_input_sdpa, peers

LENGTHS = (8, 16, 32, 64, 128, 168, 197, 256, 400, 512, 1568, 4096)
CPU_LENGTHS, SMOKE_LENGTHS = (16, 168), (4,)
# Sequences on CUDA by the longest of them: temporal attention of 64 clips, then 64 clips, then what still fits.
CUDA_SEQUENCES = ((16, 16384), (32, 2048), (64, 256), (1600, 64))
MOST_SEQUENCES, CPU_TOKENS = 8, 1024
TEXT_TOKENS = (10, 32)
# The lengths that the CPU path is accepted by, from and to, and how many sequences.
ACCEPTED = {"acceptance, equal lengths": (168, 168), "acceptance, ragged lengths": (10, 400)}
ACCEPTED_SEQUENCES = 12
# How long a case is timed: the cases are many.
CPU_SECONDS = 5.0
INDEX_BYTES, LSE_BYTES = 4, 4
DIRECTIONS = ("forward", "backward", "forward+backward")
BACKEND, ANY_ORDER = "backend ", ", any order"
# Libraries whose backward pass repeats only if it is asked to.
REPEAT_IF_ASKED = ("flash_attn", "flash_attn_3", "flash_attn_4")
# By the longest sequence, as the kernels are divided.
REGIMES = {"tiny": 32, "short": 512, "long": float("inf")}


def attention_cost(lengths: Sequence[int], heads: int, width: int, itemsize: int, backward: bool) -> Cost:
    """Return what attention costs: forward 4 * sum(L^2) * H * Dh FLOP, with the backward pass another 10.

    The forward pass reads query, key, value and offsets, and writes output and log-sum-exp (float32). The backward
    pass, in one go, reads those five tensors, the offsets and the incoming gradient and writes three gradients: eight
    tensors of N * H * Dh. It computes the weights again, and so has five products where the forward pass has two.
    """
    tokens, pairs = sum(lengths), sum(length**2 for length in lengths)
    tensor = tokens * heads * width * itemsize
    beside = tokens * heads * LSE_BYTES + (len(lengths) + 1) * INDEX_BYTES
    return Cost(4 * tensor + beside + backward * (8 * tensor + beside), (4 + backward * 10) * pairs * heads * width)


def sequences_of(length: int, options: Options) -> int:
    """Return how many sequences of up to `length` tokens make a case."""
    if options.smoke:
        return 2
    if options.device.type != "cuda":
        return max(2, CPU_TOKENS // length)
    return next((count for longest, count in CUDA_SEQUENCES if length <= longest), MOST_SEQUENCES)


def lengths_between(shortest: int, longest: int, count: int) -> tuple[int, ...]:
    """Draw `count` lengths from `shortest` to `longest`, the same ones in every run."""
    generator = torch.Generator().manual_seed(longest)
    return tuple(torch.randint(shortest, longest + 1, (count,), generator=generator).tolist())


def cases(options: Options, lengths: Sequence[int] | None = None) -> list[CaseFactory]:
    """Return the cases of the given lengths; without any, those of the device and, on the CPU, of the acceptance.

    Cases of most worth come first, for a run may be stopped: equal lengths before ragged ones, training before
    inference.
    """
    shapes, ragged = {}, {}
    cpu = options.device.type == "cpu"
    if not lengths and cpu:
        shapes = {name: _accepted(*ends, smoke=options.smoke) for name, ends in ACCEPTED.items()}
    for length in lengths or (SMOKE_LENGTHS if options.smoke else CPU_LENGTHS if cpu else LENGTHS):
        shapes[f"{length} tokens each"] = (length,) * sequences_of(length, options)
        least, most = (length + text for text in TEXT_TOKENS)
        name = f"{length} video + {TEXT_TOKENS[0]}-{TEXT_TOKENS[1]} text tokens"
        ragged[name] = lengths_between(least, most, sequences_of(most, options))
    return [
        partial(attention_case, name, lengths, options, direction)
        for group in (shapes, ragged)
        for direction in ("forward+backward", "forward")
        for name, lengths in group.items()
    ]


def _accepted(shortest: int, longest: int, smoke: bool) -> tuple[int, ...]:
    if smoke:
        return lengths_between(max(1, shortest // 40), longest // 40, 3)
    return lengths_between(shortest, longest, ACCEPTED_SEQUENCES)


def attention_case(name: str, lengths: tuple[int, ...], options: Options, direction: Direction) -> Case:
    """Build a case of sequences of these lengths, with every backend, every peer and their float64 truth."""
    device, dtype = options.device, options.dtype
    batch = Batch(lengths, *((2, 16) if options.smoke else (12, 64)), device)
    rows = [torch.randn(batch.tokens, batch.heads, batch.width, dtype=dtype, device=device) for _ in range(3)]
    padded = [batch.pad(tensor).contiguous() for tensor in rows]
    backward = direction == "forward+backward"

    def call(query: Tensor, key: Tensor, value: Tensor, backend: str, deterministic: bool = True) -> Tensor:
        options: dict[str, Any] = {"backend": backend, "deterministic": deterministic}
        return varlen_attention(query, key, value, batch.offsets, batch.longest, **options)

    functions: dict[str, Callable[..., Tensor] | Missing] = {
        **peers(batch, options, backward),
        **backends_of("varlen_attention", call, options),
    }
    if device.type == "cuda":
        # The libraries as the op calls them: what benchmarks.device.attention_choice compares.
        functions |= {BACKEND + name: partial(call, backend=name) for name in ATTENTION_BACKENDS}
        if backward:
            waived = {name: partial(call, backend=name, deterministic=False) for name in REPEAT_IF_ASKED}
            functions |= {BACKEND + name + ANY_ORDER: run for name, run in waived.items()}
    variants, packed_error = bind(functions, exact(batch), rows, direction)
    given: dict[str, Callable[..., Tensor] | Missing] = {"padded sdpa, padded input given": padded_input_sdpa(batch)}
    padded_variants, padded_error = bind(given, exact_padded(batch), padded, direction)

    def error(output: Sequence[Tensor]) -> float:
        return (padded_error if output[0].ndim == 4 else packed_error)(output)

    return Case(
        op="varlen_attention",
        name=name,
        direction=direction,
        shape={
            "sequences": len(lengths),
            "tokens": batch.tokens,
            "shortest": min(lengths),
            "longest": batch.longest,
            "heads": batch.heads,
            "width": batch.width,
        },
        dtype=dtype,
        device=device,
        cost=attention_cost(lengths, batch.heads, batch.width, dtype.itemsize, backward),
        variants=variants | padded_variants,
        baseline="padded sdpa",
        error=error,
        tolerance=TOLERANCES[dtype],
    )


class Rate(NamedTuple):
    """A rate is that of a timed row, or of a backward pass as the difference of two rows, beside the floor."""

    row: Row
    direction: str
    seconds: float
    num_bytes: int
    flops: int
    of_floor: float


def rates(record: Record) -> Iterator[Rate]:
    """Yield the rate of every timed row, and after forward+backward that of its difference to forward."""
    ceilings = Ceilings(**record.environment["ceilings"])

    def rate(row: Row, direction: str, seconds: float, num_bytes: int, flops: int) -> Rate:
        return Rate(row, direction, seconds, num_bytes, flops, ceilings.floor_s(num_bytes, flops) / seconds)

    timed = [row for row in record.rows if row.median_s is not None]
    forward = {(row.case, row.variant): row for row in timed if row.direction == "forward"}
    for row in timed:
        assert row.median_s is not None
        yield rate(row, row.direction, row.median_s, row.model_bytes, row.model_flops)
        first = None if row.direction == "forward" else forward.get((row.case, row.variant))
        # Noise can make the whole shorter than its part.
        if first is not None and first.median_s is not None and row.median_s > first.median_s:
            num_bytes, flops = row.model_bytes - first.model_bytes, row.model_flops - first.model_flops
            yield rate(row, "backward", row.median_s - first.median_s, num_bytes, flops)


def rate_lines(found: Sequence[Rate]) -> Iterator[str]:
    """Yield the lines of a Markdown table of rates, by what the cost model counts."""
    yield "| case | variant | direction | ms | TFLOP/s | GB/s | of floor |"
    yield "|---|---|---|---|---|---|---|"
    for rate in found:
        speed = f"{rate.flops / rate.seconds / 1e12:.3g} | {rate.num_bytes / rate.seconds / 1e9:.3g}"
        yield (
            f"| {rate.row.case} | {rate.row.variant} | {rate.direction} | {rate.seconds * 1e3:.3f} | {speed} | "
            f"{rate.of_floor:.1%} |"
        )


def save_plots(found: Sequence[Rate], folder: Path) -> list[Path]:
    """Save attention_tiny.png, _short and _long: time and percent of floor over the longest sequence, per direction."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    # The acceptance is a pair of points, not of a curve.
    found = [rate for rate in found if rate.row.case not in ACCEPTED]
    variants = sorted({rate.row.variant for rate in found})
    colours = {variant: colormaps["tab20"](number % 20) for number, variant in enumerate(variants)}
    written, shortest = [], 0
    for regime, longest in REGIMES.items():
        here = [rate for rate in found if shortest < rate.row.shape["longest"] <= longest]
        shortest = longest
        if not here:
            continue
        figure = Figure(figsize=(16, 9), layout="constrained")
        directions = [name for name in DIRECTIONS if any(rate.direction == name for rate in here)]
        axes = figure.subplots(2, len(directions), sharex=True, squeeze=False)
        for direction, (time, floor) in zip(directions, axes.T, strict=True):
            _draw(time, floor, [rate for rate in here if rate.direction == direction], colours)
            time.set(title=direction, xscale="log", yscale="log", ylabel="ms")
            floor.set(xlabel="longest sequence", ylabel="% of floor")
        handles = {line.get_label(): line for line in axes[0, 0].lines}
        figure.legend(handles.values(), handles.keys(), loc="outside right upper")
        figure.suptitle(f"varlen_attention, {regime}; filled: equal lengths, hollow: ragged")
        written.append(folder / f"attention_{regime}.png")
        figure.savefig(written[-1])
    return written


def _draw(time: Any, floor: Any, found: Sequence[Rate], colours: dict[str, Any]) -> None:
    curves: dict[tuple[str, bool], list[tuple[int, float, float]]] = {}
    for rate in found:
        shape = rate.row.shape
        curve = curves.setdefault((rate.row.variant, shape["shortest"] < shape["longest"]), [])
        curve.append((shape["longest"], rate.seconds * 1e3, rate.of_floor * 100))
    for (variant, ragged), points in curves.items():
        longest, milliseconds, percent = zip(*sorted(points), strict=True)
        style = {"color": colours[variant], "marker": "o", "linestyle": "--" if ragged else "-"}
        face = "none" if ragged else colours[variant]
        time.plot(longest, milliseconds, label=variant, markerfacecolor=face, **style)
        floor.plot(longest, percent, markerfacecolor=face, **style)


def _length(text: str) -> int:
    length = int(text)
    if length < 1:
        raise argparse.ArgumentTypeError(f"{text} tokens, expected at least one")
    return length


def attention_main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from its command line, with a table of rates and, where asked for, plots."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--lengths", type=_length, nargs="+", metavar="L", help=f"measure these lengths; default on CUDA: {LENGTHS}"
    )
    parser.add_argument("--plot", type=plot_path, metavar="DIR", help="save a plot per regime there (needs matplotlib)")
    given = parser.parse_args(arguments)
    if given.seconds is None and given.device.type == "cpu" and not given.smoke:
        given.seconds = CPU_SECONDS
    found = list(rates(measure(partial(cases, lengths=given.lengths), parser, given)))
    print("", *rate_lines(found), sep="\n")
    if given.plot:
        save_plots(found, given.plot)


if __name__ == "__main__":
    attention_main()
