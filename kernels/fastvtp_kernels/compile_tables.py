"""Writes the compile report's tables in Markdown: what is at fault, what is far from its floor, and why."""

from collections.abc import Callable, Iterable, Sequence

from .compile_device import DEVICES
from .compile_model import Prediction, per_element, per_useful_element, predict
from .compile_row import Row
from .compile_workloads import ARCHITECTURE, WORKLOADS, Workload

FAR, LONG = 2.0, 20.0
"""Launches are far from their floor from this factor on; shorter ones than so many microseconds are not listed."""


def _lines(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def _number(value: float | None) -> str:
    """Three digits, no more: the model has no more to say."""
    if value is None:
        return "-"
    return f"{value:.1f}" if 0 < abs(value) < 99.95 and value != round(value) else f"{value:.0f}"


def short_tile(tile: str) -> str:
    """Return "M=64 N=64 w8 s2" of "BLOCK_M=64 BLOCK_N=64 warps=8 stages=2"."""
    return tile.replace("BLOCK_", "").replace("warps=", "w").replace("stages=", "s")


def _spills(row: Row) -> str:
    inside = row.code.spills_in_loops if row.code else 0
    return f"{row.spilled_bytes}, {inside} in loops" if inside else str(row.spilled_bytes)


def _per_sm(row: Row) -> str:
    return f"{row.resident} x {row.num_warps}" if row.resident else "-"


def _products(row: Row) -> str:
    found = " ".join(f"{count} {opcode}" for opcode, count in row.tensor_core.items())
    if row.is_serialised:
        found += ", serialised"
    elif row.injected:
        found += f", {' '.join(row.injected)}"
    return found or ("exact fp32" if row.exact_fp32_dot else "-")


def _bound(row: Row, model: Prediction | None) -> str:
    if model is None:
        return "-"
    return f"{model.bound}, serialised" if row.is_serialised else model.bound


def _once(rows: Sequence[Row]) -> list[tuple[Row, int]]:
    """Return rows with how often a case launched exactly that."""
    counts: dict[str, tuple[Row, int]] = {}
    for row in rows:
        key = repr(row)
        counts[key] = row, counts.get(key, (row, 0))[1] + 1
    return list(counts.values())


def _of_pass(row: Row, *names: str) -> str:
    """Return counts of one pass of the main loop, or of the kernel where it has none."""
    if row.code is None:
        return "-"
    counts = row.code.main if row.code.main.instructions else row.code.program
    return " + ".join(str(getattr(counts, name)) for name in names)


def device_table(rows: Sequence[Row]) -> list[str]:
    """Write every launch of one architecture."""
    columns = (
        *("launch", "kernel", "tile", "regs", "spilled", "KiB", "per SM", "products", "instr. per"),
        *("special", "conv.", "shared", "barriers", "loads", "model µs", "floor µs", "bound by"),
    )
    lines = []
    for row, times in _once(rows):
        model = predict(row)
        lines.append(
            (
                row.case,
                f"`{row.kernel}`" + (f" x {times}" if times > 1 else ""),
                short_tile(row.tile),
                str(row.registers),
                _spills(row),
                f"{row.shared_bytes / 1024:.0f}",
                _per_sm(row),
                _products(row),
                f"{_number(per_element(row))} {row.work.element if row.work else ''}",
                _of_pass(row, "special"),
                _of_pass(row, "conversions"),
                _of_pass(row, "shared_stores", "shared_loads"),
                _of_pass(row, "barriers"),
                str(max(row.load_bits, default=0)),
                _number(model and model.total),
                _number(model and model.floor),
                _bound(row, model),
            )
        )
    return _lines(columns, lines)


def workload_launches(workload: Workload, rows: Sequence[Row]) -> list[tuple[Row, Prediction]]:
    """Return the launches of a workload with their times in the model."""
    launches = [row for row in rows if (row.case, row.arch) == (workload.case, ARCHITECTURE)]
    return [(row, model) for row in launches if (model := predict(row)) is not None]


def workload_table(rows: Sequence[Row]) -> list[str]:
    """Write the workloads of a training step: floor, model, and the launch that takes most of it."""
    lines = []
    for workload in WORKLOADS:
        launches = workload_launches(workload, rows)
        if not launches:
            continue
        row, model = max(launches, key=lambda launch: launch[1].total)
        total = sum(each.total for _, each in launches)
        lines.append(
            (
                workload.name,
                _number(workload.floor),
                _number(total),
                f"{total / workload.floor:.1f}",
                f"`{row.kernel}` {model.total / total:.0%}",
                _bound(row, model),
                _per_sm(row),
            )
        )
    return _lines(("workload", "floor µs", "model µs", "ratio", "most of it", "bound by", "per SM"), lines)


def far_from_floor(rows: Sequence[Row]) -> list[str]:
    """Write the kernels and tiles that the model has far above their floor, the most lost time first.

    Of each the launch that loses most, and how many there are; without products of float32, exact or not.
    """
    found: dict[tuple[str, str], list[tuple[Row, Prediction]]] = {}
    for row in rows:
        model = predict(row) if row.arch == ARCHITECTURE and not (row.exact_fp32_dot or row.tf32_dot) else None
        if model is not None and model.total > max(LONG, FAR * model.floor):
            found.setdefault((row.kernel, row.tile), []).append((row, model))
    worst = [(max(launches, key=_lost), len({row.case for row, _ in launches})) for launches in found.values()]
    lines = [
        (
            f"`{row.kernel}`",
            short_tile(row.tile),
            row.case + (f" and {count - 1} more" if count > 1 else ""),
            _number(model.floor),
            _number(model.total),
            *map(_number, (model.issue, max(model.slow, model.shared), model.products, model.memory)),
            _per_sm(row),
            _bound(row, model),
        )
        for (row, model), count in sorted(worst, key=lambda each: _lost(each[0]), reverse=True)
    ]
    parts = ("instructions", "special or shared", "products", "memory")
    return _lines(("kernel", "tile", "launch", "floor µs", "model µs", *parts, "per SM", "bound by"), lines)


def _lost(launch: tuple[Row, Prediction]) -> float:
    return launch[1].total - launch[1].floor


LEGEND = """\
Per SM: blocks that a multiprocessor holds x warps of each, by registers, shared memory and the architecture's limits.
Instr. per: instructions of a thread per element in the main loop (in the whole kernel where it has none). Special
functions, conversions, shared (stores + loads of shared memory) and barriers are of one warp in one pass of that loop.
Loads: widest global load in bits. Spilled: bytes, once a program unless in loops. Model and
floor are arithmetic (`compile_model.py`): no GPU was timed."""


def short_table(rows: Sequence[Row]) -> str:
    """Write the workloads alone."""
    device = DEVICES[ARCHITECTURE]
    return "\n".join(
        [
            f"A model of one {device.name} ({device.multiprocessors} multiprocessors at {device.gigahertz} GHz, "
            f"{device.teraflops:.0f} TFLOP/s, {device.terabytes} TB/s), nothing timed:",
            "",
            *workload_table(rows),
        ]
    )


def page(rows: Sequence[Row], wrong: Sequence[str]) -> str:
    """Write everything."""
    parts = ["## Workloads of a training step", "", short_table(rows), "", "## Faults", ""]
    parts += [f"- {fault}" for fault in wrong] or ["None."]
    parts += [
        "",
        f"## Far from their floor on {ARCHITECTURE}",
        "",
        f"Kernels and tiles that the model has above {FAR:g} times their floor and {LONG:g} µs in some launch, without "
        "products of float32; of each the launch that loses most time. The four columns in the middle are what each "
        "part of the device would need alone.",
        "",
        *far_from_floor(rows),
        "",
        "## How to read what follows",
        "",
        LEGEND,
    ]
    for arch in dict.fromkeys(row.arch for row in rows):
        device = DEVICES.get(arch)
        name = f" ({device.name})" if device else ""
        parts += ["", f"## All launches on {arch}{name}", ""]
        parts += device_table([row for row in rows if row.arch == arch])
    return "\n".join(parts)


# What two reports are compared by: a column, and how a row's cell reads.
_COMPARED: list[tuple[str, Callable[[Row], str]]] = [
    ("tile", lambda row: short_tile(row.tile)),
    ("regs", lambda row: str(row.registers)),
    ("spilled", _spills),
    ("per SM", _per_sm),
    ("products", _products),
    ("instr. per element", lambda row: _number(per_element(row))),
    ("in all", lambda row: _number(per_useful_element(row))),
    ("shared", lambda row: _of_pass(row, "shared_stores", "shared_loads")),
    ("barriers", lambda row: _of_pass(row, "barriers")),
    ("model µs", lambda row: _number(model.total if (model := predict(row)) else None)),
]


def _numbered(rows: Sequence[Row]) -> dict[tuple[str, str, str, int], Row]:
    """Return rows by architecture, case, kernel, and which of the case's launches of it they are."""
    found: dict[tuple[str, str, str, int], Row] = {}
    for row in rows:
        number = 0
        while (row.arch, row.case, row.kernel, number) in found:
            number += 1
        found[row.arch, row.case, row.kernel, number] = row
    return found


def compare(before: Sequence[Row], after: Sequence[Row]) -> str:
    """Write what differs between two reports in the launches of both, and the time of each case in the model."""
    both = {(row.arch, row.case) for row in before} & {(row.arch, row.case) for row in after}
    old, new = (_numbered([row for row in rows if (row.arch, row.case) in both]) for rows in (before, after))
    lines = []
    for key in dict.fromkeys((*old, *new)):
        ways = [(cell(old[key]) if key in old else "", cell(new[key]) if key in new else "") for _, cell in _COMPARED]
        if any(left != right for left, right in ways):
            cells = [left if left == right else f"{left or 'none'} -> {right or 'none'}" for left, right in ways]
            lines.append((key[0], key[1], f"`{key[2]}`", *cells))
    parts = _lines(("arch", "launch", "kernel", *(name for name, _ in _COMPARED)), lines)
    times = [_case_times(rows) for rows in (before, after)]
    totals = [
        (*case, _number(times[0][case]), _number(times[1][case]), f"{times[1][case] / times[0][case]:.2f}")
        for case in times[0]
        if case in times[1] and round(times[0][case], 1) != round(times[1][case], 1)
    ]
    parts += ["", *_lines(("arch", "launch", "model µs before", "after", "ratio"), totals)]
    return "\n".join(parts)


def _case_times(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    times: dict[tuple[str, str], float] = {}
    for row in rows:
        if (model := predict(row)) is not None:
            times[row.arch, row.case] = times.get((row.arch, row.case), 0) + model.total
    return times
