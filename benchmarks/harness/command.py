"""The command line of a benchmark: its options, and the run that they ask for.

A benchmark file offers `cases(options)`, a list of functions that each build one `Case`, and calls `main`. A variant
that cannot run, fails or computes something else than the truth gets a row that says so, and no time.
"""

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .case import CaseFactory, Options
from .record import Record, markdown_table, write_json
from .running import Choice, run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
