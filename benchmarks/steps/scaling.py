"""Measures a training step on 1, 2, 4 ... processes: its time, what of it is communication, its memory.

fastvtp, ddp      the library's step on DDP, and fsdp2: on FSDP2; of SimVTP, with contrast and wrong pairs within
                  micro-batches, or over the whole batch
plain ddp         the usual loop: DistributedDataParallel around the same model, nothing of the library's engine

Every process has as many clips, whatever their number: in the ideal W processes take as long as one, and do W times as
much. A row's speedup is over the plain loop on as many processes; its note says how many times of the ideal W-fold it
comes to, and the share of the step that is not hidden behind computation: what the step takes beyond the same step
without any communication, which all processes do in turns with it, so that they share host, memory and caches alike.
Peak memory is of the process that needs most, above weights and optimizer state, which the note gives.

The processes are started here, by torch.distributed.run: as many as there are GPUs, by NCCL. On a CPU they share its
cores and talk by gloo, and the run is always a smoke run: it shows that every line runs, and no speed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fastvtp.data.workers.child_processes import cores

from ..harness.case import Options
from ..harness.command import command_line, given_options
from ..harness.environment import ROOT
from ..harness.record import NOT_REACHED, Row, markdown_table, write_json
from ..harness.running import measured_environment, options_timer
from .scaling_steps import ALONE, CASES, PLAIN
from .step import TOLERANCES

COUNTS, SMOKE_COUNTS = (1, 2, 4, 8), (1, 2)
CLIPS, SMOKE_CLIPS = 32, 4
SECONDS, LIMIT_S = 10.0, 600.0
# Rows that compute what the plain loop computes, and so must have its loss.
SAME = ("fastvtp, ddp", "fastvtp, fsdp2", "fastvtp, ddp, within micro-batches")


def counts_of(given: argparse.Namespace) -> tuple[int, ...]:
    """Return the numbers of processes to measure."""
    return tuple(given.processes or (SMOKE_COUNTS if given.smoke else COUNTS))


def rows_of(case: str, count: int, clips: int, options: Options) -> dict[str, Row]:
    """Return the rows of a case on `count` processes, not measured yet, by variant."""
    shape = {"processes": count, "clips": clips}
    dtype = str(options.dtype).removeprefix("torch.")
    name = f"{case}, {count} process{'es' * (count > 1)}"
    return {
        variant: Row("scaling", name, variant, shape, dtype, "step", 0, 0, 0.0, PLAIN, note=NOT_REACHED)
        for variant in (*CASES[case].variants, PLAIN)
    }


def enter(rows: dict[str, Row], found: dict[str, Any], first: dict[str, float], tolerance: float) -> None:
    """Enter what the processes measured. first: medians on one process by variant, which one process fills."""
    plain, alone = found[PLAIN], statistics.median(found[ALONE]["times"])
    for variant, row in rows.items():
        own = found[variant]
        row.error = error = abs(own["loss"] - plain["loss"]) / abs(plain["loss"])
        if variant in SAME and not error <= tolerance:
            row.note = f"wrong: error {error:.2g}, at most {tolerance:.2g} allowed"
            continue
        times = own["times"]
        deciles = statistics.quantiles(times, n=10, method="inclusive")
        row.median_s, row.p20_s, row.p80_s = statistics.median(times), deciles[1], deciles[7]
        row.wall_s, row.calls, row.peak_bytes = statistics.fmean(times), len(times), own["peak_bytes"]
        row.speedup = statistics.median(plain["times"]) / row.median_s
        count = row.shape["processes"]
        if count == 1:
            first[variant] = row.median_s
        ideal = ""
        if count > 1 and variant in first:
            ideal = f"{first[variant] / row.median_s:.2f} of the ideal {count}-fold; "
        share = max(0.0, 1 - alone / row.median_s)
        row.note = f"{ideal}{share:.0%} not hidden; state {own['state_bytes'] / 1e9:.2f} GB"


def start(count: int, cases: Sequence[str], options: Options, clips: int, seconds: float, threads: int) -> Any:
    """Run the cases on `count` processes. Returns what they measured by case, and why it is not all, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        command += ["-m", "benchmarks.steps.scaling_steps", "--case", *cases, "--device", options.device.type]
        command += ["--precision", str(options.dtype).removeprefix("torch."), "--clips", str(clips)]
        command += ["--seconds", str(seconds), "--json", str(path)]
        search_path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])])
        own = {"PYTHONPATH": search_path, "OMP_NUM_THREADS": str(threads)}
        why = ""
        try:
            done = subprocess.run(
                [*command, *(["--smoke"] if options.smoke else [])],
                cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=LIMIT_S, check=False,
            )  # fmt: skip
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "Error" in line]
                why = f"failed: {lines[0].strip()[:160] if lines else f'exit status {done.returncode}'}"
        except subprocess.TimeoutExpired:
            why = f"failed: not done after {LIMIT_S:.0f} s"
        return (json.loads(path.read_text()) if path.exists() else {}), why


def measured(
    counts: Sequence[int], cases: Sequence[str], options: Options, clips: int, seconds: float
) -> Iterator[list[Row]]:
    """Yield all rows, again after each number of processes."""
    rows = {(count, case): rows_of(case, count, clips, options) for count in counts for case in cases}
    every = [row for own in rows.values() for row in own.values()]
    first: dict[str, dict[str, float]] = {case: {} for case in cases}
    gpus = torch.cuda.device_count() if options.device.type == "cuda" else max(counts)
    for count in counts:
        found, why = {}, f"missing: {gpus} GPU(s) here"
        if count <= gpus:
            found, why = start(count, cases, options, clips, seconds, max(1, cores() // max(counts)))
        for case in cases:
            if case in found:
                enter(rows[count, case], found[case], first[case], TOLERANCES[options.dtype])
            else:
                for row in rows[count, case].values():
                    row.note = why
        yield every


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the processes, one number of them after the other, and save the rows after each."""
    parser = command_line(__doc__)
    parser.add_argument("--case", nargs="+", choices=CASES, default=tuple(CASES), help="measure these models alone")
    parser.add_argument("--processes", nargs="+", type=int, metavar="W", help="measure these numbers of processes")
    parser.add_argument(
        "--clips", type=int, help=f"clips of a process and step; default {CLIPS}, in smoke {SMOKE_CLIPS}"
    )
    given = parser.parse_args(arguments)
    if given.dtype == "float16":
        parser.error("--dtype: training is in float32 or bfloat16")
    given.smoke = given.smoke or given.device.type == "cpu"
    options = given_options(given)
    about, _ = measured_environment(options, options_timer(options))
    seconds = 0.0 if given.smoke else given.seconds or SECONDS
    clips = given.clips or (SMOKE_CLIPS if given.smoke else CLIPS)
    rows: list[Row] = []
    for rows in measured(counts_of(given), given.case, options, clips, seconds):
        if given.json:
            write_json(given.json, rows, about)
    print(f"{about['device']}, {about['date']}{', smoke' if given.smoke else ''}\n")
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
