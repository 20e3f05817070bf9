"""Everything there is to measure, in one command and a limited time: `python -m benchmarks.gpu --out DIR`.

Each part runs in a process of its own, within a slice of the time that is left, and writes its JSON as it goes: a part
that fails, hangs or runs out of time loses only what it has not measured yet. The kernel tests come first, because no
speed is reported for an op whose tests failed in this run.

Works from a bare checkout (PYTHONPATH=.:kernels) with torch, triton and numpy; whatever else is missing is recorded.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from . import report_tables
from .device_tests import FAMILIES
from .environment import ROOT, device_name, environment
from .record import write_json_rows
from .report_results import device_slug, load

BUDGET_S, SMOKE_BUDGET_S = 520.0, 170.0
# Between asking a part to stop and killing it.
GRACE_S = 5.0
# What the names of our variants contain; pyav and dali are the loader's two decoders.
OURS = ("reference", "triton", "fastvtp", "pyav", "dali")


@dataclass(frozen=True)
class Part:
    """A module of this package that takes --json and --smoke; `share`: of the time, in parts of the whole."""

    name: str
    share: float
    arguments: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        return {"tests": "device_tests", "ceilings": "environment"}.get(self.name, self.name)


# In order of worth.
PARTS = (
    Part("ceilings", 20),
    Part("tests", 170),
    Part("attention", 80, ("--lengths", "168", "16", "1568", "400", "--seconds", "0.5", "--without", "compiled")),
    Part("train_step", 90, ("--seconds", "3")),
    Part("tubelets", 35, ("--seconds", "1")),
    Part("pixel_loss", 25, ("--seconds", "1")),
    Part("contrastive", 45, ("--batches", "32768", "4096", "--seconds", "1", "--without", "compiled")),
    Part("token_assembly", 20, ("--seconds", "0.5")),
    Part("masking", 15, ("--seconds", "0.5")),
    Part("data_loading", 30),
)


@dataclass
class Outcome:
    """How a part ended: "done", "out of time", or "failed" with the last line that it printed."""

    part: str
    status: str
    seconds: float
    note: str = ""


def run_part(part: Part, out: Path, limit: float, smoke: bool) -> Outcome:
    """Run one part in a process group of its own, and end the whole group when the time is over."""
    path, log = out / f"{part.name}.json", out / "logs" / f"{part.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{part.module}", "--json", str(path)]
    command += ["--smoke"] if smoke else part.arguments
    search_path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
            env={**os.environ, "PYTHONPATH": search_path, **({"TRITON_INTERPRET": "1"} if smoke else {})},
        )  # fmt: skip
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
    """The process and whatever it started; they may be waiting for the device."""
    for number, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def distrusted(out: Path) -> dict[str, str]:
    """Op -> why it gets no speed, from the counts of the kernel tests."""
    rows = _rows(out / "tests.json")
    failed = {row["op"]: row["failed"] for row in rows if row["failed"]}
    reasons = {}
    for family, ops in FAMILIES.items():
        if count := failed.get(family, 0) + failed.get("common", 0):
            reasons |= dict.fromkeys(ops, f"no speed: {count} of its tests failed in this run")
    if failed:
        reasons["train_step"] = f"no speed: tests of {', '.join(sorted(failed))} failed in this run"
    return reasons


def withhold(path: Path, reasons: dict[str, str]) -> None:
    """Take the times of our variants of such ops out of a part's file."""
    if not path.exists():
        return
    content = json.loads(path.read_text())
    for row in content["rows"]:
        ours = any(word in row.get("variant", "") for word in OURS)
        if ours and row["op"] in reasons and row["median_s"] is not None:
            row.update(dict.fromkeys(("median_s", "p20_s", "p80_s", "wall_s", "fraction_of_floor", "speedup")))
            row["note"] = reasons[row["op"]]
    path.write_text(json.dumps(content, indent=1, allow_nan=False))


def _rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"] if path.exists() else []


def summary(folder: Path, outcomes: Sequence[Outcome]) -> str:
    """How the parts ended, the tests' counts, and of each op one case beside its best peer."""
    lines = [f"{outcome.part:15} {outcome.status:12} {outcome.seconds:6.0f} s  {outcome.note}" for outcome in outcomes]
    for row in _rows(folder / "tests.json"):
        lines.append(
            f"tests of {row['op']:15} {row['passed']} passed, {row['failed']} failed, {row['skipped']} skipped"
            f"{'' if row['finished'] else ', not finished'}"
        )
    devices = [device for device in load(folder.parent) if device.slug == folder.name]
    return "\n".join([*lines, "", *report_tables.summary(devices)])


def run_parts(parts: Sequence[Part], out: Path, budget: float, smoke: bool) -> list[Outcome]:
    """One after the other; what a part leaves of its slice is the others'."""
    out.mkdir(parents=True, exist_ok=True)
    about = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    end, outcomes = time.monotonic() + budget, []
    for number, part in enumerate(parts):
        (out / f"{part.name}.json").unlink(missing_ok=True)
        left = end - time.monotonic()
        limit = left * part.share / sum(other.share for other in parts[number:])
        print(f"{part.name}: up to {limit:.0f} s", file=sys.stderr, flush=True)
        outcomes.append(run_part(part, out, limit, smoke))
        withhold(out / f"{part.name}.json", distrusted(out))
        so_far = [{"op": outcome.part, **asdict(outcome)} for outcome in outcomes]
        write_json_rows(out / "parts.json", so_far, {**about, "smoke": smoke})
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the JSON goes to DIR/<device>/: benchmarks/results to keep it"
    )
    parser.add_argument("--only", nargs="+", metavar="PART", choices=[part.name for part in PARTS])
    parser.add_argument("--list", action="store_true", help="name the parts and their slices, run nothing")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help=f"default {BUDGET_S:.0f}")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU too: does every line run?")
    given = parser.parse_args(arguments)
    parts = [part for part in PARTS if not given.only or part.name in given.only]
    budget = given.budget or (SMOKE_BUDGET_S if given.smoke else BUDGET_S)
    if given.list:
        whole = sum(part.share for part in parts)
        print("\n".join(f"{part.name:15} {budget * part.share / whole:4.0f} s" for part in parts))
        return 0
    if given.out is None:
        parser.error("--out DIR is needed: where shall the JSON go?")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = given.out / device_slug(device_name(device), device.type)
    outcomes = run_parts(parts, folder, budget, given.smoke)
    text = summary(folder, outcomes)
    (folder / "summary.txt").write_text(text + "\n")
    print(text)
    return int(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
