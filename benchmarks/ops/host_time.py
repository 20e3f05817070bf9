"""Measures the Python of an attention call: what the host spends around the launches, before and after a change.

    python -m benchmarks.ops.host_time [--before COMMIT] [--json host_time.json]

`host_calls` says what is measured. With --before the sources of that commit are measured in turns with those at hand.
The floors are calls that only allocate their results: bare, by an autograd.Function, and by torch's dispatcher through
an op of the same schema.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from ..harness.environment import ROOT, environment
from ..harness.record import write_json_rows
from .host_calls import CALLS, ROUNDS, SMOKE_CALLS

TURNS = 3


def measured(kernels: Path, rounds: int, calls: int) -> dict[str, float]:
    """Return the seconds of each call with the package of this folder, measured in a process of its own."""
    path = os.pathsep.join([str(kernels), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "benchmarks.ops.host_calls", str(rounds), str(calls)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FASTVTP_", "TRITON_INTERPRET"))}
    told = {**clean, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=told, check=False)
    if done.returncode:
        raise RuntimeError(f"{kernels}: {done.stderr.strip().rpartition(chr(10))[2]}")
    return json.loads(done.stdout)


def sources_of(commit: str, folder: Path) -> Path:
    """Write the package of a commit below the folder, and return where it lies."""
    git = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "archive", commit, "kernels"]
    archive = subprocess.run(git, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder / "kernels"


def compare(versions: dict[str, Path], turns: int, rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """Return the seconds of each call by version: medians over turns, in which the versions alternate."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in versions}
    for _ in range(turns):
        for version, kernels in versions.items():
            for call, seconds in measured(kernels, rounds, calls).items():
                found[version].setdefault(call, []).append(seconds)
    return {version: {call: statistics.median(x) for call, x in calls.items()} for version, calls in found.items()}


def table(found: dict[str, dict[str, float]]) -> str:
    """Write microseconds by call and version, the last version over the first beside them where there are two."""
    versions = list(found)
    ratio = len(versions) == 2
    lines = [["call", *(f"{version} µs" for version in versions), *["ratio"] * ratio]]
    lines.append(["---"] * len(lines[0]))
    for call in found[versions[-1]]:
        times = [found[version].get(call) for version in versions]
        cells = ["" if seconds is None else f"{seconds * 1e6:.1f}" for seconds in times]
        first, last = times[0], times[-1]
        lines.append([call, *cells, *([f"{last / first:.2f}" if first and last else ""] if ratio else [])])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write it where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="COMMIT", help="measure the sources of this commit too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times to this file")
    parser.add_argument("--smoke", action="store_true", help="make a few calls, only to see that every line runs")
    given = parser.parse_args(arguments)
    turns, rounds, calls = (1, 1, SMOKE_CALLS) if given.smoke else (TURNS if given.before else 1, ROUNDS, CALLS)
    with tempfile.TemporaryDirectory() as folder:
        versions = {given.before: sources_of(given.before, Path(folder))} if given.before else {}
        found = compare({**versions, "here": ROOT / "kernels"}, turns, rounds, calls)
    print(table(found))
    if given.json:
        rows = [
            {"call": call, "version": version, "seconds": seconds}
            for version, calls in found.items()
            for call, seconds in calls.items()
        ]
        write_json_rows(given.json, rows, {**environment(torch.device("cpu")), "smoke": given.smoke})


if __name__ == "__main__":
    main()
