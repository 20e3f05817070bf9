"""Finishes the files that a run of `gpu.py` writes: withheld times, the list of parts, summary and archive."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastvtp.errors import UserError

from ..harness.record import write_json_rows
from ..report import tables
from ..report.results import load_device
from .device_tests import COUNTS, FAMILIES

# What the names of our variants contain; pyav and dali are the loader's two decoders.
OURS = ("reference", "triton", "fastvtp", "pyav", "dali")
TIMES = ("median_s", "p20_s", "p80_s", "wall_s", "fraction_of_floor", "speedup")
STEPS = ("train_step", "scaling")
# Where a part's file goes as it was, when times are taken out of it.
WITHHELD = "withheld"


@dataclass
class Outcome:
    """An outcome says how a part ended: "done", "out of time", or "failed" with the last line that it printed."""

    part: str
    status: str
    seconds: float
    note: str = ""


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return a file's rows; an absent file, or one that is no record, has none."""
    return _content(path).get("rows", [])


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def distrusted(out: Path) -> dict[str, str]:
    """Return the ops that get no speed, and why: their family did not run to its end, passed no test or failed one."""
    rows = {row["op"]: row for row in rows_of(out / "tests.json")}
    doubts = {family: doubt for family in FAMILIES if (doubt := _doubt(rows.get(family)))}
    reasons = {op: f"no speed: {doubt}" for family, doubt in doubts.items() for op in FAMILIES[family]}
    if doubts:
        # whole steps, which all of them are part of
        for op in STEPS:
            reasons[op] = f"no speed: {', '.join(doubts)}: {next(iter(doubts.values()))}"
    return reasons


def _doubt(row: dict[str, Any] | None) -> str:
    if row is not None and row["failed"]:
        return f"{row['failed']} of its tests failed in this run"
    if row is None or not row["passed"]:
        return "its tests did not run"
    return "" if row["finished"] else "its tests did not run to their end"


def withhold(path: Path, reasons: dict[str, str]) -> None:
    """Take the times of our variants of distrusted ops out of a part's file; a copy with them stays in withheld/."""
    content = _content(path)
    ours = [row for row in content.get("rows", ()) if any(word in row.get("variant", "") for word in OURS)]
    concerned = [row for row in ours if row["op"] in reasons and row["median_s"] is not None]
    if not concerned:
        return
    write_json_rows(path.parent / WITHHELD / path.name, content["rows"], content["environment"])
    for row in concerned:
        row.update(dict.fromkeys(TIMES), note=reasons[row["op"]])
    write_json_rows(path, content["rows"], content["environment"])


def write_outcomes(path: Path, outcomes: Sequence[Outcome], order: Sequence[str], environment: dict[str, Any]) -> None:
    """Add outcomes to those of earlier runs; a part that ran again takes the place of its earlier line."""
    rows = {row["part"]: row for row in rows_of(path)}
    rows |= {outcome.part: {"op": outcome.part, **asdict(outcome)} for outcome in outcomes}
    known = [*order, *(name for name in rows if name not in order)]
    write_json_rows(path, [rows[name] for name in known if name in rows], environment)


def summary(folder: Path, outcomes: Sequence[Outcome]) -> str:
    """Say how the parts ended, what the tests counted, and of each op how one case stands beside its best peer."""
    return "\n".join(_summary(folder, outcomes))


def _summary(folder: Path, outcomes: Sequence[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        about = _content(folder / f"{outcome.part}.json").get("environment", {})
        cases = f"{about['cases_done']} of {about['cases']} cases" if about.get("cases") else ""
        line = f"{outcome.part:20} {outcome.status:12} {outcome.seconds:6.0f} s  {cases:16} {outcome.note}"
        yield line.rstrip()
    if not any(outcome.part == "tests" for outcome in outcomes):
        yield "the kernel tests were no part of this run"
    else:
        for row in rows_of(folder / "tests.json"):
            counts = ", ".join(f"{row.get(key, 0)} {key.replace('_', ' ')}" for key in COUNTS)
            yield f"tests of {row['op']:15} {counts}{'' if row['finished'] else ', not finished'}"
    yield ""
    try:
        yield from tables.summary([load_device(folder)])
    except UserError as error:
        yield f"no table: {error}"


def pack(folder: Path) -> Path:
    """Pack everything into one file beside the folder, <folder>.tar.gz, for where only a few files can be fetched."""
    path = folder.parent / f"{folder.name}.tar.gz"
    temporary = path.with_suffix(".tmp")
    with tarfile.open(temporary, "w:gz") as archive:
        archive.add(folder, arcname=folder.name, filter=lambda entry: None if entry.name.endswith(".tmp") else entry)
    temporary.replace(path)
    return path
