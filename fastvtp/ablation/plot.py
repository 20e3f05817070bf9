"""An ablation in one picture: grids of two settings as heat maps, single settings as bars over a band of noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
BAR_COLOR, REFERENCE_COLOR, NOISE_COLOR = "#0969da", "#57606a", "#d8dee4"


@dataclass(frozen=True)
class HeatMap:
    """values[row][column]; None where there is none yet."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    row_label: str
    column_label: str
    higher_is_better: bool = True


@dataclass(frozen=True)
class Bars:
    """One bar a label, the first on top; the spread of its repetitions as a whisker where it has any.

    reference: a value to compare with, drawn with a band of +- `noise` around it.
    """

    title: str
    labels: Sequence[str]
    values: Sequence[float]
    spreads: Sequence[float | None]
    reference: float | None = None
    noise: float | None = None
    from_zero: bool = True
    """Bars from 0; else points, on an axis that shows their differences."""


def plot_ablation(output: Path | str, panels: Sequence[HeatMap | Bars], *, title: str, note: str = "") -> None:
    """Draw the panels, three a row. output: the suffix gives the format (.png, .svg, .pdf).

    Raises ValueError where there is nothing to draw.
    """
    from matplotlib.figure import Figure

    if not panels:
        raise ValueError(f"{output}: no panel to draw")
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.0 * columns, 3.4 * rows + 0.8), dpi=130, layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    if note:
        figure.supxlabel(note, fontsize=8, x=0.01, ha="left", color=REFERENCE_COLOR)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for panel, axes in zip(panels, grid, strict=False):
        axes.set_title(panel.title, fontsize=10, loc="left")
        axes.tick_params(labelsize=8, length=0)
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
        if isinstance(panel, HeatMap):
            _draw_heat_map(axes, panel)
        else:
            _draw_bars(axes, panel)
    for axes in grid:  # the places left over in the last row
        axes.set_visible(False)
    figure.savefig(output)


def _draw_heat_map(axes: "Axes", panel: HeatMap) -> None:
    values = np.array([[np.nan if value is None else value for value in row] for row in panel.values], dtype=float)
    axes.imshow(values, cmap="Blues" if panel.higher_is_better else "Blues_r", aspect="auto", origin="lower")
    axes.set_xticks(range(len(panel.columns)), panel.columns)
    axes.set_yticks(range(len(panel.rows)), panel.rows)
    axes.set_xlabel(panel.column_label, fontsize=8)
    axes.set_ylabel(panel.row_label, fontsize=8)
    found = values[np.isfinite(values)]
    if not len(found):
        return
    middle = (found.min() + found.max()) / 2
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = (value > middle) == panel.higher_is_better and found.min() < found.max()
            axes.text(
                column, row, _short(value), ha="center", va="center", fontsize=9, color="white" if dark else "black"
            )


def _draw_bars(axes: "Axes", panel: Bars) -> None:
    places = range(len(panel.labels))[::-1]  # the first label on top
    axes.grid(axis="x", color=NOISE_COLOR, linewidth=0.6)
    axes.set_axisbelow(True)
    if panel.reference is not None:
        axes.axvspan(
            panel.reference - (panel.noise or 0), panel.reference + (panel.noise or 0), color=NOISE_COLOR, alpha=0.7
        )
        axes.axvline(panel.reference, color=REFERENCE_COLOR, linewidth=1)
    if panel.from_zero:
        axes.barh(places, panel.values, height=0.62, color=BAR_COLOR)
    else:
        axes.plot(panel.values, places, "o", color=BAR_COLOR)
    for place, value, spread in zip(places, panel.values, panel.spreads, strict=True):
        axes.errorbar(value, place, xerr=spread or 0, color="black", capsize=3 if spread else 0, linewidth=1)
        axes.annotate(
            _short(value),
            (value + (spread or 0), place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(places, panel.labels)
    axes.margins(x=0.15)


def _short(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
