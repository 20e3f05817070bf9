"""One harness for every op: check the variants, time them side by side, hold them against the floor, write it down.

A benchmark file offers `cases(options)`, a list of functions that each build one `Case`, and calls `main`. A variant
that cannot run, fails or computes something else than the truth gets a row that says so, and no time.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvtp_kernels.dispatch import BackendUnavailableError, backends

from .environment import environment
from .record import Direction, Record, Row, markdown_table, write_json
from .timing import Ceilings, Function, Timer, Timing, measure_ceilings, peak_bytes, timer_for

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Largest difference from the float64 truth, as a fraction of its largest value.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@dataclass(frozen=True)
class Missing:
    """A variant that cannot run here."""

    reason: str


@dataclass(frozen=True)
class Cost:
    """Useful work of an op: each needed input byte read once, each output byte written once, and the FLOP."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Options:
    """What a benchmark file builds its cases from."""

    device: torch.device
    dtype: torch.dtype
    smoke: bool = False


@dataclass(frozen=True)
class Case:
    """Variants of one op on the same inputs.

    error: of a variant's output; above `tolerance` (or NaN) the variant is wrong. baseline: the variant that speedups
    refer to.
    """

    op: str
    name: str
    direction: Direction
    shape: dict[str, int]
    dtype: torch.dtype
    device: torch.device
    cost: Cost
    variants: dict[str, Function | Missing]
    baseline: str
    error: Callable[[Any], float]
    tolerance: float


CaseFactory = Callable[[], Case]


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


def run_case(case: Case, ceilings: Ceilings, timer: Timer, seconds: float, only: Sequence[str] = ()) -> list[Row]:
    """Check every variant once, time the right ones together, then measure each one's peak memory."""
    torch.compiler.reset()
    rows: dict[str, Row] = {}
    timed: dict[str, Function] = {}
    for name, variant in case.variants.items():
        if only and name not in only:
            continue
        row = rows[name] = _row(case, name, ceilings)
        if isinstance(variant, Missing):
            row.note = f"missing: {variant.reason}"
            continue
        row.error, row.note = _check(case, variant)
        if not row.note:
            timed[name] = variant
    times = timer.time(timed, seconds) if timed else {}
    for name, function in timed.items():
        _enter(rows[name], times[name], times.get(case.baseline))
        rows[name].peak_bytes = peak_bytes(function, case.device)
    return list(rows.values())


def _row(case: Case, variant: str, ceilings: Ceilings) -> Row:
    return Row(
        case.op, case.name, variant, case.shape, str(case.dtype).removeprefix("torch."), case.direction,
        case.cost.bytes, case.cost.flops, ceilings.floor_s(case.cost.bytes, case.cost.flops), case.baseline,
    )  # fmt: skip


def _check(case: Case, variant: Function) -> tuple[float | None, str]:
    """The variant's error, and why it gets no time (empty if it does)."""
    try:
        error = case.error(variant())
    except BackendUnavailableError as reason:
        return None, f"missing: {reason}"
    except Exception as failure:
        # Whatever it is, one variant's failure must not take the others down.
        return None, f"failed: {type(failure).__name__}: {str(failure).strip().partition(chr(10))[0]}"
    if error <= case.tolerance:
        return error, ""
    # JSON knows no infinity.
    finite = error if error < float("inf") else None
    return finite, f"wrong: error {error:.2g}, at most {case.tolerance:.2g} allowed"


def _enter(row: Row, timing: Timing, baseline: Timing | None) -> None:
    row.median_s, row.p20_s, row.p80_s = timing.median, timing.p20, timing.p80
    row.wall_s, row.calls = timing.wall, timing.calls
    row.fraction_of_floor = row.floor_s / timing.median
    row.speedup = baseline.median / timing.median if baseline else None


def measured_environment(options: Options, timer: Timer) -> tuple[dict[str, Any], Ceilings]:
    """The environment with the ceilings of this run, and the ceilings themselves."""
    ceilings = measure_ceilings(options.device, options.dtype, timer, smoke=options.smoke)
    return {**environment(options.device), "ceilings": asdict(ceilings), "smoke": options.smoke}, ceilings


def run(
    factories: Sequence[CaseFactory],
    options: Options,
    seconds: float | None = None,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    save: Callable[[Record], None] = lambda record: None,
) -> Record:
    """Build and run one case after the other.

    Args:
        factories: each builds a case; its inputs live until the next one's turn.
        options: device, dtype and size of the run.
        seconds: of timing per case; by default 10 on the CPU, 2 on CUDA, none but the least number of calls in smoke.
        only: names of the variants to run; all if empty.
        without: words; variants whose name contains one are left out.
        save: called after each case, so that a run that is stopped leaves what it has measured.
    """
    if seconds is None:
        seconds = 0.0 if options.smoke else 2.0 if options.device.type == "cuda" else 10.0
    timer = timer_for(options.device)
    about, ceilings = measured_environment(options, timer)
    record = Record(about)
    for factory in _with_progress(factories):
        torch.manual_seed(0)
        case = factory()
        record.offered.update(case.variants)
        kept = {name: v for name, v in case.variants.items() if not any(word in name for word in without)}
        case = replace(case, variants=kept)
        record.rows += run_case(case, ceilings, timer, seconds, only)
        save(record)
    return record


def _with_progress(factories: Sequence[CaseFactory]) -> Iterable[CaseFactory]:
    try:
        from tqdm import tqdm
    except ImportError:
        return _with_lines(factories)
    return tqdm(factories, unit="case", file=sys.stderr)


def _with_lines(factories: Sequence[CaseFactory]) -> Iterator[CaseFactory]:
    for number, factory in enumerate(factories, 1):
        print(f"case {number} of {len(factories)}", file=sys.stderr)
        yield factory


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

    record = run(cases(options), options, given.seconds, given.only, given.without, save)
    print(f"{record.environment['device']}, {record.environment['date']}{', smoke' if given.smoke else ''}\n")
    print(markdown_table(record.rows))
    if unknown := sorted(set(given.only) - record.offered):
        parser.error(f"--only: no variant {unknown[0]!r}; there are {', '.join(sorted(record.offered))}")
    return record


def main(
    cases: Callable[[Options], Sequence[CaseFactory]], description: str | None, arguments: Sequence[str] | None = None
) -> None:
    """The command line of a benchmark file without options of its own."""
    parser = command_line(description)
    measure(cases, parser, parser.parse_args(arguments))
