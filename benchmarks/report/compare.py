"""Compares before and after: the same benchmarks from the commit BASE and from this working tree as it stands.

    python -m benchmarks.report.compare --base main
    python -m benchmarks.report.compare --base HEAD~1 --only attention --rounds 7 --variants triton

BASE is checked out in a temporary folder. Each round runs a benchmark once there and once here, in a process of its
own, base, new, base, new, ..., so that heat, clocks and neighbours hit both alike. Variants are by default ours alone.

A difference counts when it is larger than the spread: the intervals of both sides must not touch, where an interval
holds the medians of all rounds and the typical 20 % and 80 % quantiles of the calls; and it must exceed 3 %. Rounds,
because the calls of one process share its luck (addresses, clocks); quantiles, because times have long tails; 3 %,
because the harness may tell equal functions apart by that much. Where nothing differs, the medians of three rounds
are apart by chance once in ten times, those of five once in a hundred: hence five.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fastvtp.errors import UserError, unknown_name

from ..harness.record import Row
from .results import OPS, module_of
from .tables import megabytes, number, seconds, table

ROOT = Path(__file__).parents[2]
ROUNDS, LEAST_ROUNDS = 5, 3
SMALLEST = 0.03
OUR_VARIANTS = ("triton", "reference")
OUR_STEPS = ("fastvtp", "fastvtp, compiled", "fastvtp, graph")
Key = tuple[str, str, str, str, str, str]


@dataclass(frozen=True)
class Side:
    """A side is one variant of one case in one tree, over all rounds.

    Times are in seconds, and None if a round has no time; `note` then says why.
    """

    median: float | None
    low: float
    high: float
    peak_bytes: int | None
    note: str


def side(rows: Sequence[Row]) -> Side:
    """Sum up one variant's rows of all rounds."""
    timed = [(row.median_s, row.p20_s, row.p80_s) for row in rows]
    medians, lows, highs = ([value for value in values if value is not None] for values in zip(*timed, strict=True))
    note = next((row.note for row in rows if row.note), "")
    if len(medians) < len(rows):
        return Side(None, 0.0, 0.0, None, note or "no time")
    low, high = min(*medians, statistics.median(lows)), max(*medians, statistics.median(highs))
    return Side(statistics.median(medians), low, high, rows[-1].peak_bytes, note)


def significant(before: Side, after: Side) -> bool:
    """Say whether the difference is larger than the spread of both, and than 3 %; the head of this file says why."""
    if before.median is None or after.median is None:
        return False
    apart = before.high < after.low or after.high < before.low
    return apart and abs(after.median / before.median - 1) > SMALLEST


def verdict(before: Side | None, after: Side | None) -> str:
    """Say in words what became of a variant, in capitals where that is bad."""
    if before is None or after is None:
        return "only here" if before is None else "only in the base"
    if before.median is None or after.median is None:
        if before.median is after.median:
            return f"no time: {after.note}"
        return f"now timed, before {before.note}" if before.median is None else f"NO LONGER TIMED: {after.note}"
    if not significant(before, after):
        return "no difference beyond the spread"
    factor = before.median / after.median
    return f"{number(factor)}× as fast" if factor > 1 else f"{number(1 / factor)}× SLOWER"


def report(before: dict[Key, list[Row]], after: dict[Key, list[Row]]) -> Iterator[str]:
    """Yield a table with a line per variant and case, in the order of the new tree."""
    head = ("op", "case", "variant", "before", "spread", "after", "spread", "peak MB before", "after", "verdict")
    lines = []
    for key in dict.fromkeys([*after, *before]):
        op, case, direction, dtype, _, variant = key
        sides = [side(found[key]) if key in found else None for found in (before, after)]
        times = [cell for found in sides for cell in _time_and_spread(found)]
        memory = [megabytes(found.peak_bytes) if found else "" for found in sides]
        lines.append((op, f"{case}, {direction}, {dtype}", variant, *times, *memory, verdict(*sides)))
    yield from table(head, lines)


def _time_and_spread(found: Side | None) -> tuple[str, str]:
    if found is None or found.median is None:
        return "", ""
    return seconds(found.median), f"{seconds(found.low)}–{seconds(found.high)}"


# --- git


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _on_interrupt(handler: Any) -> Iterator[None]:
    """Let Ctrl-C and `kill` call the handler inside the block."""
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)


def commit_of(root: Path, revision: str) -> str:
    """Return the full name of a commit.

    Raises:
        UserError: there is no such commit, or no repository.
    """
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found.returncode:
        raise UserError(f"--base: git knows no commit {revision!r} in {root}")
    return found.stdout.strip()


@contextmanager
def worktree(root: Path, commit: str) -> Iterator[Path]:
    """Check the commit out in a temporary folder, which is removed however the block ends."""
    with tempfile.TemporaryDirectory(prefix="fastvtp-base-", ignore_cleanup_errors=True) as folder:
        tree = Path(folder) / "tree"
        try:
            added = _git(root, "worktree", "add", "--detach", str(tree), commit)
            if added.returncode:
                raise UserError(f"--base: git worktree add: {(added.stderr.strip().splitlines() or ['failed'])[-1]}")
            yield tree
        finally:
            # A second Ctrl-C must not leave half of it behind.
            with _on_interrupt(signal.SIG_IGN):
                remove = ("worktree", "remove", "--force", "--force", str(tree))
                if _git(root, *remove).returncode:
                    # A checkout cut short; git forgets a tree whose folder is gone.
                    shutil.rmtree(tree, ignore_errors=True)
                    _git(root, *remove)


def places_of(name: str) -> tuple[Path, Path]:
    """Return where a tree may hold a benchmark: in the folder of today, or beside all others, as in old commits."""
    return Path(*module_of(name).split(".")).with_suffix(".py"), Path("benchmarks") / f"{name}.py"


def benchmarks_to_run(root: Path, commit: str, only: Sequence[str]) -> list[str]:
    """Return the benchmarks that are named by file or by op; without any, all that both trees have.

    Raises:
        UserError: there is no such benchmark here or in the base.
    """
    by_op = {op: name for name, ops in OPS.items() for op in ops}
    here = [name for name in OPS if any((root / place).exists() for place in places_of(name))]
    absent = [
        name
        for name in here
        if all(_git(root, "cat-file", "-e", f"{commit}:{place.as_posix()}").returncode for place in places_of(name))
    ]
    if not only:
        if absent:
            print(f"not in the base: {', '.join(absent)}", file=sys.stderr)
        return [name for name in here if name not in absent]
    chosen = list(dict.fromkeys(by_op.get(name, name) for name in only))
    for name in chosen:
        if name not in here:
            raise unknown_name("benchmark", name, here)
        if name in absent:
            raise UserError(f"--only {name}: the base {commit[:10]} has no {places_of(name)[0]}")
    return chosen


# --- runs


def run_once(tree: Path, name: str, arguments: Sequence[str]) -> dict[Key, Row]:
    """Run one benchmark of a tree in a process of its own, and return its rows.

    Raises:
        UserError: it failed; the message holds its last line.
    """
    # Before whatever is installed: each tree must measure itself.
    paths = [str(tree), str(tree / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        module = next(".".join(place.with_suffix("").parts) for place in places_of(name) if (tree / place).exists())
        command = [sys.executable, "-m", module, "--json", str(file), *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not file.exists():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"{module} ended with status {done.returncode} in {tree}: {last}")
        return _by_key(json.loads(file.read_text())["rows"])


def _by_key(entries: Sequence[dict[str, Any]]) -> dict[Key, Row]:
    """Read rows by what tells them apart; fields that only an older or newer Row has are left out."""
    known = set(Row.__dataclass_fields__)
    rows = [Row(**{name: value for name, value in entry.items() if name in known}) for entry in entries]
    return {
        (row.op, row.case, row.direction, row.dtype, json.dumps(row.shape, sort_keys=True), row.variant): row
        for row in rows
    }


def alternate(
    trees: Sequence[Path], name: str, arguments: Sequence[str], rounds: int
) -> tuple[dict[Key, list[Row]], ...]:
    """Run a benchmark in both trees in turns; return the rows of each, without variants that not every round has."""
    found: tuple[dict[Key, list[Row]], ...] = tuple({} for _ in trees)
    for count in range(1, rounds + 1):
        for tree, rows, label in zip(trees, found, ("base", "new"), strict=True):
            print(f"{name}, round {count} of {rounds}: {label}", file=sys.stderr, flush=True)
            for key, row in run_once(tree, name, arguments).items():
                rows.setdefault(key, []).append(row)
    return tuple({key: rows for key, rows in side.items() if len(rows) == rounds} for side in found)


def _rounds(text: str) -> int:
    if not text.isdigit() or int(text) < LEAST_ROUNDS:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number of at least {LEAST_ROUNDS}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", required=True, metavar="REV", help="compare this tree with that commit")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="OP", help="compare these benchmark files or ops; default: all"
    )
    parser.add_argument(
        "--rounds", type=_rounds, default=ROUNDS, metavar="N", help=f"run each benchmark so often; default: {ROUNDS}"
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        metavar="VARIANT",
        help="compare these variants; default: ours; peers too would be a control",
    )
    parser.add_argument("--seconds", help="time each case for so long a round; default: the benchmark's own")
    parser.add_argument("--device", help="run there: cpu or cuda; default: the benchmark's own")
    parser.add_argument("--dtype", help="compute in this dtype; default: the benchmark's own")
    parser.add_argument("--smoke", action="store_true", help="use tiny shapes, only to see that it runs")
    return parser


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Compare as the command line asks, print a table per benchmark, and return the exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    passed = []
    for name in ("seconds", "device", "dtype"):
        if (value := getattr(given, name)) is not None:
            passed += [f"--{name}", value]
    passed += ["--smoke"] * given.smoke
    try:
        commit = commit_of(root, given.base)
        names = benchmarks_to_run(root, commit, given.only)
        with _on_interrupt(_interrupted), worktree(root, commit) as base:
            for name in names:
                variants = given.variants or (OUR_STEPS if name == "train_step" else OUR_VARIANTS)
                sides = alternate((base, root), name, [*passed, "--only", *variants], given.rounds)
                print(f"\n{name}: {given.base} ({commit[:10]}) and this tree, {given.rounds} rounds\n")
                print(*report(*sides), sep="\n", flush=True)
    except UserError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; the base's checkout is removed\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
