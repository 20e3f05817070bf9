"""Expected arrays beside computed ones: errors, a table, a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Row:
    """One expected array. error: relative, or None where nothing was compared; note: why not, or how. limit: the
    largest error of its kind of array, where the run does not set one for all."""

    name: str
    shape: tuple[int, ...]
    error: float | None
    note: str = ""
    excused: bool = False
    limit: float = TOLERANCE

    def ok(self, tolerance: float | None) -> bool:
        """tolerance: of the run; None: the array's own."""
        return self.excused if self.error is None else self.error <= self.allowed(tolerance)  # a NaN is not

    def allowed(self, tolerance: float | None) -> float:
        """The largest error that passes."""
        return self.limit if tolerance is None else tolerance


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected|| in float64; the plain norm where zeros are expected."""
    actual, expected = actual.detach().double(), expected.double()
    error, scale = (actual - expected).norm().item(), expected.norm().item()
    return error / scale if scale else error


def compare(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], excused: Mapping[str, str], cases: Sequence[str] = ()
) -> list[Row]:
    """A row for each expected array. excused: arrays that have no counterpart, by name or pattern of names ("grad.*"),
    with the reason. cases: prefixes which such a name may have."""
    rows = []
    for name, array in sorted(expected.items()):
        plain = {name.removeprefix(case) for case in ("", *cases)}
        reason = next((why for pattern, why in excused.items() if any(fnmatchcase(n, pattern) for n in plain)), None)
        shape = tuple(array.shape)
        if name in actual and actual[name].shape == array.shape:
            rows.append(Row(name, shape, relative_error(actual[name], array)))
        elif name in actual:
            rows.append(Row(name, shape, None, f"computed as {list(actual[name].shape)}"))
        else:
            rows.append(Row(name, shape, None, reason or "not compared", reason is not None))
    return rows


def table(rows: list[Row], tolerance: float | None) -> str:
    """The rows as text, one line each, and a last line with the verdict."""
    width, shape_width = (max(map(len, column), default=0) for column in _columns(rows))
    lines = [f"{'array':{width}}  {'shape':{shape_width}}  error    ok"]
    for row, name, shape in zip(rows, *_columns(rows), strict=True):
        error = " " * 7 if row.error is None else f"{row.error:7.1e}"
        verdict = "yes" if row.ok(tolerance) else "NO"
        lines.append(f"{name:{width}}  {shape:{shape_width}}  {error}  {verdict:3}  {row.note}".rstrip())
    compared = [row for row in rows if row.error is not None]
    failed = [row.name for row in rows if not row.ok(tolerance)]
    worst = max(
        compared, key=lambda row: (row.error != row.error, (row.error or 0) / row.allowed(tolerance)), default=None
    )
    allowed = sorted({row.allowed(tolerance) for row in compared}) or [TOLERANCE]
    limits = f"tolerance {allowed[0]:g}" + (f" to {allowed[-1]:g}, by kind" if len(allowed) > 1 else "")
    largest = f", largest error {worst.error:.1e} ({worst.name})" if worst else ""
    verdict = f"failed: {', '.join(failed)}" if failed else "all within tolerance"
    lines.append(f"{len(compared)} of {len(rows)} arrays compared, {limits}{largest}; {verdict}")
    return "\n".join(lines)


def _columns(rows: list[Row]) -> tuple[list[str], list[str]]:
    return [row.name for row in rows], [str(list(row.shape)) for row in rows]
