"""What a run writes down: metrics.jsonl (bit-reproducible), speed.jsonl (clocks), TensorBoard where it is installed."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any, TextIO

from fastvtp.errors import UserError
from fastvtp.files import write_atomically

METRICS_NAME, SPEED_NAME = "metrics.jsonl", "speed.jsonl"


def _keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`, which a resumed run will write again, and a line cut short by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}, line {len(kept) + 1}: expected a record with a step, got {line[:60]!r}") from None
        kept.append(line)
    write_atomically(path, "".join(kept).encode())  # a run killed right here must not lose what it had


def last_record(run_dir: Path) -> dict[str, float]:
    """Return the newest record of metrics.jsonl; empty where there is none."""
    lines = (run_dir / METRICS_NAME).read_text().splitlines()
    return json.loads(lines[-1]) if lines else {}


def records_in(run_dir: Path) -> int:
    """Return the number of records in metrics.jsonl, 0 where there is none."""
    path = run_dir / METRICS_NAME
    return len(path.read_text().splitlines()) if path.is_file() else 0


class MetricsWriter:
    """Appends one record a logged step. Values that depend on the clock go to a file of their own, so that
    metrics.jsonl of a resumed run equals that of an uninterrupted one byte for byte."""

    def __init__(self, run_dir: Path, *, resume_step: int, tensorboard: bool):
        for name in (METRICS_NAME, SPEED_NAME):
            _keep_until(run_dir / name, resume_step)
        self._files: dict[str, TextIO] = {name: (run_dir / name).open("a") for name in (METRICS_NAME, SPEED_NAME)}
        self._events = None
        if tensorboard and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._events = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, metrics: dict[str, float], speed: dict[str, float]) -> None:
        for name, record in ((METRICS_NAME, metrics), (SPEED_NAME, speed)):
            self._files[name].write(json.dumps({"step": step, **record}) + "\n")
            self._files[name].flush()
        if self._events is not None:
            for name, value in (metrics | speed).items():
                self._events.add_scalar(name, value, step)

    def sync(self) -> None:
        """Bring the records to the disk; due before a checkpoint that counts on them."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
