"""Videos with classes: lists of those that show one class each, or any number, and the names of classes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastvtp.data.annotations import record_of
from fastvtp.data.formats.faults import Faults
from fastvtp.data.formats.listing import Listing
from fastvtp.data.formats.registry import LABEL, LABELS, Row, text_of
from fastvtp.data.formats.source import ListSource
from fastvtp.data.records import RecordTable, VideoRecord
from fastvtp.errors import UserError
from fastvtp.files import lines_of, read_text, write_atomically

_MAX_CLASSES = 1_000_000
_Row = tuple[str, VideoRecord, str | int]  # place for error messages, the video, label


@dataclass(frozen=True)
class ClassificationSet:
    """Videos with one class each, entry i of both tuples belonging to the record with `sample_ids` i.

    Attributes:
        records: the caption of each is the name of its class, which the loader needs, and by which a clip of the class
            "turning left" is not mirrored. Where classes are bare numbers, flipping is the caller's to decide.
        labels: places in `class_names`.
        class_names: all classes.
    """

    records: Sequence[VideoRecord]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]

    @property
    def unnamed(self) -> bool:
        """Whether the classes are bare numbers, which do not say what they show."""
        return all(name.isdecimal() for name in self.class_names)


@dataclass(frozen=True)
class TargetSet:
    """Videos and the classes that each shows, entry i of both tuples belonging together.

    Attributes:
        records: the caption of each names its classes.
        labels: places in `class_names`, for each video; none, one or several.
        class_names: all classes.
        multi_label: whether a video may show several or none.
    """

    records: Sequence[VideoRecord]
    labels: tuple[tuple[int, ...], ...]
    class_names: tuple[str, ...]
    multi_label: bool

    def indicators(self) -> torch.Tensor:
        """Make a table of what each video shows: zeros and ones, float32 [videos, classes]."""
        indicators = torch.zeros(len(self.labels), len(self.class_names))
        for row, shown in zip(indicators, self.labels, strict=True):
            row[list(shown)] = 1
        return indicators

    def renumbered(self, class_names: Sequence[str], source: object) -> TargetSet:
        """Number the labels by their places in `class_names`, those of training.

        Raises UserError, which names `source`, for a class that training does not have.
        """
        places = {name: number for number, name in enumerate(class_names)}
        if unknown := [name for name in self.class_names if name not in places]:
            raise UserError(f"{source}: no class {unknown[0]!r} among the {len(places)} classes of the training set")
        labels = tuple(tuple(places[self.class_names[label]] for label in shown) for shown in self.labels)
        return TargetSet(self.records, labels, tuple(class_names), self.multi_label)


def load_classes(
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    *,
    names_file: str | os.PathLike[str] | None = None,
) -> ClassificationSet:
    """Read videos with one class each.

    Args:
        path: a `.jsonl` list of `{"video": path, "label": str | int}` with an optional "id", and "start" and "end" in
            seconds where a span of the video alone shows the class, see `record_of`; or a `.csv` list of lines
            `path label` or `path,label` with whole numbers, no header (VideoMAE's form); or a folder with one subfolder
            of videos per class; or a published list of classes, by its content: docs/lists.md names them all. Relative
            paths start from the folder of the list.
        class_names: those of the training set, for a test set. None: those of a published list's own file beside it;
            without one the names here, sorted; where labels are numbers, the numbers from 0 to the largest.
        names_file: `class_names` by a file instead, see `read_class_names`.

    Returns:
        The videos in the order of the list, or of the sorted paths in a folder. A label that is a number is itself the
        place in `class_names`.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a malformed list, with file, line number and field; no videos; text among labels that are numbers; a
            class that `class_names` does not have.
    """
    if names_file is not None:
        class_names = read_class_names(names_file)
    listing = Listing(path, LABEL)
    folder = listing.source.folder
    rows: list[_Row] = []
    for row, location in listing:
        with listing.faults:
            record = record_of(row.fields, folder, row.place, location=location)
            rows.append((row.place, record, _label(listing, row)))
    listing.close(len(rows))
    if not rows:
        raise listing.nothing()
    listing.say_repeated_ids(lambda: (record.id for _, record, _ in rows))
    if class_names is None:
        class_names = listing.class_names()
    if class_names is None:
        rows = _of_one_kind(rows, listing.faults)
    names = _names_of(rows) if class_names is None else tuple(class_names)
    places = {name: number for number, name in enumerate(names)}
    labels, records = [], []
    for place, record, label in rows:
        known = label in places if isinstance(label, str) else label < len(names)
        if not known:
            whose = "the training set" if names_file is None else names_file
            listing.faults.note(UserError(f"{place}: no class {label!r} among the {len(names)} classes of {whose}"))
            continue
        labels.append(places[label] if isinstance(label, str) else label)
        records.append(replace(record, captions=(names[labels[-1]],)))
    return ClassificationSet(RecordTable(records), tuple(labels), names)


def load_targets(
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    *,
    names_file: str | os.PathLike[str] | None = None,
) -> TargetSet:
    """Read labelled videos.

    Args:
        path: what `load_classes` reads; or a `.jsonl` list of `{"video": path, "labels": [str, ...]}` with an optional
            "id", "start" and "end", of videos that show any number of classes.
        class_names: those of the training set, for a test set; None: here, the names sorted.
        names_file: `class_names` by a file instead, see `read_class_names`.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a malformed list, with file, line number and field; no videos; an unknown class.
    """
    source = ListSource.of(path)
    if not _lists_several(source):
        found = load_classes(source, class_names, names_file=names_file)
        return TargetSet(found.records, tuple((label,) for label in found.labels), found.class_names, False)
    listing = Listing(source, LABELS)
    rows: list[tuple[str, VideoRecord, list[str]]] = []
    for row, location in listing:
        with listing.faults:
            rows.append(_several(row, listing.source.folder, location))
    listing.close(len(rows))
    if names_file is not None:
        class_names = read_class_names(names_file)
    if class_names is None:
        class_names = listing.class_names()
    names = tuple(class_names) if class_names is not None else tuple(sorted({name for row in rows for name in row[2]}))
    if not rows or not names:
        raise UserError(f"{source}: {'no video shows a class' if rows else 'lists no videos'}")
    places = {name: number for number, name in enumerate(names)}
    for place, _, shown in rows:
        if unknown := [name for name in shown if name not in places]:
            among = f"among the {len(names)} classes of the training set"
            listing.faults.note(UserError(f"{place}: no class {unknown[0]!r} {among}"))
    rows = [row for row in rows if places.keys() >= {*row[2]}]
    records = RecordTable(replace(record, captions=(", ".join(shown) or "none",)) for _, record, shown in rows)
    return TargetSet(records, tuple(tuple(places[name] for name in row[2]) for row in rows), names, True)


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read the names of classes 0, 1, ... from a file with one a line, or from a `.json` list or `{name: its number}`
    (the `labels.json` of Something-Something V2).

    Raises:
        FileNotFoundError: nothing there.
        UserError: another content; numbers with a gap; a name twice; no names.
    """
    text = read_text(path, "file of class names")
    try:
        content: Any = json.loads(text) if Path(path).suffix == ".json" else lines_of(text.rstrip())
    except ValueError as error:
        raise UserError(f"{path}: expected names of classes, one a line or as JSON: {error}") from None
    if isinstance(content, dict):
        numbers = {name: str(number) for name, number in content.items()}
        if sorted(numbers.values()) != sorted(map(str, range(len(numbers)))):
            raise UserError(f"{path}: expected each class from 0 to {len(numbers) - 1} once")
        content = sorted(numbers, key=lambda name: int(numbers[name]))
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of names or an object {{name: number}}, got {content!r}")
    names = tuple(text_of(name, f"{path}, class {number}") for number, name in enumerate(content))
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: expected class names, each once, got {len(names)} with {len(set(names))} different")
    return names


def write_class_names(path: Path, names: Sequence[str]) -> None:
    """Write the names of classes 0, 1, ..., which `read_class_names` reads as well."""
    write_atomically(path, (json.dumps(names, ensure_ascii=False, indent=0) + "\n").encode())


def _label(listing: Listing, row: Row) -> str | int:
    label = row.fields.get("label")
    if label is None and "label" not in row.fields:
        raise listing.lacks("label", row)
    if type(label) is not int:
        return text_of(label, f"{row.place}: field 'label'")
    if not 0 <= label < _MAX_CLASSES:
        raise UserError(f"{row.place}: field 'label': expected a number from 0 to {_MAX_CLASSES - 1}, got {label}")
    return label


def _of_one_kind(rows: list[_Row], faults: Faults) -> list[_Row]:
    """Return the rows, without those whose class is a text where others have numbers: these are faults."""
    if not any(isinstance(label, int) for *_, label in rows):
        return rows
    for place, _, label in rows:
        if isinstance(label, str):
            faults.note(UserError(f"{place}: field 'label': expected a number as in other lines, got {label!r}"))
    return [row for row in rows if isinstance(row[2], int)]


def _names_of(rows: Sequence[_Row]) -> tuple[str, ...]:
    numbers = [label for *_, label in rows if isinstance(label, int)]
    return tuple(map(str, range(max(numbers) + 1))) if numbers else tuple(sorted({str(label) for *_, label in rows}))


def _lists_several(source: ListSource) -> bool:
    """Tell whether the first line of a list has the field "labels"."""
    try:
        listing = Listing(source)
    except (FileNotFoundError, UserError):
        return False  # whoever reads it says what it should be
    return LABELS in listing.entry.tells and "labels" in listing.first()


def _several(row: Row, folder: Path, location: str) -> tuple[str, VideoRecord, list[str]]:
    labels = row.fields.get("labels")
    if not isinstance(labels, list):
        raise UserError(f"{row.place}: field 'labels': expected a list of classes, got {labels!r}")
    names = list(dict.fromkeys(text_of(label, f"{row.place}: field 'labels'") for label in labels))
    return row.place, record_of(row.fields, folder, row.place, location=location), names
