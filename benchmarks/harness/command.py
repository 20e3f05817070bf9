"""One harness for every op: check the variants, time them side by side, hold them against the floor, write it down.

A benchmark file offers `cases(options)`, a list of functions that each build one `Case`, and calls `main`. A variant
that cannot run, fails or computes something else than the truth gets a row that says so, and no time.
"""

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvtp_kernels.dispatch import backends

from .case import CaseFactory, Missing, Options
from .record import Direction, Record, markdown_table, write_json
from .running import Choice, run
from .timing import Function

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Largest difference from the float64 truth, as a fraction of its largest value.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def compiled(function: Callable[..., Any], options: Options) -> Callable[..., Any]:
    """`function` under torch.compile; in a smoke run traced but not lowered, which would take minutes."""
    return torch.compile(function, dynamic=False, backend="aot_eager" if options.smoke else "inductor")


def op_variants(op: str, call: Callable[..., Any], options: Options) -> dict[str, Callable[..., Any] | Missing]:
    """The op through its backends. `call` takes the keyword `backend`."""
    reference = partial(call, backend="reference")
    (found,) = (found for found in backends(op, options.device) if found.backend == "triton")
    triton = partial(call, backend="triton") if found.available else Missing(found.reason)
    if found.available and options.device.type == "cpu" and not options.smoke:
        triton = Missing("Triton's interpreter would take hours at this size; --smoke runs it")
    return {"reference": reference, "compiled reference": compiled(reference, options), "triton": triton}


def bind(
    functions: dict[str, Callable[..., Tensor] | Missing],
    truth: Callable[..., Tensor],
    leaves: Sequence[Tensor],
    direction: Direction,
) -> tuple[dict[str, Function | Missing], Callable[[Any], float]]:
    """Calls without arguments from functions of the leaves, and the error of what they return.

    Forward: the output, without autograd. Forward and backward: the output and the gradient of each leaf, for one
    random incoming gradient. The truth is what `truth` makes of the leaves in float64.
    """
    leaves = [leaf.detach().requires_grad_(direction == "forward+backward") for leaf in leaves]
    exact_leaves = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves]
    with torch.no_grad():
        output = truth(*leaves)
    incoming = torch.randn_like(output) if output.ndim else torch.ones_like(output)

    def run(function: Callable[..., Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if direction == "forward":
            with torch.no_grad():
                return (function(*leaves),)
        output = function(*leaves)
        return (output.detach(), *torch.autograd.grad(output, leaves, incoming.to(output.dtype)))

    variants: dict[str, Function | Missing] = {
        name: function if isinstance(function, Missing) else partial(run, function, leaves)
        for name, function in functions.items()
    }
    return variants, partial(relative_error, expected=run(truth, exact_leaves))


def relative_error(output: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest max|output - expected| / max|expected| over the tensors; infinite for a wrong shape or a NaN."""
    worst = 0.0
    for actual, exact in zip(output, expected, strict=True):
        if actual.shape != exact.shape or not actual.isfinite().all():
            return float("inf")
        difference, scale = (actual.double() - exact).abs().max().item(), exact.abs().max().item()
        worst = max(worst, difference / max(scale, torch.finfo(torch.float32).tiny))
    return worst


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{name!r} is no device, expected 'cpu' or 'cuda'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"torch {torch.__version__} sees no CUDA device")
    return device


def command_line(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark file has; a file may add its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on CUDA, float32 on the CPU")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes: does every line run?")
    parser.add_argument("--seconds", type=float, help="timing per case; default: 10 on the CPU, 2 on CUDA")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and environment there")
    parser.add_argument("--only", nargs="+", default=(), metavar="VARIANT", help="leave the other variants out")
    parser.add_argument("--without", nargs="+", default=(), metavar="WORD", help="leave out variants that contain one")
    parser.add_argument(
        "--with", dest="having", nargs="+", default=(), metavar="WORD",
        help="leave out variants that contain none, except the baseline",
    )  # fmt: skip
    return parser


def given_options(given: argparse.Namespace) -> Options:
    """What the options of `command_line` ask for."""
    dtype = DTYPES[given.dtype or ("bfloat16" if given.device.type == "cuda" else "float32")]
    return Options(given.device, dtype, given.smoke)


def plot_path(text: str) -> Path:
    """The type of a --plot option: asked for in vain, it says so before anything is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("the package matplotlib is not installed")
    return Path(text)


def measure(
    cases: Callable[[Options], Sequence[CaseFactory]], parser: argparse.ArgumentParser, given: argparse.Namespace
) -> Record:
    """Run what the command line asks for: the table on stdout, progress on stderr, JSON where asked for."""
    options = given_options(given)

    def save(record: Record) -> None:
        if given.json:
            write_json(given.json, record.rows, record.environment)

    choice = Choice(given.only, given.without, given.having)
    record = run(cases(options), options, given.seconds, choice, save)
    print(f"{record.environment['device']}, {record.environment['date']}{', smoke' if given.smoke else ''}\n")
    print(markdown_table(record.rows))
    if unknown := sorted(set(given.only) - record.offered):
        parser.error(f"--only: no variant {unknown[0]!r}; there are {', '.join(sorted(record.offered))}")
    if record.stopped:
        parser.exit(1, f"{record.stopped}\n")
    return record


def main(
    cases: Callable[[Options], Sequence[CaseFactory]], description: str | None, arguments: Sequence[str] | None = None
) -> None:
    """The command line of a benchmark file without options of its own."""
    parser = command_line(description)
    measure(cases, parser, parser.parse_args(arguments))
