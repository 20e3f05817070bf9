"""Writes the tables of the report as Markdown; they are a function of the results alone."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..harness.record import Row
from .results import OPS, Case, Device, Part

NOT_MEASURED = "not measured yet"
# The case that stands for an op in the README; without it, or where it was not measured, the one with the most work.
HEADLINES = {
    "assemble_tokens": "VideoMAE-B",
    "varlen_attention": "168 tokens each",
    "contrastive_loss": "B = 32768",
    "sigmoid_loss": "B = 32768",
    "hard_negatives": "B = 32768",
}
# A folded table spares the reader of a long page; a short one may stand open.
MOST_OPEN_CASES = 4
NOTE_LENGTH = 120
# Said beneath an op's table.
_CPU_TIME = "Times are of the processor, of all processes together, per clip of 16 frames; wall is the clock's."
REMARKS = {
    "train_step": "Peak MB: activations and gradients; without weights and optimizer state, the same for all.",
    **dict.fromkeys(("clip_decoding", "clip_loading", "clip_storage"), _CPU_TIME),
}
# Said beside a best peer of this name, and in full beneath the tables.
PEER_NOTES = {"unpacked": "written by us, computes all tokens"}
PEER_REMARKS = {
    "unpacked": "The peer `unpacked` (VideoPrism's second stage) is written by us and sends every token, masked or not,"
    " through every block; that stage's training was never released, and no other code is there to be measured."
}


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield _line(head)
    yield "|" + "---|" * len(head)
    yield from map(_line, lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def number(value: float) -> str:
    """Write a number with three digits that mean something, without an exponent."""
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"


def seconds(value: float | None) -> str:
    """Write a time in the unit that suits it: µs, ms or s; empty if there is none."""
    if value is None:
        return ""
    scale, unit = next(((s, u) for s, u in ((1e6, "µs"), (1e3, "ms")) if value * s < 999.5), (1.0, "s"))
    return f"{number(value * scale)} {unit}"


def percent(value: float | None) -> str:
    """Write a fraction in percent, a small one with a digit more; empty if there is none."""
    return "" if value is None else f"{value:.0%}" if value >= 0.0995 else f"{value:.1%}"


def megabytes(value: int | None) -> str:
    """Write bytes in megabytes of 1e6; empty if there are none."""
    return "" if value is None else number(value / 1e6)


def per_second(value: float | None, unit: str) -> str:
    """Write a rate in T or G of the unit; empty if there is none."""
    if value is None:
        return ""
    return f"{number(value / 1e12)} T{unit}" if value >= 0.9995e12 else f"{number(value / 1e9)} G{unit}"


def ratio(case: Case, value: float | None) -> str:
    """Write a ratio of two times, with a word where it is the CPU's; empty if there is none."""
    return "" if value is None else f"{number(value)}×{'' if case.on_gpu else ' (CPU)'}"


def rate(case: Case, row: Row | None) -> str:
    """Write useful FLOP or bytes per second, whichever bounds the floor; empty where nothing useful is counted."""
    if row is None or row.median_s is None or not case.work:
        return ""
    return per_second(case.work / row.median_s, "B/s" if case.bound_by_bytes else "FLOP/s")


def peer_of(case: Case) -> str:
    """Name the best peer with its time, what must be said of it, and how many that could run were not timed."""
    peer = case.best_peer
    if peer is None or case.tests_failed:
        return ""
    notes = [PEER_NOTES.get(peer.variant, ""), f"{case.untimed_peers} not timed" if case.untimed_peers else ""]
    said = "; ".join(filter(None, notes))
    return f"{peer.variant}: {seconds(peer.median_s)}{f' ({said})' if said else ''}"


def peer_remarks(cases: Iterable[Case]) -> Iterator[str]:
    """Return what must be said at length of the best peers of these cases."""
    named = {case.best_peer.variant for case in cases if case.best_peer is not None}
    return (remark for variant, remark in PEER_REMARKS.items() if variant in named)


def changes(environment: dict[str, Any]) -> str:
    """Say, after a commit, that its sources were not all that ran, or that nobody knows."""
    dirty = environment.get("dirty")
    return ", changes unknown" if dirty is None else " and changes" if dirty else ""


def time_of(case: Case, row: Row | None) -> str:
    """Write a row's time, or in a word why there is none."""
    if case.tests_failed:
        return "tests failed"
    if row is None:
        return "not offered"
    return row.note.partition(":")[0] or "no time" if row.median_s is None else seconds(row.median_s)


# --- README


def headline(cases: Sequence[Case]) -> list[Case]:
    """Return the cases that stand for an op: one, with its backward pass; of training steps, each model."""
    if cases[0].first.op == "train_step":
        return list(cases)
    with_backward = [case for case in cases if case.first.direction == "forward+backward"] or cases
    named = [case for case in with_backward if case.first.case == HEADLINES.get(case.first.op)]
    return [max(named or with_backward, key=lambda case: (case.first.model_flops, case.first.model_bytes))]


def summary(devices: Sequence[Device]) -> Iterator[str]:
    """Yield a table with a line per op and device, "not measured yet" for an op that no GPU has run."""
    head = ("op", "workload", "ours", "best peer", "ours against it", "of floor", "device")
    yield from table(head, _summary_lines(devices))


def _summary_lines(devices: Sequence[Device]) -> Iterator[tuple[str, ...]]:
    measured = [(device, device.by_op()) for device in devices]
    promised = [op for ops in OPS.values() for op in ops]
    for op in promised:
        if not any(device.on_gpu and op in found for device, found in measured):
            yield f"`{op}`", "", NOT_MEASURED, "", "", "", "GPU"
        for _, found in measured:
            for case in headline(found[op]) if op in found else ():
                yield _summary_line(case)


def _summary_line(case: Case) -> tuple[str, ...]:
    row, fine = case.first, not case.tests_failed
    on = case.environment["device"] if case.on_gpu else f"CPU: {case.environment['device']}"
    dirty = ", with uncommitted changes" if case.environment.get("dirty") else ""
    return (
        f"`{row.op}`",
        f"{row.case}, {row.direction}, {row.dtype}",
        time_of(case, case.ours),
        peer_of(case),
        ratio(case, case.ratio) if fine else "",
        percent(case.ours.fraction_of_floor) if case.ours and fine else "",
        f"{on}, {case.environment['date'][:10]}{dirty}",
    )


# --- docs/performance.md


def overview(cases: Sequence[Case]) -> Iterator[str]:
    """Yield a table of ours and the best peer, a line per case."""
    head = (
        "case",
        "direction",
        "dtype",
        "ours",
        "best peer",
        "ours against it",
        "of floor",
        "rate",
        "peak MB, ours",
        "peer",
    )
    lines = []
    for case in cases:
        row, ours, peer = case.first, case.ours, None if case.tests_failed else case.best_peer
        shown = None if case.tests_failed else ours
        lines.append(
            (
                row.case,
                row.direction,
                row.dtype,
                time_of(case, ours),
                peer_of(case),
                ratio(case, case.ratio) if peer else "",
                percent(shown.fraction_of_floor) if shown else "",
                rate(case, shown),
                megabytes(shown.peak_bytes) if shown else "",
                megabytes(peer.peak_bytes) if peer else "",
            )
        )
    yield from table(head, lines)
    for remark in filter(None, [REMARKS.get(cases[0].first.op), *peer_remarks(cases)]):
        yield f"\n{remark}"


def variants(cases: Sequence[Case]) -> Iterator[str]:
    """Yield a table of every variant of every case, with what failed and what was missing."""
    baselines = ", ".join(dict.fromkeys(f"`{case.first.baseline}`" for case in cases))
    fold = len(cases) > MOST_OPEN_CASES
    if fold:
        yield f"<details><summary>Every variant of the {len(cases)} cases</summary>\n"
    yield f"Speedups are over {baselines}.\n"
    head = (
        "case",
        "variant",
        "median",
        "p20–p80",
        "wall",
        "ours against it",
        "speedup",
        "of floor",
        "rate",
        "peak MB",
        "note",
    )
    yield from table(head, (_variant(case, row) for case in cases for row in case.rows))
    if fold:
        yield "\n</details>"


def _variant(case: Case, row: Row) -> tuple[str, ...]:
    name = f"{row.case}, {row.direction}, {row.dtype}"
    if case.tests_failed or row.median_s is None:
        note = "tests of the op failed on this device" if case.tests_failed else row.note
        return name, row.variant, *[""] * 8, note[:NOTE_LENGTH]
    against = "ours" if row is case.ours else ratio(case, case.times_faster_than(row))
    return (
        name,
        row.variant,
        seconds(row.median_s),
        f"{seconds(row.p20_s)}–{seconds(row.p80_s)}",
        seconds(row.wall_s),
        against,
        ratio(case, row.speedup),
        percent(row.fraction_of_floor),
        rate(case, row),
        megabytes(row.peak_bytes),
        row.note[:NOTE_LENGTH],
    )


def provenance(device: Device) -> Iterator[str]:
    """Yield a table of when, from which commit and with what each part was measured, and of its ceilings."""
    head = ("part", "date (UTC)", "commit", "torch", "triton", "driver", "SM clock", "copy", "matmul")
    yield from table(head, map(_provenance, device.parts))


def _provenance(part: Part) -> tuple[str, ...]:
    environment = part.environment
    packages, gpu = environment.get("packages") or {}, environment.get("gpu") or {}
    ceilings = environment.get("ceilings") or {}
    commit = (environment.get("commit") or f"sources {environment.get('sources', 'unknown')}")[:20]
    commit = (commit if commit.startswith("sources") else commit[:10]) + changes(environment)
    copy, matmul = (ceilings.get(key) for key in ("bytes_per_s", "flops_per_s"))
    return (
        part.name,
        environment["date"],
        commit,
        packages.get("torch") or "",
        packages.get("triton") or "",
        gpu.get("driver_version", ""),
        gpu.get("clocks.sm", ""),
        per_second(copy, "B/s"),
        per_second(matmul, "FLOP/s"),
    )


def plain(entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a table of rows of another kind (tests, loaders): a column per key, without nested values."""
    keys = list(dict.fromkeys(key for entry in entries for key in entry))
    keys = [key for key in keys if not any(isinstance(entry.get(key), dict | list) for entry in entries)]
    yield from table(keys, ([_plain(entry.get(key)) for key in keys] for entry in entries))


def _plain(value: Any) -> str:
    return "" if value is None else number(value) if isinstance(value, float) else str(value)[:NOTE_LENGTH]
