"""The kernel tests on the device at hand, counted per family of ops: what no speed is reported without.

With pytest-xdist the tests share the device from several processes; Triton compiles on the processor, and that is what
takes the time. Counts are written while the tests run, so that a run that is stopped says how far it came.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .environment import ROOT, environment
from .record import write_json_rows

TESTS = ROOT / "tests" / "kernels"
# Family (folder of fastvtp_kernels) -> the ops that benchmark rows name.
FAMILIES = {
    "masking": ("tube_mask",),
    "tubelets": ("gather_tubelets", "tubelet_embed"),
    "pixel_loss": ("masked_pixel_loss",),
    "token_assembly": ("assemble_tokens",),
    "attention": ("varlen_attention", "axial_attention"),
    "contrastive": ("contrastive_loss", "sigmoid_loss", "hard_negatives"),
}
# What a test's name tells its family by, where it is not the family's own name.
WORDS = {
    "attention": ("attention",),
    "contrastive": ("contrastive", "hard_negatives"),
    "token_assembly": ("token_assembly", "assemble_tokens"),
    "pixel_loss": ("pixel_loss",),
    "tubelets": ("tubelet",),
    "masking": ("mask",),
}
SAVE_EVERY_S = 5.0
MOST_MESSAGES = 20
SMOKE_TESTS = ("test_triton_token_assembly.py",)


def family_of(node: str) -> str:
    """The family that a test id speaks of; "common" if none, and then every op depends on it."""
    return next((family for family, words in WORDS.items() if any(word in node for word in words)), "common")


class Recorder:
    """A pytest plugin that counts outcomes per family and keeps the first failures' messages."""

    def __init__(self, path: Path, device: torch.device):
        self._path, self._environment = path, environment(device)
        self._rows: dict[str, dict[str, Any]] = {}
        self._saved = time.monotonic()

    def pytest_runtest_logreport(self, report: Any) -> None:
        # Set-up and tear-down count only where they fail or skip.
        if report.when != "call" and report.outcome == "passed":
            return
        row = self._rows.setdefault(
            family_of(report.nodeid), {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0, "failures": []}
        )
        row[report.outcome] += 1
        row["seconds"] += report.duration
        if report.outcome == "failed" and len(row["failures"]) < MOST_MESSAGES:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = str(crash.message if crash else report.longrepr).strip().splitlines()
            row["failures"].append({"test": report.nodeid, "message": " ".join(message[:3])[:300]})
        if time.monotonic() - self._saved > SAVE_EVERY_S:
            self.save(finished=False)

    def save(self, *, finished: bool) -> None:
        self._saved = time.monotonic()
        rows = [{"op": family, "finished": finished, **row} for family, row in self._rows.items()]
        write_json_rows(self._path, rows, self._environment)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--smoke", action="store_true", help="one small file of tests")
    parser.add_argument("--processes", type=int, default=min(12, os.cpu_count() or 1))
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("hypothesis") is None:
        print("the tests need pytest and hypothesis", file=sys.stderr)
        return 3
    import pytest

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # What only a device can show comes first: capture into graphs, no host waits, 200 repeats.
    first = [] if given.smoke else [str(TESTS / "test_cuda_kernels.py")]
    rest = [str(TESTS / name) for name in SMOKE_TESTS] if given.smoke else sorted(map(str, TESTS.glob("test_triton_*")))
    command = ["-q", "-p", "no:cacheprovider", "--tb=short", "--rootdir", str(ROOT), *first, *rest]
    if given.processes > 1 and not given.smoke and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(given.processes), "--dist", "worksteal"]
    recorder = Recorder(given.json, device)
    code = pytest.main(command, plugins=[recorder])
    recorder.save(finished=True)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
