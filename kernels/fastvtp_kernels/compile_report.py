"""What the compiler makes of every shipped kernel, what is wrong with it, and how long a model says that it takes.

    python -m fastvtp_kernels.compile_report [--arch sm_80 sm_90 gfx942] [--only PATTERN] [--jobs N]
                                             [--json FILE] [--page FILE ...] [--compare OLD NEW]

Needs Triton, but neither a GPU nor a driver: the real launchers run on the meta device for each architecture in turn,
and what they would launch is compiled and disassembled. Ends with status 1 if a kernel spills registers in a loop, or
more than a few bytes outside; if its products on sm_90 are serialised; if it needs more shared memory than the device
has; or if it multiplies matrices without tensor cores, which only float32 in full precision may and must: no tensor
core can do that. `compile_model` says what the times are made of. --compare reads two files that --json wrote, of two
commits.
"""

import argparse
import hashlib
import io
import json
import os
import re
import sys
import tokenize
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import compile_tables as tables
from .compile_device import SHARED_LIMIT
from .compile_row import Row, faults, inspect
from .tuning import ANY, TABLE, targeting

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
# 99 KiB of shared memory: every line of the table is compiled for them too, but not every option, dtype and width.
SMALLER_ARCHITECTURES = ("sm_89", "sm_120")
PAGE_MARKERS = ("<!-- compile report -->", "<!-- end of compile report -->")
SHORT_MARKERS = ("<!-- short compile report -->", "<!-- end of short compile report -->")


class _OfflineDriver:
    """Stands in for Triton's driver: a target without a device."""

    def __init__(self, arch: str) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch[3:]), 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> str:
        return str(self._target.arch)

    def get_current_stream(self, device: str) -> int:
        return 0


def compile_case(number: int, arch: str) -> list[Row]:
    """Compile case `number` of `compile_cases.cases` for one architecture.

    Raises:
        RuntimeError: kernels are set to run in the interpreter (TRITON_INTERPRET).
    """
    from triton.runtime import driver

    from .compile_cases import cases
    from .interpreter import interpreting
    from .launching import compile_only

    if interpreting():
        raise RuntimeError("TRITON_INTERPRET is set: nothing is compiled; unset it")
    case = list(cases())[number]
    offline: Any = _OfflineDriver(arch)
    driver.set_active(offline)
    with targeting(arch), compile_only() as compiled:
        case.run()
    return [inspect(case.name, arch, each) for each in compiled]


def report(
    architectures: Sequence[str] = (*ARCHITECTURES, *SMALLER_ARCHITECTURES),
    jobs: int | None = None,
    only: str = "",
) -> list[Row]:
    """Compile every case, or those whose name matches `only`, for every architecture.

    In `jobs` processes (default: one per processor).
    """
    from .compile_cases import cases

    work = [
        (number, arch)
        for arch in architectures
        for number, case in enumerate(cases())
        if (case.everywhere or arch not in SMALLER_ARCHITECTURES) and re.search(only, case.name)
    ]
    rows: list[Row] = []
    if not work:
        return rows
    with ProcessPoolExecutor(jobs or os.cpu_count()) as pool:
        for done, found in enumerate(pool.map(compile_case, *zip(*work, strict=True)), start=1):
            rows += found
            print(f"\r{done}/{len(work)} launches compiled", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows


def sources() -> str:
    """Return a digest of everything that the page depends on: comments, docstrings and layout aside."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text()
        if "import triton" in text or path.name in ("tuning.py", "problem.py") or path.name.startswith("compile_"):
            digest.update(path.relative_to(folder).as_posix().encode())
            before, docstring = tokenize.NEWLINE, False
            for token in tokenize.generate_tokens(io.StringIO(text).readline):
                if token.type in (tokenize.COMMENT, tokenize.NL):
                    continue
                # A string that begins a statement is there for readers, and so is the end of its line.
                starts = before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
                docstring = (docstring and token.type == tokenize.NEWLINE) or (starts and token.type == tokenize.STRING)
                if not docstring:
                    digest.update(token.string.encode())
                before = token.type
    return digest.hexdigest()[:16]


def not_compiled(rows: Sequence[Row]) -> list[str]:
    """Name the entries of the table of tiles that no case launched on an architecture of the report, one line each."""
    compiled = {(row.entry, row.arch, row.tile) for row in rows}
    return [
        f"{arch} {kernel} {column}: no case launches {tile}"
        for arch in dict.fromkeys(row.arch for row in rows)
        for kernel, columns in TABLE.items()
        for column, entries in columns.items()
        if (tile := entries.get(arch, entries.get(ANY))) is not None
        and (f"{kernel} {column}", arch, str(tile)) not in compiled
    ]


def with_tables(page: str, rows: Sequence[Row], wrong: Sequence[str]) -> str:
    """Return the page with the tables between its markers, and the digest of the sources that they are of.

    Raises:
        ValueError: it has neither pair of markers.
    """
    import triton

    found = False
    for (start, end), write in (
        (PAGE_MARKERS, lambda: tables.page(rows, wrong)),
        (SHORT_MARKERS, lambda: tables.short_table(rows)),
    ):
        if start in page and end in page:
            found = True
            before, after = page.split(start)[0], page.split(end)[1]
            of = f"Triton {triton.__version__}, sources {sources()}."
            page = f"{before}{start}\n{of}\n\n{write()}\n{end}{after}"
    if not found:
        raise ValueError(f"the page has no lines {' and '.join(PAGE_MARKERS)} to put the tables between")
    return page


def read_json(file: Path) -> list[Row]:
    """Return the rows that --json wrote."""
    return [Row.from_json(entry) for entry in json.loads(file.read_text())]


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastvtp_kernels.compile_report", description="What the compiler makes of the kernels."
    )
    everything = (*ARCHITECTURES, *SMALLER_ARCHITECTURES)
    parser.add_argument("--arch", nargs="+", default=list(everything), choices=sorted(SHARED_LIMIT), metavar="ARCH")
    parser.add_argument(
        "--only", type=_pattern, default="", metavar="PATTERN", help="compile launches whose name this regex finds"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (default: one per processor)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row, with all counts")
    parser.add_argument("--page", type=Path, nargs="+", metavar="FILE", help="replace the tables between their markers")
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar=("OLD", "NEW"), help="compile nothing: say how two JSON files differ"
    )
    options = parser.parse_args(arguments)
    if options.compare:
        print(tables.compare(*map(read_json, options.compare)))
        return 0
    if options.page and options.only:
        parser.error("--page holds all launches, --only compiles some")
    rows = report(options.arch, options.jobs, options.only)
    if not rows:
        print(
            f"compile_report: no launch on {', '.join(options.arch)} has a name that {options.only!r} finds",
            file=sys.stderr,
        )
        return 2
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    wrong = faults(rows)
    if not options.only:
        wrong += not_compiled(rows)
    for page in options.page or ():
        page.write_text(with_tables(page.read_text(), rows, wrong))
    print(tables.page(rows, wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
