"""Searches better tiles for an op's kernels: `python -m benchmarks.device.tune attention --case "168 tokens each"`.

On a GPU the op's Triton variant runs with one tile changed at a time, in turns with the tiles as they stand. A
candidate must compile without spills, meet the tolerance law (at most twice the reference's error) and be faster
beyond the spread of both; the search goes on from the best found, until its time is over or no neighbour is better.
What each case found is then tried in all the others that use the same entry of the table (`tune_table.py`): one table
is printed and written with --table, and its entries for `fastvtp_kernels.tuning.TABLE` printed for review: a table that
people read decides what runs, not a search in the middle of a training step.

With --offline ARCH no GPU is needed: the neighbours are compiled and those in which the compile report finds no fault
listed, with how many of them fit on a multiprocessor and what decides that.
"""

import importlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from pprint import pformat
from typing import Any

import torch

from fastvtp_kernels import tuning
from fastvtp_kernels.tuning import Tile

from ..harness.case import Case, Options
from ..harness.command import command_line, given_options
from ..harness.environment import environment
from ..harness.record import write_json_rows
from ..harness.timing import Timer, timer_for
from ..report.results import OPS, module_of
from .tune_table import Searched, Workbench, candidates, choose, retime, snippet, table, write_table

WARPS, STAGES = (2, 4, 8, 16), (1, 2, 3, 4, 5)
SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256
# Seconds for all cases together; the searches may take this part of them, trying their winners elsewhere has the rest.
BUDGET, SMOKE_BUDGET, SEARCH_SHARE = 120.0, 10.0, 0.6


@dataclass(frozen=True)
class Trial:
    """A trial says how one tile fared in one entry of the table, in seconds per call of the whole variant."""

    entry: str
    case: str
    direction: str
    tile: str
    outcome: str
    seconds: float | None = None
    before: float | None = None


def neighbours(tile: Tile) -> Iterator[Tile]:
    """Yield the tile with one block halved or doubled, or with another number of warps or stages."""
    for name, size in tile.blocks.items():
        for changed in (size // 2, size * 2):
            if SMALLEST_BLOCK <= changed <= LARGEST_BLOCK or size == 8:
                yield replace(tile, blocks={**tile.blocks, name: changed})
    for field, values in (("num_warps", WARPS), ("num_stages", STAGES)):
        place = values.index(getattr(tile, field))
        for changed in values[max(0, place - 1) : place + 2]:
            if changed != getattr(tile, field):
                yield replace(tile, **{field: changed})


class Search:
    """A search is a coordinate descent over the tiles that one variant uses."""

    def __init__(self, case: Case, timer: Timer, seconds_per_trial: float, deadline: float):
        self.case, self._deadline = case, deadline
        self._bench = Workbench(case, timer, seconds_per_trial)
        self.best = dict(self._bench.standing)
        self.trials: list[Trial] = []

    def run(self) -> dict[str, Tile]:
        """Return better tiles by entry; entries that stand as they were are left out."""
        improved: dict[str, Tile] = {}
        progress = True
        while progress:
            progress = False
            for entry, tile in list(self.best.items()):
                for candidate in neighbours(tile):
                    if time.monotonic() > self._deadline:
                        return improved
                    if self._is_better(entry, candidate):
                        self.best[entry] = improved[entry] = candidate
                        progress = True
        return improved

    def _is_better(self, entry: str, candidate: Tile) -> bool:
        tile = str(candidate)
        if any(trial.entry == entry and trial.tile == tile for trial in self.trials):
            return False
        trial = Trial(entry, self.case.name, self.case.direction, tile, "")
        pair = self._bench.compare(self.best, {**self.best, entry: candidate})
        if isinstance(pair, str):
            self.trials.append(replace(trial, outcome=pair))
            return False
        outcome = "better" if pair.better else "no better"
        self.trials.append(replace(trial, outcome=outcome, seconds=pair.then.median, before=pair.now.median))
        return pair.better


def offline(kernel: str, architecture: str) -> Iterator[str]:
    """Yield a line for every neighbour of a kernel's tile that has no fault, in the cases that launch it."""
    from fastvtp_kernels import compile_cases, compile_report

    for number, case in enumerate(compile_cases.cases()):
        for row in compile_report.compile_case(number, architecture):
            name, _, column = row.entry.rpartition(" ")
            if name != kernel:
                continue
            by_architecture = tuning.TABLE[name]["half" if column == "half" else "single"]
            standing = by_architecture.get(architecture) or by_architecture[tuning.ANY]
            for tile in itertools.chain([standing], neighbours(standing)):
                with tuning.override(name, tile):
                    found = compile_report.compile_case(number, architecture)
                here = [other for other in found if (other.entry, other.kernel) == (row.entry, row.kernel)]
                if any(other.faults() for other in here):
                    continue
                for other in here:
                    yield (
                        f"{case.name} | {other.kernel} | {tile} | {other.registers} registers | "
                        f"{other.shared_bytes // 1024} KiB | {other.resident} blocks a multiprocessor"
                    )


def chosen(module: Any, options: Options, name: str | None) -> list[Callable[[], Case]]:
    """Return the benchmark's cases, or those whose name contains a word."""
    factories = module.cases(options)
    if name is None:
        return factories
    return [factory for factory in factories if any(name in str(part) for part in getattr(factory, "args", ()))]


def shares(items: Sequence[Any], end: float) -> Iterator[tuple[Any, float]]:
    """Yield each item and when its turn is over; those that are left share evenly what is left of the time."""
    for number, item in enumerate(items):
        now = time.monotonic()
        yield item, now + (end - now) / (len(items) - number)


def tune(factories: Sequence[Callable[[], Case]], given: Any, options: Options) -> None:
    """Search in every case, join the cases, and print and write what was found as the command line asks."""
    budget = (SMOKE_BUDGET if options.smoke else BUDGET) if given.budget is None else given.budget
    seconds = given.seconds or (0.0 if options.smoke else 0.2)
    timer, start = timer_for(options.device), time.monotonic()
    about = {**environment(options.device), "smoke": options.smoke}
    searched, rows = [], []
    for factory, deadline in shares(factories, start + SEARCH_SHARE * budget):
        torch.manual_seed(0)
        search = Search(factory(), timer, seconds, deadline)
        better = search.run()
        case, label = search.case, f"{search.case.op}, {search.case.name}, {search.case.direction}"
        print(f"{label}: {len(search.trials)} tiles tried, {len(better)} better", flush=True)
        # A smoke run in which nothing won tries the tiles that stand, so that what follows runs too.
        winners = better or (search.best if options.smoke else {})
        searched.append(Searched(label, set(search.best), winners, partial(_workbench, factory, timer, seconds)))
        rows += [{"op": case.op, **asdict(trial)} for trial in search.trials]
        if given.json:
            write_json_rows(given.json, rows, about)
    found = candidates(searched)
    for here, deadline in shares(searched, start + budget):
        retime(found, here, deadline)
    # The times of a smoke run on the CPU are no architecture's.
    architecture = tuning.architecture(options.device) if options.device.type == "cuda" else "cpu"
    better = choose(found)
    joint = table(better, architecture)
    for candidate in found:
        if candidate.refusal:
            print(f"{candidate.entry}, {candidate.tile}: {candidate.refusal}")
    print(pformat(joint, width=120, sort_dicts=False))
    print(snippet({candidate.entry: candidate.tile for candidate in better}, architecture))
    if given.table:
        write_table(given.table, given.op, joint, found, about)


def _workbench(factory: Callable[[], Case], timer: Timer, seconds: float) -> Workbench:
    torch.manual_seed(0)
    return Workbench(factory(), timer, seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Search on the device, or compile offline, as the command line asks."""
    parser = command_line(__doc__)
    parser.add_argument(
        "op", choices=[part for part in OPS if part != "train_step"], help="search for the ops of this file"
    )
    parser.add_argument("--case", metavar="WORD", help="search only in cases whose name contains this word")
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help=f"take so long for all cases; default {BUDGET:g}, in smoke {SMOKE_BUDGET:g}",
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the joint table to this file, as JSON")
    parser.add_argument("--offline", metavar="ARCH", help="only compile, for sm_90 and the like; this needs --kernel")
    parser.add_argument(
        "--kernel", metavar="ENTRY", help=f"compile this kernel with --offline, one of {', '.join(tuning.TABLE)}"
    )
    given = parser.parse_args(arguments)
    if given.offline:
        if given.kernel not in tuning.TABLE:
            parser.error(f"--kernel: {given.kernel!r} is no line of the table; there are {', '.join(tuning.TABLE)}")
        shown = set()
        for line in offline(given.kernel, given.offline):
            # An op may launch a kernel several times alike.
            if line not in shown:
                print(line, flush=True)
            shown.add(line)
        return
    if given.device.type != "cuda" and not given.smoke:
        parser.error("tiles are timed on a GPU; --offline ARCH compiles them, --smoke tries the search on the CPU")
    options = given_options(given)
    factories = chosen(importlib.import_module(module_of(given.op)), options, given.case)
    if not factories:
        parser.error(f"--case: no case of {given.op} contains {given.case!r}")
    tune(factories, given, options)


if __name__ == "__main__":
    main()
