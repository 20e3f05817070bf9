"""Search better tiles for the kernels of an op: `python -m benchmarks.tune attention --case "168 tokens each"`.

On a GPU the op's Triton variant runs with one tile changed at a time, in turns with the tiles as they stand. A
candidate must compile without spills, meet the tolerance law (at most twice the reference's error) and be faster
beyond the spread of both; the search goes on from the best found, until its time is over or no neighbour is better.
What it found is printed as entries for `fastvtp_kernels.tuning.TABLE`, for review, and written as JSON: a table that
people read decides what runs, not a search in the middle of a training step.

With --offline ARCH no GPU is needed: the neighbours are compiled and those without spills listed, with what bounds how
many of them fit on a multiprocessor.
"""

import contextlib
import importlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest.mock import patch

import torch

from fastvtp_kernels import tuning
from fastvtp_kernels.interpreter import interpreting
from fastvtp_kernels.launching import compile_only
from fastvtp_kernels.tuning import Tile

from .environment import environment
from .harness import Case, Missing, Options, command_line, given_options
from .record import write_json_rows
from .report_results import OPS
from .timing import Function, Timer, timer_for

# A candidate must be this much faster, and its 80 % quantile below the other's 20 % quantile.
GAIN = 1.02
WARPS, STAGES = (2, 4, 8, 16), (1, 2, 3, 4, 5)
SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256
REGISTERS, MOST_WARPS, MOST_BLOCKS = 65536, 64, 32


@dataclass(frozen=True)
class Trial:
    """One tile in one entry of the table: how it fared. Times in seconds per call of the whole variant."""

    entry: str
    case: str
    direction: str
    tile: str
    outcome: str
    seconds: float | None = None
    before: float | None = None


def neighbours(tile: Tile) -> Iterator[Tile]:
    """The tile with one block halved or doubled, or another number of warps or stages."""
    for name, size in tile.blocks.items():
        for changed in (size // 2, size * 2):
            if SMALLEST_BLOCK <= changed <= LARGEST_BLOCK or size == 8:
                yield replace(tile, blocks={**tile.blocks, name: changed})
    for field, values in (("num_warps", WARPS), ("num_stages", STAGES)):
        place = values.index(getattr(tile, field))
        for changed in values[max(0, place - 1) : place + 2]:
            if changed != getattr(tile, field):
                yield replace(tile, **{field: changed})


def entries_used(function: Function) -> dict[str, Tile]:
    """Entry of the table ("embed half") -> tile, for every tile that the call asks for."""
    found: dict[str, Tile] = {}
    original = tuning.tile

    def spy(*arguments: Any, **named: Any) -> Tile:
        tile = original(*arguments, **named)
        found[tile.entry] = tile
        return tile

    with patch.object(tuning, "tile", spy):
        function()
    return found


class Search:
    """Coordinate descent over the tiles that one variant uses."""

    def __init__(self, case: Case, timer: Timer, seconds_per_trial: float, deadline: float):
        self.case, self._timer, self._seconds, self._deadline = case, timer, seconds_per_trial, deadline
        variant, reference = case.variants["triton"], case.variants["reference"]
        if isinstance(variant, Missing) or isinstance(reference, Missing):
            raise ValueError(f"{case.op}, {case.name}: the Triton variant and the reference must both run")
        self._function = variant
        # The law, in the harness's measure of error: twice the reference's own, and two rounding steps.
        rounding = torch.finfo(case.dtype).eps if case.dtype.is_floating_point else 0.0
        self._allowed = 2 * (case.error(reference()) + rounding)
        self.best = entries_used(variant)
        self.trials: list[Trial] = []

    def run(self) -> dict[str, Tile]:
        """Better tiles by entry; entries that stand as they were are left out."""
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
        changed = self._with({**self.best, entry: candidate})
        try:
            if spilled := self._spilled(changed):
                outcome, times = f"spills {spilled} bytes", None
            elif not (error := self.case.error(changed())) <= self._allowed:
                outcome, times = f"wrong: error {error:.2g}, {self._allowed:.2g} allowed", None
            else:
                times = self._timer.time({"now": self._with(self.best), "candidate": changed}, self._seconds)
                outcome = ""
        except Exception as failure:
            # A tile that does not compile or does not fit is a result.
            outcome, times = f"fails: {type(failure).__name__}: {str(failure).partition(chr(10))[0]}", None
        better = False
        if times is not None:
            now, then = times["now"], times["candidate"]
            better = now.median / then.median > GAIN and then.p80 < now.p20
            trial = replace(trial, seconds=then.median, before=now.median)
            outcome = "better" if better else "no better"
        self.trials.append(replace(trial, outcome=outcome))
        return better

    def _with(self, tiles: dict[str, Tile]) -> Function:
        def run() -> object:
            with contextlib.ExitStack() as stack:
                for entry, tile in tiles.items():
                    stack.enter_context(tuning.override(entry.rpartition(" ")[0], tile))
                return self._function()

        return run

    def _spilled(self, function: Function) -> int:
        """Bytes, of the worst kernel; the interpreter has no registers."""
        if interpreting():
            return 0
        with compile_only() as compiled:
            function()
        for kernel in compiled:
            kernel.binary._init_handles()
        return max((kernel.binary.n_spills or 0 for kernel in compiled), default=0)


def snippet(better: dict[str, Tile], architecture: str) -> str:
    """Entries for `tuning.TABLE`."""
    lines = []
    for entry, tile in better.items():
        kernel, _, column = entry.rpartition(" ")
        made = f"Tile({tile.blocks}, num_warps={tile.num_warps}, num_stages={tile.num_stages})"
        lines.append(f'"{kernel}": {{"{column}": {{"{architecture}": {made}}}}}')
    return "\n".join(lines)


def occupancy(registers: int, shared_bytes: int, num_warps: int, shared_limit: int) -> int:
    """Blocks that fit on an NVIDIA multiprocessor: registers are given to a warp in units of 256."""
    by_registers = REGISTERS // (num_warps * -(-registers * 32 // 256) * 256)
    by_shared = shared_limit // shared_bytes if shared_bytes else MOST_BLOCKS
    return min(by_registers, by_shared, MOST_WARPS // num_warps, MOST_BLOCKS)


def offline(kernel: str, architecture: str) -> Iterator[str]:
    """A line for every neighbour of the kernel's tile that compiles without spills, in the cases that launch it."""
    from fastvtp_kernels import compile_cases, compile_report

    limit = compile_report.SHARED_LIMIT[architecture]
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
                    fit = occupancy(other.registers, other.shared_bytes, tile.num_warps, limit)
                    yield (
                        f"{case.name} | {other.kernel} | {tile} | {other.registers} registers | "
                        f"{other.shared_bytes // 1024} KiB | {fit} blocks a multiprocessor"
                    )


def chosen(module: Any, options: Options, name: str | None) -> list[Callable[[], Case]]:
    """The benchmark's cases, or those whose name contains a word."""
    factories = module.cases(options)
    if name is None:
        return factories
    return [factory for factory in factories if any(name in str(part) for part in getattr(factory, "args", ()))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line(__doc__)
    parser.add_argument("op", choices=[part for part in OPS if part != "train_step"])
    parser.add_argument("--case", metavar="WORD", help="only cases whose name contains it")
    parser.add_argument("--budget", type=float, default=120.0, metavar="SECONDS", help="for all cases (default 120)")
    parser.add_argument("--offline", metavar="ARCH", help="compile only, for sm_90 and the like; needs --kernel")
    parser.add_argument("--kernel", metavar="ENTRY", help=f"with --offline, one of {', '.join(tuning.TABLE)}")
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
    factories = chosen(importlib.import_module(f"benchmarks.{given.op}"), options, given.case)
    if not factories:
        parser.error(f"--case: no case of {given.op} contains {given.case!r}")
    timer, end, trials = timer_for(given.device), time.monotonic() + given.budget, []
    for number, factory in enumerate(factories):
        torch.manual_seed(0)
        slice_end = time.monotonic() + (end - time.monotonic()) / (len(factories) - number)
        search = Search(factory(), timer, given.seconds or (0.0 if given.smoke else 0.2), slice_end)
        better = search.run()
        trials += search.trials
        print(f"{search.case.name}, {search.case.direction}: {len(search.trials)} tiles tried, {len(better)} better")
        if better:
            print(snippet(better, tuning.architecture(given.device)))
        if given.json:
            rows = [{"op": search.case.op, **asdict(trial)} for trial in trials]
            write_json_rows(given.json, rows, environment(given.device))


if __name__ == "__main__":
    main()
