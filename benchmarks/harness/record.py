"""Keeps what a benchmark leaves behind: rows and the environment they were measured in, as JSON and as a table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastvtp.files import write_atomically

SCHEMA = 1
COLUMNS = ("op", "case", "direction", "variant", "ms", "p20-p80", "wall ms", "peak MB", "speedup", "of floor", "note")
Direction = Literal["forward", "forward+backward", "step"]
# Notes of variants that could have run: one that an option left out (after "missing: "), one whose turn did not come.
LEFT_OUT, NOT_REACHED = "left out", "not reached: the run was stopped first"


@dataclass
class Row:
    """A row says how one variant of one case fared; where nothing was timed its times are None and `note` says why.

    Times are seconds per call. On CUDA median, p20 and p80 are device time and `wall_s` includes the host; on the CPU
    `wall_s` is the mean. `peak_bytes` comes on top of what is held before the call (inputs; a model's weights and its
    optimizer's state). `error` is that of the output relative to the truth. `fraction_of_floor` is `floor_s` over
    `median_s`, so that 1 is the floor itself. `speedup` is over the variant `baseline` of the same case.
    """

    op: str
    case: str
    variant: str
    shape: dict[str, int]
    dtype: str
    direction: Direction
    model_bytes: int
    model_flops: int
    floor_s: float
    baseline: str
    median_s: float | None = None
    p20_s: float | None = None
    p80_s: float | None = None
    wall_s: float | None = None
    calls: int = 0
    peak_bytes: int | None = None
    fraction_of_floor: float | None = None
    speedup: float | None = None
    error: float | None = None
    note: str = ""


@dataclass
class Record:
    """A record holds a run's rows and environment, the variants its cases offered, and why it was cut short, if so."""

    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    offered: set[str] = field(default_factory=set)
    stopped: str = ""


def write_json(path: Path, rows: Sequence[Row], environment: dict[str, Any]) -> None:
    """Write {"schema": 1, "environment": {...}, "rows": [...]}, complete under its name or not at all."""
    write_json_rows(path, [asdict(row) for row in rows], environment)


def write_json_rows(path: Path, rows: Sequence[dict[str, Any]], environment: dict[str, Any]) -> None:
    """Write rows of another kind (tests, tiles, loaders) in the form that `write_json` has for benchmarks'."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"schema": SCHEMA, "environment": environment, "rows": list(rows)}
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode())


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned Markdown table."""
    lines = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    padded = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    padded.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in padded)


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None, scale: float = 1.0, form: str = ".3f") -> str:
        return "" if value is None else f"{value * scale:{form}}"

    spread = f"{number(row.p20_s, 1e3)}-{number(row.p80_s, 1e3)}" if row.median_s is not None else ""
    note = row.note or ("" if row.error is None else f"error {row.error:.1e}")
    return (
        row.op,
        row.case,
        row.direction,
        row.variant,
        number(row.median_s, 1e3),
        spread,
        number(row.wall_s, 1e3),
        number(row.peak_bytes, 1e-6, ".1f"),
        number(row.speedup, form=".2f"),
        number(row.fraction_of_floor, form=".1%"),
        note,
    )
