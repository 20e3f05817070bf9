"""Training curves of a run from its metrics.jsonl, as small multiples."""

import json
import math
import re
from collections import defaultdict
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df")
COLUMNS = 3
SMOOTHING_FRACTION = 0.03  # of the logged points: the window of the moving average
MIN_POINTS_TO_SMOOTH = 20

Series = dict[str, dict[int, float]]


def plot_curves(metrics_jsonl: Path | str, output: Path | str, *, title: str) -> None:
    """Draw a run: loss, every "loss/<name>" and "<name>_accuracy", learning_rate, grad_norm and every "eval/<name>".

    metrics_jsonl: one JSON object a line with an integer "step" and numbers; other keys are ignored. Where a resumed
        run logged a step again, the later line counts. output: the suffix gives the format (.png, .svg, .pdf).

    Losses, accuracies and gradient norms are drawn raw (pale) under a centred moving average of 3 % of the points. The
    accuracies share a panel, and so do the recalls (R1, R5, R10) of one direction and its median and mean rank (MdR,
    MnR).

    Raises ValueError naming file and line for a malformed line, or the file if nothing in it can be drawn. A last line
    cut short by a killed run is ignored.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    panels = _panels(_read(Path(metrics_jsonl)))
    if not panels:
        raise ValueError(f"{metrics_jsonl}: no loss, accuracy, learning_rate, grad_norm or eval/ value to draw")
    steps = [step for series in panels.values() for points in series.values() for step in points]
    margin = 0.02 * max(max(steps) - min(steps), 1)
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.7 * rows + 0.5), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for (name, series), axes in zip(panels.items(), grid, strict=False):
        for color, (label, points) in zip(cycle(COLORS), series.items(), strict=False):
            _draw(axes, points, color, label, smooth=name.startswith(("loss", "accuracy", "grad_norm")))
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlim(min(steps) - margin, max(steps) + margin)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(color="#d8dee4", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, length=0)
        axes.set_xlabel("step", fontsize=8)
        if list(series) != [name]:
            axes.legend(fontsize=8, frameon=False)
    for axes in grid:  # the places left over in the last row
        axes.set_visible(False)
    figure.savefig(output)


def _read(path: Path) -> Series:
    """Read numbers by key, then step; keys that no panel shows are left out."""
    # A run can be killed within a character; what that leaves is no JSON either and is judged below.
    lines = path.read_text("utf-8", errors="replace").split("\n")
    series: Series = defaultdict(dict)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline after it: the run was killed while writing
                break
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f'{path}, line {number}: must be an object with an integer "step"')
        for key, value in row.items():
            if key in ("loss", "learning_rate", "grad_norm") or key.startswith(("loss/", "eval/")) or _task(key):
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise ValueError(f"{path}, line {number}: {key!r} must be a number, got {value!r}")
                series[key][row["step"]] = value
    return series


def _task(key: str) -> str | None:
    """Return the training task whose accuracy `key` logs: "word" for "word_accuracy"."""
    match = re.fullmatch(r"(\w+)_accuracy", key)
    return match and match[1]


def _panels(series: Series) -> dict[str, Series]:
    """Return series by the title of the panel that shows them, in reading order."""
    panels: dict[str, Series] = {key: {key: series[key]} for key in ("loss",) if key in series}
    panels |= {key: {key: series[key]} for key in series if key.startswith("loss/")}
    if accuracies := {task: series[key] for key in series if (task := _task(key))}:
        panels["accuracy"] = accuracies
    panels |= {key: {key: series[key]} for key in ("learning_rate", "grad_norm") if key in series}
    for key in series:
        if not key.startswith("eval/"):
            continue
        parent, _, leaf = key.removeprefix("eval/").rpartition("/")
        if re.fullmatch(r"R\d+", leaf):
            name = f"{parent} recall (%)"
        elif leaf in ("MdR", "MnR"):
            name = f"{parent} rank"
        else:
            name, leaf = key, key
        panels.setdefault(name.strip(), {})[leaf] = series[key]
    return panels


def _draw(axes: "Axes", points: dict[int, float], color: str, label: str, *, smooth: bool) -> None:
    steps = sorted(points)
    values = [points[step] for step in steps]
    if smooth and len(steps) >= MIN_POINTS_TO_SMOOTH:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        values = _moving_average(values, round(SMOOTHING_FRACTION * len(values)))
    marker = "o" if len(steps) < MIN_POINTS_TO_SMOOTH else ""
    axes.plot(steps, values, color=color, linewidth=1.6, marker=marker, markersize=3.5, label=label)


def _moving_average(values: list[float], window: int) -> np.ndarray:
    """Return the centred mean of the finite values in `window` points.

    At the start, where losses fall fast, the window shrinks on both sides so that it stays centred and does not bend
    the curve; at the end it loses only what lies beyond, so that the last value is no raw one.
    """
    points = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(points)
    sums = np.concatenate([[0.0], np.where(finite, points, 0.0).cumsum()])
    counts = np.concatenate([[0], finite.cumsum()])
    place = np.arange(len(points))
    reach = np.minimum(window // 2, place)
    first, last = place - reach, np.minimum(place + reach + 1, len(points))
    count = counts[last] - counts[first]
    return np.where(count > 0, (sums[last] - sums[first]) / np.maximum(count, 1), np.nan)
