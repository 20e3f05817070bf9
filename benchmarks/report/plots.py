"""Draws the plots of the report, a roofline and throughput bars per op and device, as SVG.

Each file carries a digest of what it shows, so that a stale plot is found without drawing it again: the bytes of an SVG
depend on matplotlib's version, the digest does not.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .results import Case, Device

# To be raised when the drawing changes: older plots are then stale.
DRAWING = 1
# With more bars a figure shows of each case ours, the baseline and the fastest peer alone.
MOST_BARS = 40
OURS_COLOUR = "#d1242f"
MARKERS = {"forward": "o", "forward+backward": "s", "step": "D"}
# The salt makes ids, and so the whole file, the same in every run.
STYLE: dict[Any, Any] = {"svg.hashsalt": "fastvtp", "svg.fonttype": "none", "font.size": 8}


@dataclass(frozen=True)
class Bar:
    """A bar, or a point of the roofline, is one variant of one case: its times in seconds and its useful work."""

    case: str
    variant: str
    direction: str
    median: float
    p20: float
    p80: float
    flops: int
    bytes: int
    floor: float
    ours: bool
    kept: bool


@dataclass(frozen=True)
class Plot:
    """A plot has a file name under docs/images/performance/, a digest of all that it shows, and a way to draw it."""

    name: str
    digest: str
    draw: Callable[[Any], None]

    def save(self, folder: Path) -> None:
        """Draw the plot into its file, with the digest inside."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        path = folder / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with rc_context(STYLE):
            figure = Figure(layout="constrained")
            self.draw(figure)
            figure.savefig(path, metadata={"Date": None, "Description": self.digest})

    def is_current(self, folder: Path) -> bool:
        """Say whether the file is there and shows what the results say."""
        path = folder / self.name
        return path.exists() and f">{self.digest}<" in path.read_text()


def plots(device: Device) -> dict[str, list[Plot]]:
    """Return a device's plots by op; an op without a time has none."""
    return {op: found for op, cases in device.by_op().items() if (found := _plots(device, op, cases))}


def _plots(device: Device, op: str, cases: Sequence[Case]) -> list[Plot]:
    bars = [bar for case in cases if not case.tests_failed for bar in _bars(case, len({c.first.dtype for c in cases}))]
    if not bars:
        return []
    ceilings = cases[0].environment["ceilings"]
    title = f"{op}, {cases[0].environment['device']}"
    drawn = []
    # A cost model without bytes, or without FLOP, has no place on a roofline.
    if all(bar.flops and bar.bytes for bar in bars):
        drawn.append(("roofline", partial(draw_roofline, bars=bars, ceilings=ceilings, title=title)))
    by_bytes = sum(case.bound_by_bytes for case in cases) * 2 >= len(cases)
    drawn.append(("throughput", partial(draw_bars, bars=bars, by_bytes=by_bytes, title=title)))
    content = json.dumps([DRAWING, title, ceilings, by_bytes, [vars(bar) for bar in bars]], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    return [Plot(f"{device.slug}/{op}_{kind}.svg", digest, draw) for kind, draw in drawn]


def _bars(case: Case, dtypes: int) -> list[Bar]:
    row = case.first
    name = ", ".join([row.case, row.direction, *([row.dtype] if dtypes > 1 else [])])
    kept = {found.variant for found in (case.ours, case.best_peer) if found} | {row.baseline}
    return [
        Bar(
            name,
            row.variant,
            row.direction,
            row.median_s,
            row.p20_s or row.median_s,
            row.p80_s or row.median_s,
            row.model_flops,
            row.model_bytes,
            row.floor_s,
            row is case.ours,
            row.variant in kept,
        )
        for row in case.rows
        if row.median_s
    ]


def _colours(bars: Sequence[Bar]) -> dict[str, Any]:
    """Give each variant a colour; red is ours."""
    from matplotlib import colormaps

    palette = [colormaps["tab20"](number) for number in range(20) if number not in (6, 7)]
    peers = sorted({bar.variant for bar in bars if not bar.ours})
    colours = {name: palette[number % len(palette)] for number, name in enumerate(peers)}
    return colours | {bar.variant: OURS_COLOUR for bar in bars if bar.ours}


def _scale(per_second: float) -> tuple[float, str]:
    return (1e12, "T") if per_second >= 1e12 else (1e9, "G")


def draw_roofline(figure: Any, bars: Sequence[Bar], ceilings: dict[str, float], title: str) -> None:
    """Draw useful FLOP per second over useful FLOP per byte, under the ceilings measured on the device."""
    figure.set_size_inches(8, 4.5)
    axes = figure.add_subplot()
    ridge = ceilings["flops_per_s"] / ceilings["bytes_per_s"]
    intensities = [bar.flops / bar.bytes for bar in bars]
    ends = min(*intensities, ridge) / 2, max(*intensities, ridge) * 2
    scale, prefix = _scale(ceilings["flops_per_s"])
    roof = [min(ceilings["flops_per_s"], x * ceilings["bytes_per_s"]) / scale for x in (ends[0], ridge, ends[1])]
    axes.plot([ends[0], ridge, ends[1]], roof, color="black", label="copy and matmul, measured")
    colours, labelled = _colours(bars), set()
    for bar, intensity in zip(bars, intensities, strict=True):
        label = None if bar.variant in labelled else bar.variant
        labelled.add(bar.variant)
        style = {"marker": MARKERS.get(bar.direction, "x"), "color": colours[bar.variant], "markersize": 4}
        axes.plot(intensity, bar.flops / bar.median / scale, linestyle="none", label=label, **style)
    axes.set(xscale="log", yscale="log", xlabel="useful FLOP / byte", ylabel=f"useful {prefix}FLOP/s")
    axes.set_title(f"{title} (circles: forward, squares: with backward)")
    axes.grid(color="#d8dee4", linewidth=0.6)
    figure.legend(loc="outside right upper", frameon=False)


def draw_bars(figure: Any, bars: Sequence[Bar], by_bytes: bool, title: str) -> None:
    """Draw useful work per second, with whiskers from the 20 % to the 80 % quantile and a black tick at the floor."""
    if len(bars) > MOST_BARS:
        bars = [bar for bar in bars if bar.kept]
        title += "\nours, baseline and fastest peer"
    places, names, place, case = [], [], 0.0, None
    for bar in bars:
        # A gap between cases, and a line in it for their name.
        place += 1.0 if bar.case == case else 2.5
        case = bar.case
        places.append(place)
        names.append(bar.variant)
    figure.set_size_inches(8, 1.0 + 0.16 * (place + 1))
    axes = figure.add_subplot()
    amounts = [bar.bytes if by_bytes else bar.flops for bar in bars]
    scale, prefix = _scale(max(amount / bar.median for amount, bar in zip(amounts, bars, strict=True)))
    work = [amount / scale for amount in amounts]
    rates = [done / bar.median for done, bar in zip(work, bars, strict=True)]
    spread = [
        [max(0.0, rate - done / bar.p80) for rate, done, bar in zip(rates, work, bars, strict=True)],
        [max(0.0, done / bar.p20 - rate) for rate, done, bar in zip(rates, work, bars, strict=True)],
    ]
    colours = _colours(bars)
    axes.barh(places, rates, 0.8, xerr=spread, color=[colours[name] for name in names], error_kw={"linewidth": 0.8})
    floors = [done / bar.floor if bar.floor else 0.0 for done, bar in zip(work, bars, strict=True)]
    axes.plot(floors, places, "|", color="black", markersize=7)
    for place, bar, before in zip(places, bars, [None, *bars], strict=False):
        if before is None or before.case != bar.case:
            axes.text(0, place - 0.6, bar.case, fontweight="bold", va="bottom")
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set(xlabel=f"useful {prefix}{'B' if by_bytes else 'FLOP'}/s (tick: the floor)", title=title)
    axes.spines[["top", "right"]].set_visible(False)
