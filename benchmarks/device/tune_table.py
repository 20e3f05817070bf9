"""Makes one tile per entry of the table of what each case found; it is the second half of `tune.py`.

A line and a column of `fastvtp_kernels.tuning.TABLE` ("stream_forward_64 half") are the shape class of a tile: the
kernel, with the regime, width and options in its name, and the precision. Cases that differ in nothing else run with
the same tile, so it has to serve all of them. Every tile that won somewhere is timed again, alone, beside the tiles as
they stand, in each case and direction that uses its entry, its own included: the time that made it a winner was the
best of many. It is refused where it spills, breaks the tolerance law, loses beyond the spread in one case, gains beyond
the spread in none or could not be timed everywhere. Of those that remain, the best geometric mean of speed-ups wins.

Only the cases of this run are asked: another op or precision that uses an entry is not.
"""

import contextlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastvtp.files import write_atomically
from fastvtp_kernels import tuning
from fastvtp_kernels.interpreter import interpreting
from fastvtp_kernels.launching import compile_only
from fastvtp_kernels.tuning import Tile

from ..harness.case import Case, Missing
from ..harness.record import SCHEMA
from ..harness.timing import Function, Timer, Timing

# A candidate must be this much faster, and its 80 % quantile below the other's 20 % quantile.
GAIN = 1.02


@dataclass(frozen=True)
class Pair:
    """A pair has the times of one variant with the tiles as they were and with a changed one, taken in turns."""

    now: Timing
    then: Timing

    @property
    def speedup(self) -> float:
        """Return how many times as fast the changed tiles are."""
        return self.now.median / self.then.median

    @property
    def better(self) -> bool:
        """Say whether the changed tiles are faster beyond the spread."""
        return self.speedup > GAIN and self.then.p80 < self.now.p20

    @property
    def loses(self) -> bool:
        """Say whether the changed tiles are slower beyond the spread."""
        return self.then.p20 > self.now.p80


def entries_used(function: Function) -> dict[str, Tile]:
    """Call the function; return the tiles that it asks for by their entries in the table, like "embed half"."""
    with tuning.asked() as tiles:
        function()
    return {tile.entry: tile for tile in tiles}


class Workbench:
    """A workbench runs a case's Triton variant with tiles of choice; `standing` are those that it uses by itself."""

    def __init__(self, case: Case, timer: Timer, seconds: float):
        self._case, self._timer, self._seconds = case, timer, seconds
        variant, reference = case.variants["triton"], case.variants["reference"]
        if isinstance(variant, Missing) or isinstance(reference, Missing):
            raise ValueError(f"{case.op}, {case.name}: the Triton variant and the reference must both run")
        self._function = variant
        # The law, in the harness's measure of error: twice the reference's own, and two rounding steps.
        rounding = torch.finfo(case.dtype).eps if case.dtype.is_floating_point else 0.0
        self._allowed = 2 * (case.error(reference()) + rounding)
        self.standing = entries_used(variant)

    def compare(self, now: dict[str, Tile], then: dict[str, Tile]) -> Pair | str:
        """Time tiles, given by entry, against others; say what is wrong where the others spill, err or fail."""
        changed = self._with(then)
        try:
            if spilled := self._spilled(changed):
                return f"spills {spilled} bytes"
            if not (error := self._case.error(changed())) <= self._allowed:
                return f"wrong: error {error:.2g}, {self._allowed:.2g} allowed"
            times = self._timer.time({"now": self._with(now), "then": changed}, self._seconds)
        except Exception as failure:
            # A tile that does not compile or does not fit is a result.
            return f"fails: {type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
        return Pair(times["now"], times["then"])

    def _with(self, tiles: dict[str, Tile]) -> Function:
        def run() -> object:
            with contextlib.ExitStack() as stack:
                for entry, tile in tiles.items():
                    stack.enter_context(tuning.override(entry.rpartition(" ")[0], tile))
                return self._function()

        return run

    def _spilled(self, function: Function) -> int:
        """Return the bytes that the worst kernel spills; the interpreter has no registers."""
        if interpreting():
            return 0
        with compile_only() as compiled:
            function()
        for kernel in compiled:
            kernel.binary._init_handles()
        return max((kernel.binary.n_spills or 0 for kernel in compiled), default=0)


@dataclass(frozen=True)
class Searched:
    """A searched case knows the entries it uses, the tiles that won in it, and how to set it up once more."""

    label: str
    entries: set[str]
    winners: dict[str, Tile]
    workbench: Callable[[], Workbench]


@dataclass
class Candidate:
    """A candidate is a tile that won in some case.

    `pairs` are its times against the tile that stands, by case; `fault` says why it is out already.
    """

    entry: str
    tile: Tile
    pairs: dict[str, Pair] = field(default_factory=dict)
    fault: str = ""
    not_retimed: list[str] = field(default_factory=list)

    @property
    def speedups(self) -> dict[str, float]:
        """Return its speed-ups by case, to four digits."""
        return {label: round(pair.speedup, 4) for label, pair in self.pairs.items()}

    @property
    def speedup(self) -> float:
        """Return the geometric mean of its speed-ups over the cases."""
        return statistics.geometric_mean(pair.speedup for pair in self.pairs.values())

    @property
    def refusal(self) -> str:
        """Say why it cannot stand for its entry; empty if it can."""
        if self.fault:
            return self.fault
        if self.not_retimed:
            return f"not re-timed in {'; '.join(self.not_retimed)}"
        if self.speedup <= 1 or not any(pair.better for pair in self.pairs.values()):
            return "gains beyond the spread in no case, timed again"
        return ""


def candidates(searched: Iterable[Searched]) -> list[Candidate]:
    """Return each winner once: of every entry the tile that won most often, then the next of every entry, and so on."""
    won: Counter[tuple[str, str]] = Counter()
    tiles: dict[tuple[str, str], Tile] = {}
    for here in searched:
        for entry, tile in here.winners.items():
            won[entry, str(tile)] += 1
            tiles[entry, str(tile)] = tile
    place: Counter[str] = Counter()
    ranked = []
    for (entry, text), _ in won.most_common():
        ranked.append((place[entry], Candidate(entry, tiles[entry, text])))
        place[entry] += 1
    return [candidate for _, candidate in sorted(ranked, key=lambda pair: pair[0])]


def retime(found: Sequence[Candidate], here: Searched, deadline: float) -> None:
    """Try in one case every candidate that it could use and that is not out yet, until the time is over."""
    bench = None
    for candidate in found:
        if candidate.fault or candidate.entry not in here.entries:
            continue
        if time.monotonic() > deadline:
            candidate.not_retimed.append(here.label)
            continue
        bench = bench or here.workbench()
        pair = bench.compare(bench.standing, {**bench.standing, candidate.entry: candidate.tile})
        if isinstance(pair, str):
            candidate.fault = f"{pair}, in {here.label}"
            continue
        candidate.pairs[here.label] = pair
        if pair.loses:
            candidate.fault = f"loses in {here.label}: {pair.speedup:.3f} times as fast"


def choose(found: Iterable[Candidate]) -> list[Candidate]:
    """Return the best candidate of each entry, for the entries that have one."""
    best: dict[str, Candidate] = {}
    for candidate in found:
        rival = best.get(candidate.entry)
        if not candidate.refusal and (rival is None or candidate.speedup > rival.speedup):
            best[candidate.entry] = candidate
    return list(best.values())


def table(better: Iterable[Candidate], architecture: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return tiles by architecture and entry, with the geometric mean of their speed-ups and that in each case."""
    return {
        architecture: {
            candidate.entry: {
                "blocks": candidate.tile.blocks,
                "num_warps": candidate.tile.num_warps,
                "num_stages": candidate.tile.num_stages,
                "speedup": round(candidate.speedup, 4),
                "speedups": candidate.speedups,
            }
            for candidate in better
        }
    }


def snippet(better: dict[str, Tile], architecture: str) -> str:
    """Write entries for `tuning.TABLE`."""
    lines = []
    for entry, tile in better.items():
        kernel, _, column = entry.rpartition(" ")
        limit = f", max_registers={tile.max_registers}" if tile.max_registers else ""
        made = f"Tile({tile.blocks}, num_warps={tile.num_warps}, num_stages={tile.num_stages}{limit})"
        lines.append(f'"{kernel}": {{"{column}": {{"{architecture}": {made}}}}}')
    return "\n".join(lines)


def write_table(
    path: Path, op: str, joint: dict[str, Any], found: Iterable[Candidate], environment: dict[str, Any]
) -> None:
    """Write schema, environment, op, the joint table as "tiles", and what was refused, with the reason."""
    refused = [
        {"entry": one.entry, "tile": str(one.tile), "why": one.refusal, "speedups": one.speedups}
        for one in found
        if one.refusal
    ]
    content = {"schema": SCHEMA, "environment": environment, "op": op, "tiles": joint, "refused": refused}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode())
