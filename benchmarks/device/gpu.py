"""Measures everything there is, in one command and a limited time: `python -m benchmarks.device.gpu --out DIR`.

Each part runs in a process of its own, within a slice of the time that is left, and writes its JSON as it goes: a part
that fails, hangs or runs out of time loses only what it has not measured yet. The kernel tests come first, because no
speed is reported for an op whose tests failed, or did not run, in this run. What torch.compile takes long for comes
last, in parts of its own (..._compiled), each beside its baseline.

A bare checkout (PYTHONPATH=.:kernels) with torch, triton and numpy is enough; whatever else is missing is recorded.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from ..harness.environment import ROOT, device_name, environment
from ..harness.record import write_json_rows
from ..report.results import COMPILED, device_slug, module_of
from .gpu_results import Outcome, distrusted, pack, summary, withhold, write_outcomes

BUDGET_S, SMOKE_BUDGET_S = 520.0, 170.0
# Between asking a part to stop and killing it; and what the tests keep for their counts.
GRACE_S, TESTS_MARGIN_S = 5.0, 10.0
# In which part of its slice agreement starts cases.
AGREEMENT_SHARE = 0.7
SMOKE_SHARE = 60.0
# What each part of a smoke run may take at least, while there is time.
SMOKE_PART_S = 25.0
# Parts that measure no op and no step.
MODULES = {
    "tests": "benchmarks.device.device_tests",
    "ceilings": "benchmarks.harness.ceilings",
    "agreement": "benchmarks.device.agreement",
}


@dataclass(frozen=True)
class Part:
    """A part of a run is a module with the options --json and --smoke, its arguments, and its share of the time.

    `arguments` are sizes, in whose place a smoke run takes `smoke`; `selection` chooses variants in either.
    """

    name: str
    share: float
    arguments: tuple[str, ...] = ()
    selection: tuple[str, ...] = ()
    smoke: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Return the dotted name of the part's module."""
        return MODULES.get(self.name) or module_of(self.name.removesuffix(COMPILED))


HALF_A_SECOND = ("--seconds", "0.5")
WITHOUT_COMPILED, WITH_COMPILED = ("--without", "compiled"), ("--with", "compiled")
# The parts of most worth come first.
PARTS = (
    Part("ceilings", 15),
    Part("tests", 165),
    Part("agreement", 30),
    Part("train_step", 75, ("--seconds", "3"), WITHOUT_COMPILED),
    Part("attention", 75, ("--lengths", "168", "16", "1568", "400", *HALF_A_SECOND), (*WITHOUT_COMPILED, "flex")),
    Part("tubelets", 35, ("--seconds", "1")),
    Part("pixel_loss", 25, ("--seconds", "1")),
    Part("contrastive", 35, ("--batches", "32768", "4096", "--seconds", "1"), WITHOUT_COMPILED),
    Part("token_assembly", 20, HALF_A_SECOND),
    Part("masking", 12, HALF_A_SECOND),
    Part("host_time", 12),
    Part("data_loading", 40),
    Part("decoding", 45),
    Part(
        "scaling",
        40,
        ("--case", "videomae_base", "--seconds", "3"),
        smoke=("--case", "videomae_base", "--processes", "1"),
    ),
    Part(
        "train_step_compiled",
        70,
        ("--case", "base", "--seconds", "2"),
        (*WITH_COMPILED, "fastvtp, graph"),
        smoke=("--case", "videomae_base"),
    ),
    Part("contrastive_compiled", 30, ("--batches", "32768", *HALF_A_SECOND), WITH_COMPILED),
    Part(
        "attention_compiled",
        25,
        ("--lengths", "168", *HALF_A_SECOND),
        (*WITH_COMPILED, "flex"),
        smoke=("--lengths", "4"),
    ),
)


def run_part(part: Part, out: Path, limit: float, smoke: bool) -> Outcome:
    """Run one part in a process group of its own, and end the whole group when the time is over."""
    path, log = out / f"{part.name}.json", out / "logs" / f"{part.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", part.module, "--json", str(path)]
    command += [*(["--smoke", *part.smoke] if smoke else part.arguments), *part.selection]
    if part.name == "tests":
        command += ["--seconds", str(max(1.0, limit - TESTS_MARGIN_S))]
    if part.name == "agreement":
        # It ends by itself, between two cases.
        command += ["--seconds", str(AGREEMENT_SHARE * limit)]
    search_path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    # A smoke run is the CPU's also where there is a GPU, which the interpreter would not use.
    more = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if smoke else {}
    started = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": search_path, **more},
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    seconds = time.monotonic() - started
    if code is None:
        return Outcome(part.name, "out of time", seconds, f"stopped after {limit:.0f} s")
    lines = log.read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    # Tests that fail are a result: the counts say which.
    finished = code == 0 or (part.name == "tests" and code == 1)
    return Outcome(part.name, "done" if finished else "failed", seconds, "" if code == 0 else last[:200])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and whatever it started, by force if need be: they may be waiting for the device."""
    for number, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def run_parts(parts: Sequence[Part], out: Path, budget: float, smoke: bool) -> Iterator[Outcome]:
    """Run parts one after the other, and yield how each ended.

    What a part leaves of its slice goes to the others. Without the tests nothing is withheld.
    """
    about = {**environment(_device(smoke)), "smoke": smoke}
    end, outcomes, tested = time.monotonic() + budget, [], False
    for number, part in enumerate(parts):
        # In place of an earlier run's, and there even if the part ends before it can write anything.
        write_json_rows(out / f"{part.name}.json", [], about)
        left = end - time.monotonic()
        limit = max(0.0, left * _share(part, smoke) / sum(_share(other, smoke) for other in parts[number:]))
        if smoke:
            limit = max(limit, min(left, SMOKE_PART_S))
        print(f"{part.name}: up to {limit:.0f} s", file=sys.stderr, flush=True)
        outcomes.append(run_part(part, out, limit, smoke))
        tested = tested or part.name == "tests"
        if tested:
            withhold(out / f"{part.name}.json", distrusted(out))
        write_outcomes(out / "parts.json", outcomes, [known.name for known in PARTS], about)
        yield outcomes[-1]


def _share(part: Part, smoke: bool) -> float:
    """Return a part's share of the time; in a smoke run parts take about as long as each other."""
    return max(part.share, SMOKE_SHARE) if smoke else part.share


def _device(smoke: bool) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and not smoke else "cpu")


def run(parts: Sequence[Part], folder: Path, budget: float, smoke: bool) -> list[Outcome]:
    """Run the parts, and renew summary and archive after each: whatever ends the run, they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for outcome in run_parts(parts, folder, budget, smoke):
        outcomes.append(outcome)
        (folder / "summary.txt").write_text(summary(folder, outcomes) + "\n")
        pack(folder)
    return outcomes


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that the command line asks for, print the summary, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write the JSON to DIR/<device>/ and into DIR/<device>.tar.gz; to keep it, take benchmarks/results",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PART", choices=[part.name for part in PARTS], help="run these parts alone"
    )
    parser.add_argument("--list", action="store_true", help="name the parts and their slices, run nothing")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help=f"take so long for all parts together; default {BUDGET_S:.0f}"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="use tiny sizes, always on the CPU, only to see that every line runs"
    )
    given = parser.parse_args(arguments)
    parts = [part for part in PARTS if not given.only or part.name in given.only]
    budget = given.budget or (SMOKE_BUDGET_S if given.smoke else BUDGET_S)
    if given.list:
        whole = sum(part.share for part in parts)
        print("\n".join(f"{part.name:20} {budget * part.share / whole:4.0f} s" for part in parts))
        return 0
    if given.out is None:
        parser.error("--out DIR is needed: where shall the JSON go?")
    device = _device(given.smoke)
    folder = given.out / device_slug(device_name(device), device.type)
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        outcomes = run(parts, folder, budget, given.smoke)
    except KeyboardInterrupt:
        folder.mkdir(parents=True, exist_ok=True)
        parser.exit(130, f"interrupted; what was measured is in {pack(folder)}\n")
    print((folder / "summary.txt").read_text())
    # In a smoke run nothing may be left out: every line is to run.
    bad = ("failed", "out of time") if given.smoke else ("failed",)
    return int(any(outcome.status in bad for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
