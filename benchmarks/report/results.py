"""Reads the results, benchmarks/results/<device>/<part>.json, and says what is held against what.

Ours is what a call gets without asking: the Triton kernels on CUDA, the reference on the CPU; of a training step, the
fastest variant whose name starts with "fastvtp". Every other right variant is a peer, our own reference on CUDA too.
Variants that a part left to another one, <part>_compiled, are taken from there.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fastvtp.errors import UserError
from fastvtp_kernels.ops import OPS as KERNEL_OPS

from ..harness.record import LEFT_OUT, NOT_REACHED, SCHEMA, Row

# Other layouts of an op that has a line, and an op without a kernel.
WITHOUT_A_LINE = {"axial_attention", "axial_attention_packed", "varlen_attention_packed", "text_mask"}
# Those that a report shows first, in this order.
FIRST = ("tubelets", "pixel_loss", "masking", "token_assembly", "attention", "contrastive")
# A benchmark file, and the ops that a full report has lines for, measured or not.
OPS = {
    **dict.fromkeys(FIRST, ()),
    **{
        folder.name: tuple(op for op in folder.dispatched if op not in WITHOUT_A_LINE) for folder in KERNEL_OPS.values()
    },
    "train_step": ("train_step",),
}
PARTS = (
    *OPS,
    *("data_loading", "clip_reading", "decoding", "scaling", "host_time", "agreement", "tests"),
    *("ceilings", "environment"),
)
# Benchmarks of training steps, of their loader, of reading clips, and on several processes; the others are of ops.
STEPS = ("train_step", "data_loading", "clip_reading", "decoding", "scaling")
# A part of its own for the variants that compile, which come last in a run: its rows belong to the part before.
COMPILED = "_compiled"
OURS = "fastvtp"


def module_of(benchmark: str) -> str:
    """Return the dotted name of the module that measures a benchmark: "tubelets" -> "benchmarks.ops.tubelets"."""
    return f"benchmarks.{'steps' if benchmark in STEPS else 'ops'}.{benchmark}"


def device_slug(name: str, device_type: str) -> str:
    """Return the folder of a device's results: "NVIDIA H200" -> "nvidia-h200"; a CPU's begins with "cpu-"."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return words if device_type == "cuda" else f"cpu-{words}"


@dataclass(frozen=True)
class Case:
    """A case has the rows of one op's variants on the same inputs, and the environment they were measured in."""

    rows: tuple[Row, ...]
    environment: dict[str, Any]
    tests_failed: bool = False

    @property
    def first(self) -> Row:
        """Return the row that stands for what all rows share: op, case, direction, dtype, cost."""
        return self.rows[0]

    @property
    def on_gpu(self) -> bool:
        """Say whether the case was measured on a GPU."""
        return self.environment["device_type"] == "cuda"

    @cached_property
    def ours(self) -> Row | None:
        """Return our row, also where it has no time; its note then says why."""
        own = [row for row in self.rows if row.variant.startswith(OURS)]
        if own:
            return min(own, key=lambda row: float("inf") if row.median_s is None else row.median_s)
        by_variant = {row.variant: row for row in self.rows}
        return by_variant.get("triton" if self.on_gpu else "reference") or by_variant.get("reference")

    @cached_property
    def best_peer(self) -> Row | None:
        """Return the fastest row that is not ours, None if no other has a time."""
        timed = [row for row in self._peers if row.median_s is not None]
        return min(timed, key=lambda row: row.median_s or 0.0, default=None)

    @property
    def _peers(self) -> list[Row]:
        return [row for row in self.rows if row is not self.ours and not row.variant.startswith(OURS)]

    @property
    def untimed_peers(self) -> int:
        """Count the peers that could have run but did not, or were not reached; the best may be among them."""
        return sum(row.note.startswith((f"missing: {LEFT_OUT}", NOT_REACHED)) for row in self._peers)

    @cached_property
    def ratio(self) -> float | None:
        """Return how many times as fast as the fastest peer ours is."""
        return self.times_faster_than(self.best_peer)

    def times_faster_than(self, row: Row | None) -> float | None:
        """Return the row's time over ours, None where either is missing."""
        if row is None or row.median_s is None or self.ours is None or self.ours.median_s is None:
            return None
        return row.median_s / self.ours.median_s

    @property
    def bound_by_bytes(self) -> bool:
        """Say whether the floor comes from the bytes, not from the FLOP."""
        ceilings = self.environment["ceilings"]
        row = self.first
        return row.model_bytes / ceilings["bytes_per_s"] >= row.model_flops / ceilings["flops_per_s"]

    @property
    def work(self) -> int:
        """Return the useful bytes or FLOP, whichever bound the floor."""
        return self.first.model_bytes if self.bound_by_bytes else self.first.model_flops


@dataclass(frozen=True)
class Part:
    """A part is one file of results; entries that are no timed variants (of tests, say) stay as they are."""

    path: Path
    environment: dict[str, Any]
    rows: tuple[Row, ...]
    others: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        """Return the part's name, which is its file's."""
        return self.path.stem


@dataclass(frozen=True)
class Device:
    """A device has all parts that were measured on it, in the order of PARTS."""

    slug: str
    parts: tuple[Part, ...]

    @property
    def on_gpu(self) -> bool:
        """Say whether the device is a GPU."""
        return any(part.environment["device_type"] == "cuda" for part in self.parts)

    @property
    def name(self) -> str:
        """Return the maker's name of the device, or all names if its parts do not agree."""
        return ", ".join(dict.fromkeys(part.environment["device"] for part in self.parts))

    @cached_property
    def failed(self) -> set[str]:
        """Return the ops and parts that have failed tests; with any of them a training step has, for it uses all."""
        tests = (entry for part in self.parts if part.name == "tests" for entry in part.others)
        failed = {entry["op"] for entry in tests if entry.get("failed")}
        return failed | {"train_step"} if failed else failed

    def cases(self, part: Part) -> list[Case]:
        """Return a part's cases in the order of its file."""
        found: dict[tuple[str, ...], list[Row]] = {}
        for row in part.rows:
            found.setdefault((row.op, row.case, row.direction, row.dtype), []).append(row)
        name = part.name.removesuffix(COMPILED)
        return [Case(tuple(rows), part.environment, bool(self.failed & {name, rows[0].op})) for rows in found.values()]

    def by_op(self) -> dict[str, list[Case]]:
        """Return all cases by op, with a case that two parts of a run measured joined into one."""
        found: dict[str, dict[tuple[Any, ...], Case]] = {}
        for part in self.parts:
            for case in self.cases(part):
                row = case.first
                about = case.environment
                key = row.case, row.direction, row.dtype, about.get("commit"), about.get("sources")
                cases = found.setdefault(row.op, {})
                cases[key] = _joined(cases[key], case, part.name) if key in cases else case
        return {op: list(cases.values()) for op, cases in found.items()}


def _joined(case: Case, more: Case, part: str) -> Case:
    """Return the case with what it has no time for taken from another part of the same run."""
    rows = {row.variant: row for row in case.rows}
    for row in more.rows:
        if row.variant not in rows or (rows[row.variant].median_s is None and row.median_s is not None):
            note = "; ".join(filter(None, [row.note, f"timed in {part}" if row.median_s is not None else ""]))
            rows[row.variant] = replace(row, note=note)
    return replace(case, rows=tuple(rows.values()), tests_failed=case.tests_failed or more.tests_failed)


def load(folder: Path) -> list[Device]:
    """Read the results of all devices, GPUs first, then by name; an absent folder holds none.

    Raises:
        UserError: a file is not what `record.write_json` writes; the message names it.
    """
    devices = [load_device(place) for place in sorted(path for path in folder.glob("*") if path.is_dir())]
    return sorted((device for device in devices if device.parts), key=lambda device: not device.on_gpu)


def load_device(place: Path) -> Device:
    """Read the results of one device's folder; a wrong file raises UserError, as in `load`."""
    files = sorted(place.glob("*.json"), key=lambda path: (_rank(path.stem), path.stem))
    return Device(place.name, tuple(_part(path) for path in files))


def _rank(part: str) -> int:
    part = part.removesuffix(COMPILED)
    return PARTS.index(part) if part in PARTS else len(PARTS)


def _part(path: Path) -> Part:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path}: schema {schema!r}, expected {SCHEMA}; measure again with this version")
    environment, entries = content.get("environment"), content.get("rows")
    if not isinstance(environment, dict) or not isinstance(entries, list):
        raise UserError(f"{path}: expected an object 'environment' and a list 'rows'")
    if missing := [key for key in ("device", "device_type", "date") if not isinstance(environment.get(key), str)]:
        raise UserError(f"{path}: the environment has no {missing[0]!r}")
    rows = _rows(path, [entry for entry in entries if path.stem in OPS or "variant" in entry])
    ceilings = environment.get("ceilings")
    if rows and (not isinstance(ceilings, dict) or not {"bytes_per_s", "flops_per_s"} <= set(ceilings)):
        raise UserError(f"{path}: the environment has no 'ceilings' with bytes_per_s and flops_per_s")
    others = tuple(entry for entry in entries if path.stem not in OPS and "variant" not in entry)
    if path.stem == "tests" and any("op" not in entry for entry in others):
        raise UserError(f"{path}: a row of tests has no 'op'")
    return Part(path, environment, rows, others)


def _rows(path: Path, entries: Sequence[dict[str, Any]]) -> tuple[Row, ...]:
    rows = []
    for number, entry in enumerate(entries, start=1):
        try:
            rows.append(Row(**entry))
        except TypeError as error:
            raise UserError(f"{path}: row {number} is no benchmark's row ({error})") from None
    return tuple(rows)
