"""Where in videos something happens: lists of segments in time, or of boxes in the picture.

Shape legend: n = spans of a video, C = classes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvtp.data.annotations import VideoRecord, record_of
from fastvtp.data.formats.registry import text_of
from fastvtp.data.formats.source import read_lines
from fastvtp.data.sampling import CropSampling
from fastvtp.data.timespans import TimeSpan
from fastvtp.errors import UserError

_SIZES = {"segments": ("duration",), "boxes": ("width", "height")}


@dataclass(frozen=True)
class SpanSet:
    """Videos and their spans, entry i of each tuple belonging to record i.

    Attributes:
        kind: "segments" or "boxes".
        records: the videos.
        spans: float32 [n, 2], start and end as shares of the duration, or of the span that the record is, clipped to
            it; or [n, 4], left, top, right, bottom as shares of the centred square that evaluation shows, clipped to
            it.
        labels: bool [n, C], what each shows.
        scores: float32 [n], how sure a detector is; 1 where the list does not say.
        class_names: all classes.
        outside: boxes that lie outside that square, or segments outside the record's span, and are left out.
    """

    kind: str
    records: tuple[VideoRecord, ...]
    spans: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    class_names: tuple[str, ...]
    outside: int = 0

    def by_id(self) -> dict[str, int]:
        """Return the place of each record, by its id."""
        return {record.id: place for place, record in enumerate(self.records)}


def load_spans(path: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> SpanSet:
    """Read a `.jsonl` list, a line a video or a span of one, all of one kind; "video" and an optional "id", "start" and
    "end" as in `record_of`.

    Segments: `{"video": path, "duration": 12.5, "segments": [{"start": 1, "end": 3.5, "label": "jump"}]}`, in any one
    unit of time. On a line that says "start" or "end" itself the unit is the second, and segments count from the first
    frame of the video as the line does, whose duration they share; what lies outside the line's span is cut off.

    Boxes: `{"video": path, "width": 640, "height": 480, "boxes": [{"box": [left, top, right, bottom], "labels":
    ["stand", "talk"]}]}` in pixels, with an optional "score".

    class_names: those of the training set, for a test set; None: here, the names sorted.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a malformed line, with file, line number and field; an id twice; no spans at all; an unknown class.
    """
    path = Path(path).absolute()
    lines = list(read_lines(path))
    if not lines:
        raise UserError(f"{path}: lists no videos")
    kinds = [kind for kind in _SIZES if kind in lines[0][1]]
    if len(kinds) != 1:
        raise UserError(f"{lines[0][0]}: expected a field 'segments' or 'boxes'")
    kind, rows, outside = kinds[0], [], 0
    for place, fields in lines:
        record = record_of(fields, path.parent, place)
        found = fields.get(kind)
        if not isinstance(found, list):
            raise UserError(f"{place}: field '{kind}': expected a list, got {found!r}")
        sizes = [_number(fields.get(size), f"{place}: field '{size}'", least=0.0) for size in _SIZES[kind]]
        if kind == "segments":
            shown = _shown(record, sizes[0], place)
            spans = [_segment(item, sizes[0], shown, place) for item in found]
        else:
            spans = [_box(item, sizes, place) for item in found]
        kept = [span for span in spans if span is not None]
        outside += len(spans) - len(kept)
        rows.append((record, kept))
    if len({record.id for record, _ in rows}) < len(rows):
        raise UserError(f"{path}: expected each video once, with all its {kind}")
    said = sorted({label for _, spans in rows for span in spans for label in span[1]})
    names = tuple(said if class_names is None else class_names)
    if not names:
        raise UserError(f"{path}: no {kind} with a class")
    if unknown := [label for label in said if label not in names]:
        raise UserError(f"{path}: no class {unknown[0]!r} among the {len(names)} classes of the training set")
    width = 2 if kind == "segments" else 4
    return SpanSet(
        kind,
        tuple(record for record, _ in rows),
        tuple(torch.tensor([span[0] for span in spans]).view(-1, width) for _, spans in rows),
        tuple(
            torch.tensor([[name in span[1] for name in names] for span in spans]).bool().view(-1, len(names))
            for _, spans in rows
        ),
        tuple(torch.tensor([span[2] for span in spans]).view(-1) for _, spans in rows),
        names,
        outside,
    )


_Span = tuple[list[float], list[str], float]  # place, labels, score


def _shown(record: VideoRecord, duration: float, place: str) -> tuple[float, float]:
    """Return the bounds of what a record shows of its video: 0 and `duration`, or those of its span."""
    if record.span is None:
        return 0.0, duration
    if not isinstance(record.span, TimeSpan):
        raise UserError(f"{place}: field 'start_frame': expected a span in seconds, as the annotations are")
    start, end = record.span
    if start >= duration:
        raise UserError(f"{place}: field 'start': expected less than the duration {duration:g}, got {start:g}")
    return start, duration if end is None else min(end, duration)


def _segment(item: Any, duration: float, shown: tuple[float, float], place: str) -> _Span | None:
    """Return None for a segment outside what is `shown` of the video."""
    fields = _object(item, f"{place}: field 'segments'")
    start, end = (_number(fields.get(name), f"{place}: field '{name}'") for name in ("start", "end"))
    if not 0 <= start < end <= duration * 1.001:
        raise UserError(f"{place}: expected 0 <= start < end <= duration {duration:g}, got {start:g} and {end:g}")
    label = text_of(fields.get("label"), f"{place}: field 'label'")
    first, length = shown[0], shown[1] - shown[0]
    shares = [max((start - first) / length, 0.0), min((end - first) / length, 1.0)]
    return (shares, [label], 1.0) if shares[0] < shares[1] else None


def _box(item: Any, sizes: list[float], place: str) -> _Span | None:
    """Return None for a box outside the centred square."""
    width, height = sizes
    fields = _object(item, f"{place}: field 'boxes'")
    box, labels = fields.get("box"), fields.get("labels", [])
    if not isinstance(box, list) or len(box) != 4:
        raise UserError(f"{place}: field 'box': expected [left, top, right, bottom], got {box!r}")
    if not isinstance(labels, list):
        raise UserError(f"{place}: field 'labels': expected a list of classes, got {labels!r}")
    left, top, right, bottom = (_number(value, f"{place}: field 'box'") for value in box)
    if not (left < right and top < bottom):
        raise UserError(f"{place}: field 'box': expected left < right and top < bottom, got {box!r}")
    names = [text_of(label, f"{place}: field 'labels'") for label in labels]
    window = CropSampling().window(math.ceil(height), math.ceil(width), None)
    size_x, size_y = window.x1 - window.x0, window.y1 - window.y0
    corners = [
        ((x / width - window.x0) / size_x, (y / height - window.y0) / size_y) for x, y in ((left, top), (right, bottom))
    ]
    shares = [min(max(share, 0.0), 1.0) for corner in corners for share in corner]
    if shares[0] >= shares[2] or shares[1] >= shares[3]:
        return None
    return shares, names, _number(fields.get("score", 1.0), f"{place}: field 'score'")


def _object(item: Any, place: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise UserError(f"{place}: expected objects, got {item!r}")
    return item


def _number(value: Any, place: str, least: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= least:
        expected = "a positive number" if least == 0 else "a number"
        raise UserError(f"{place}: expected {expected}, got {value!r}")
    return float(value)
