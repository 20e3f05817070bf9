"""Runs the kernel tests on the device at hand and counts them per family of ops; no speed is reported without them.

Each family runs in processes of its own, all families at the same time: an illegal memory access spoils every later
test of its process, but no other family's. With pytest-xdist a family has several processes; Triton compiles on the
processor, and that is what takes the time. What only a device can show comes first (capture into graphs, no host waits,
200 repeats), then every tile and every test once, then the rest while there is time. A family is `finished` when all
but that rest has run. Counts are written while the tests run, so that a run that is stopped says how far it came.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from fastvtp_kernels.ops import OPS

from ..harness.environment import ROOT, environment
from ..harness.record import write_json_rows

TESTS = ROOT / "tests" / "kernels"
# Family (folder of fastvtp_kernels) -> the ops that benchmark rows name, and its share of the processes.
FAMILIES = {folder.name: folder.dispatched for folder in OPS.values()}
PROCESSES = {
    **{"attention": 5, "contrastive": 4, "pixel_loss": 2, "tubelets": 2},
    **{"token_assembly": 1, "segments": 1, "masking": 1},
}
COUNTS = ("passed", "failed", "skipped", "left_out")
SAVE_EVERY_S, POLL_S, GRACE_S = 5.0, 0.5, 3.0
MOST_MESSAGES = 20
# After this part of --seconds only essential tests start.
REST = 0.75
# A test that takes longer hangs (with pytest-timeout).
TEST_SECONDS = 60
# A smoke run: so many tests of these families, the quickest under the interpreter.
SMOKE_FAMILIES, SMOKE_TESTS = ("pixel_loss", "token_assembly"), 2
# pytest's own: tests ran, and all passed or some failed.
TESTS_RAN = (0, 1)


class Recorder:
    """A pytest plugin that counts the outcomes of a family and keeps the first failures' messages."""

    def __init__(self, path: Path, family: str, device: torch.device):
        self._path, self._environment = path, environment(device)
        counts = dict.fromkeys(COUNTS, 0)
        self._row: dict[str, Any] = {"op": family, "finished": False, **counts, "seconds": 0.0, "failures": []}
        self._saved = time.monotonic()

    def pytest_collectreport(self, report: Any) -> None:
        """Count a file that cannot be read as a failure."""
        if report.outcome == "failed":
            self._fail(report)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count the outcome of a test, and save now and then."""
        # Set-up and tear-down count only where they fail or skip.
        if report.when != "call" and report.outcome == "passed":
            return
        self._row["seconds"] += report.duration
        if report.outcome == "failed":
            self._fail(report)
        else:
            from .device_order import LEFT_OUT

            late = report.outcome == "skipped" and LEFT_OUT in str(report.longrepr)
            self._row["left_out" if late else report.outcome] += 1
        if time.monotonic() - self._saved > SAVE_EVERY_S:
            self.save()

    def _fail(self, report: Any) -> None:
        self._row["failed"] += 1
        if len(self._row["failures"]) < MOST_MESSAGES:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = str(crash.message if crash else report.longrepr).strip().splitlines()
            self._row["failures"].append({"test": report.nodeid, "message": " ".join(message[:3])[:300]})

    def save(self, *, finished: bool = False) -> None:
        """Write the counts; `finished` says that all tests of the family have had their turn."""
        self._saved = time.monotonic()
        self._row["finished"] = finished
        write_json_rows(self._path, [self._row], self._environment)


def has(module: str) -> bool:
    """Say whether a module is installed."""
    return importlib.util.find_spec(module) is not None


def run_family(family: str, path: Path, device: torch.device, until: float, processes: int, smoke: bool) -> int:
    """Run the family's tests in this process and, with pytest-xdist, its workers; return pytest's exit status."""
    import pytest

    from .device_order import DEVICE_TESTS, family_of

    files = [file for file in sorted(TESTS.glob("test_triton_*.py")) if family_of(file.name) == family]
    command = ["-q", "-p", "no:cacheprovider", "-p", "benchmarks.device.device_order", "--family", family]
    command += ["--until", str(until), "--tb=short", "--rootdir", str(ROOT), "--continue-on-collection-errors"]
    if has("pytest_timeout"):
        # A call that hangs on the device hears no signal.
        command += [f"--timeout={TEST_SECONDS}", "--timeout-method=thread"]
    if smoke:
        command += ["--most", str(SMOKE_TESTS)]
    elif processes > 1 and has("xdist"):
        command += ["-n", str(processes), "--dist", "load"]
    recorder = Recorder(path, family, device)
    recorder.save()
    code = pytest.main(
        [*command, *([] if smoke else [str(TESTS / DEVICE_TESTS)]), *map(str, files)], plugins=[recorder]
    )
    recorder.save(finished=code in TESTS_RAN)
    return int(code)


def run_families(
    path: Path, device: torch.device, seconds: float, processes: int, smoke: bool, logs: Path
) -> dict[str, int]:
    """Run all families side by side, with their counts in one file that is renewed; return exit statuses by family."""
    started, until = time.monotonic(), time.time() + REST * seconds
    logs.mkdir(parents=True, exist_ok=True)
    about, places = (
        environment(device),
        {family: logs / f"tests_{family}.json" for family in (SMOKE_FAMILIES if smoke else FAMILIES)},
    )
    running: dict[str, subprocess.Popen[bytes]] = {}
    for place in places.values():
        place.unlink(missing_ok=True)
    share = processes / sum(PROCESSES.values())
    try:
        for family, place in places.items():
            command = [sys.executable, "-m", "benchmarks.device.device_tests", "--family", family, "--json", str(place)]
            command += ["--until", str(until), "--processes", str(max(1, round(share * PROCESSES[family])))]
            with (logs / f"tests_{family}.txt").open("wb") as log:
                running[family] = subprocess.Popen(
                    [*command, *["--smoke"] * smoke], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT
                )
        saved = 0.0
        while any(process.poll() is None for process in running.values()):
            time.sleep(POLL_S)
            if time.monotonic() - saved > SAVE_EVERY_S:
                saved = time.monotonic()
                _join(path, places, about)
            if time.monotonic() - started > seconds:
                break
    finally:
        codes = _ended(running)
        _join(path, places, about)
    return codes


def _ended(running: dict[str, subprocess.Popen[bytes]]) -> dict[str, int]:
    """End the processes, after a while by force, for one may wait for the device; return their exit statuses."""
    for process in running.values():
        process.terminate()
    for process in running.values():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        process.kill()
    return {family: process.wait() for family, process in running.items()}


def _join(path: Path, places: dict[str, Path], about: dict[str, Any]) -> None:
    rows = [json.loads(place.read_text())["rows"] for place in places.values() if place.exists()]
    write_json_rows(path, [row for found in rows for row in found], about)


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all families, or one of them in this process, and return the worst exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="write the counts to this file")
    parser.add_argument("--smoke", action="store_true", help="run a handful of tests")
    parser.add_argument("--processes", type=int, default=min(15, os.cpu_count() or 1), help="run so many at a time")
    parser.add_argument("--seconds", type=float, default=600.0, help="end all of them after so long; default: 600")
    parser.add_argument("--family", choices=FAMILIES, help="run one family, in this process")
    parser.add_argument("--until", type=float, default=float("inf"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not given.family:
        write_json_rows(given.json, [], environment(device))
    if not has("pytest") or not has("hypothesis"):
        print("the tests need pytest and hypothesis", file=sys.stderr)
        return 3
    if given.family:
        return run_family(given.family, given.json, device, given.until, given.processes, given.smoke)
    signal.signal(signal.SIGTERM, _stop)
    codes = run_families(given.json, device, given.seconds, given.processes, given.smoke, given.json.parent / "logs")
    return max(code if code >= 0 else 2 for code in codes.values())


if __name__ == "__main__":
    sys.exit(main())
