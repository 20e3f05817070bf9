"""Gives every benchmark file the same command line, and carries out the run that it asks for.

A benchmark file offers `cases(options)`, a list of functions that each build one `Case`, and calls `main`. A variant
that cannot run, fails or computes something else than the truth gets a row that says so, and no time.
"""

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
    """Return a parser with the options that every benchmark file has; a file may add its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    words: dict[str, Any] = {"nargs": "+", "default": (), "metavar": "WORD"}
    add("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu", help="run there: cpu or cuda")
    add("--dtype", choices=DTYPES, help="compute in this dtype; default: bfloat16 on CUDA, float32 on the CPU")
    add("--smoke", action="store_true", help="use tiny shapes, only to see that every line runs")
    add("--seconds", type=float, help="time each case for so long; default: 10 on the CPU, 2 on CUDA")
    add("--json", type=Path, metavar="FILE", help="write the rows and the environment to this file")
    add("--only", nargs="+", default=(), metavar="VARIANT", help="leave all other variants out")
    add("--without", **words, help="leave out variants whose name contains one of these words")
    add(
        "--with", dest="having", **words, help="leave out variants whose name contains none of them; the baseline stays"
    )
    return parser


def given_options(given: argparse.Namespace) -> Options:
    """Return the options of a run, read from what a parser of `command_line` has understood."""
    dtype = DTYPES[given.dtype or ("bfloat16" if given.device.type == "cuda" else "float32")]
    return Options(given.device, dtype, given.smoke)


def plot_path(text: str) -> Path:
    """Read the value of a --plot option, and refuse it without matplotlib before anything is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("the package matplotlib is not installed")
    return Path(text)


def measure(
    cases: Callable[[Options], Sequence[CaseFactory]], parser: argparse.ArgumentParser, given: argparse.Namespace
) -> Record:
    """Run what the command line asks for, with the table on stdout, progress on stderr and JSON where asked for."""
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
    """Run a benchmark file that has no options of its own from its command line."""
    parser = command_line(description)
    measure(cases, parser, parser.parse_args(arguments))
