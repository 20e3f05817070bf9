"""Writes the tables and plots of the committed results.

    python -m benchmarks.report              # print the whole report
    python -m benchmarks.report --readme     # write README.md, docs/performance.md and docs/images/performance/
    python -m benchmarks.report --check      # status 1 if any of them differs from the results

Every number comes from benchmarks/results/<device>/<part>.json, which a benchmark's `--json` or `make gpu` writes. No
date or version but theirs appears.
"""

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastvtp.errors import UserError

from .plots import Plot, plots
from .results import Device, load
from .tables import NOT_MEASURED, overview, peer_remarks, plain, provenance, summary, variants

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MARKERS = ("<!-- performance -->", "<!-- end of performance -->")
PAGE = Path("docs") / "performance.md"
IMAGES = Path("docs") / "images" / "performance"
LEGEND = """\
Ours against it: the best peer's median time over ours. Of floor: 100 % is the rate of a plain copy or matmul
measured in the same run, and no bound: what is faster than that one goes beyond."""


def readme_section(devices: Sequence[Device]) -> str:
    """Return the README's part: one table of all devices, and what it means."""
    cases = [case for device in devices for found in device.by_op().values() for case in found]
    remarks = [LEGEND, *peer_remarks(cases), f"All cases, peers, plots and the protocol: [{PAGE}]({PAGE})."]
    return "\n".join([*summary(devices), "", *remarks])


def page_section(devices: Sequence[Device]) -> str:
    """Return the page's part: a chapter per device, with image paths relative to docs/."""
    return "\n".join(line for device in devices for line in _chapter(device)).rstrip() or _no_results()


def _no_results() -> str:
    return f"No device: {NOT_MEASURED}."


def _chapter(device: Device) -> Iterator[str]:
    yield f"## {device.name}{'' if device.on_gpu else ' (CPU)'}\n"
    yield from provenance(device)
    drawn = plots(device)
    for op, cases in device.by_op().items():
        yield f"\n### `{op}`\n"
        yield from overview(cases)
        yield ""
        yield from variants(cases)
        for plot in drawn.get(op, ()):
            yield f"\n![{op}: {Path(plot.name).stem.rpartition('_')[2]}]({IMAGES.relative_to(PAGE.parent)}/{plot.name})"
    for part in device.parts:
        if part.others:
            yield f"\n### {part.name.replace('_', ' ')}\n"
            yield from plain(part.others)
    yield ""


def with_section(path: Path, section: str) -> str:
    """Return the file's text with `section` between its markers.

    Raises:
        UserError: the file or a marker is missing.
    """
    start, end = MARKERS
    text = path.read_text() if path.exists() else ""
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise UserError(f"{path}: expected one line {start} and after it one line {end}, to put the report between")
    return f"{text.split(start)[0]}{start}\n{section}\n{end}{text.split(end)[1]}"


def texts(devices: Sequence[Device], root: Path) -> dict[Path, str]:
    """Return README.md and docs/performance.md as they must be."""
    sections = {root / "README.md": readme_section(devices), root / PAGE: page_section(devices)}
    return {path: with_section(path, section) for path, section in sections.items()}


def differences(devices: Sequence[Device], root: Path) -> list[Path]:
    """Return the files that are not what the results make of them, plots without a device or op among them."""
    different = [path for path, text in texts(devices, root).items() if path.read_text() != text]
    drawn = _all_plots(devices)
    different += [root / IMAGES / plot.name for plot in drawn if not plot.is_current(root / IMAGES)]
    return different + _strays(drawn, root)


def _all_plots(devices: Sequence[Device]) -> list[Plot]:
    return [plot for device in devices for found in plots(device).values() for plot in found]


def _strays(drawn: Sequence[Plot], root: Path) -> list[Path]:
    return sorted(set((root / IMAGES).glob("*/*.svg")) - {root / IMAGES / plot.name for plot in drawn})


def write(devices: Sequence[Device], root: Path) -> None:
    """Write both files, draw what is not current, remove the plots that nothing refers to."""
    written = texts(devices, root)
    drawn = _all_plots(devices)
    stale = [plot for plot in drawn if not plot.is_current(root / IMAGES)]
    if stale and importlib.util.find_spec("matplotlib") is None:
        raise UserError("--readme: the package matplotlib, which draws the plots, is not installed")
    for plot in stale:
        plot.save(root / IMAGES)
    for stray in _strays(drawn, root):
        stray.unlink()
    for path, text in written.items():
        path.write_text(text)


def refuse_smoke(devices: Sequence[Device]) -> None:
    """Raise UserError where a result is a smoke run's: its times mean nothing and must not be published."""
    for part in (part for device in devices for part in device.parts):
        if part.environment.get("smoke"):
            raise UserError(f"{part.path}: a smoke run, whose times mean nothing; measure without --smoke")


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Print, write or check the report as the command line asks, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=root / RESULTS.relative_to(ROOT),
        metavar="DIR",
        help="read these results; default: the committed ones",
    )
    parser.add_argument("--readme", action="store_true", help="write README.md, docs/performance.md and the plots")
    parser.add_argument("--check", action="store_true", help="end with status 1 if they differ from the results")
    given = parser.parse_args(arguments)
    try:
        devices = load(given.results)
        if given.readme or given.check:
            refuse_smoke(devices)
        if given.readme:
            write(devices, root)
        if given.check:
            different = differences(devices, root)
            for path in different:
                print(f"{path} differs from {given.results}: run python -m benchmarks.report --readme", file=sys.stderr)
            return bool(different)
    except UserError as error:
        parser.error(str(error))
    if not given.readme:
        print(f"{readme_section(devices)}\n\n{page_section(devices)}")
    return 0
