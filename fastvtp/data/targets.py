"""Videos with what a probe learns of them: one class each, or several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastvtp.data.annotations import VideoRecord, read_lines, text_of, video_and_id
from fastvtp.data.labels import load_classes, read_class_names
from fastvtp.errors import UserError


@dataclass(frozen=True)
class TargetSet:
    """Videos and the classes that each shows, entry i of both tuples belonging together.

    Attributes:
        records: the caption of each names its classes.
        labels: places in `class_names`, for each video; none, one or several.
        class_names: all classes.
        multi_label: whether a video may show several or none.
    """

    records: tuple[VideoRecord, ...]
    labels: tuple[tuple[int, ...], ...]
    class_names: tuple[str, ...]
    multi_label: bool

    def indicators(self) -> torch.Tensor:
        """What each video shows: zeros and ones, float32 [videos, classes]."""
        indicators = torch.zeros(len(self.labels), len(self.class_names))
        for row, shown in zip(indicators, self.labels, strict=True):
            row[list(shown)] = 1
        return indicators

    def renumbered(self, class_names: Sequence[str], source: object) -> TargetSet:
        """The same with labels as places in `class_names`, those of training. Raises UserError for another class."""
        places = {name: number for number, name in enumerate(class_names)}
        if unknown := [name for name in self.class_names if name not in places]:
            raise UserError(f"{source}: no class {unknown[0]!r} among the {len(places)} classes of the training set")
        labels = tuple(tuple(places[self.class_names[label]] for label in shown) for shown in self.labels)
        return TargetSet(self.records, labels, tuple(class_names), self.multi_label)


def load_targets(
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    *,
    names_file: str | os.PathLike[str] | None = None,
) -> TargetSet:
    """Read labelled videos.

    Args:
        path: what `load_classes` reads; or a `.jsonl` list of `{"video": path, "labels": [str, ...]}` with an optional
            "id", of videos that show any number of classes.
        class_names: those of the training set, for a test set; None: here, the names sorted.
        names_file: `class_names` by a file instead, see `read_class_names`.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a malformed list, with file, line number and field; no videos; an unknown class.
    """
    path = Path(path).absolute()
    if not _lists_several(path):
        found = load_classes(path, class_names, names_file=names_file)
        return TargetSet(found.records, tuple((label,) for label in found.labels), found.class_names, False)
    rows = [_several(fields, path.parent, place) for place, fields in read_lines(path)]
    if names_file is not None:
        class_names = read_class_names(names_file)
    names = tuple(class_names) if class_names is not None else tuple(sorted({name for row in rows for name in row[3]}))
    if not rows or not names:
        raise UserError(f"{path}: {'no video shows a class' if rows else 'lists no videos'}")
    places = {name: number for number, name in enumerate(names)}
    for place, _, _, shown in rows:
        if unknown := [name for name in shown if name not in places]:
            raise UserError(f"{place}: no class {unknown[0]!r} among the {len(names)} classes of the training set")
    records = tuple(VideoRecord(name, video, (", ".join(shown) or "none",)) for _, video, name, shown in rows)
    return TargetSet(records, tuple(tuple(places[name] for name in row[3]) for row in rows), names, True)


def _lists_several(path: Path) -> bool:
    """Whether the first line of a list has the field "labels"."""
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    _, fields = next(read_lines(path), ("", {}))
    return "labels" in fields


def _several(fields: dict[str, Any], folder: Path, place: str) -> tuple[str, str, str, list[str]]:
    labels = fields.get("labels")
    if not isinstance(labels, list):
        raise UserError(f"{place}: field 'labels': expected a list of classes, got {labels!r}")
    names = list(dict.fromkeys(text_of(label, f"{place}: field 'labels'") for label in labels))
    return place, *video_and_id(fields, folder, place), names
