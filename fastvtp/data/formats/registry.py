"""What a list format is: how it is recognised, and what turns its lines into lines of our own lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastvtp.data.formats.source import ListSource
from fastvtp.errors import UserError

CAPTIONS, QUESTIONS, LABEL, LABELS = "captions", "questions", "label", "labels"
TELLINGS = {CAPTIONS: "captions", QUESTIONS: "questions", LABEL: "a class each", LABELS: "any number of classes each"}

_MOST = 1e300  # of a pair; not NaN, not infinite, no whole number beyond the floats

# what an official split is called elsewhere
_SPLITS = {"training": "train", "validation": "val", "validate": "val", "valid": "val", "testing": "test"}


class Row(NamedTuple):
    """One line of a list.

    Attributes:
        place: "file, line number", for error messages.
        fields: what it says, in the words of our own lists: "video" (a path or name), "caption" (a text or several),
            "label", "labels", "question", "answer", "options", "type", "start" and "end" (seconds),
            "start_frame" and "end_frame", "id", "split".
        whole: where the file named by "video" would be cut from another: its name, and the span, in seconds.
        further: all that the .json of a sample of tars says, but for its "id", which is the sample's key; prepared
            shards keep it beside `fields`, which go before it.
    """

    place: str
    fields: dict[str, Any]
    whole: tuple[str, float, float] | None = None
    further: Mapping[str, Any] = {}


@dataclass(frozen=True)
class ListFormat:
    """One format of lists; calling it gives the rows of a source.

    Attributes:
        name: what `data.format` calls it.
        title: what people call it.
        tells: what its lines say of videos, of `TELLINGS`.
        fits: tells whether a source looks like it; None: it is read by name alone.
        read: the rows of a source.
        searched: whether its videos are looked for by name, since it gives names or paths of its publication.
        pictures: whether these may be pictures.
        splits: whether its rows say "split".
        holds_videos: whether the list is the folder or the tars that the videos are in, wherever others may lie.
        own: whether it is our own form, read to the letter.
        general: whether it fits anything of its shape, and so only what no other format fits.
        columns: what it takes the name of a column for, of the names of `ListColumns`.
        class_names: the names of all classes in the order of their numbers, where a file beside the list has them.
        remark: what the log says of the reading beside the title.
    """

    name: str
    title: str
    tells: tuple[str, ...]
    fits: Callable[[ListSource], bool] | None
    read: Callable[[ListSource], Iterator[Row]]
    searched: bool = False
    pictures: bool = False
    splits: bool = False
    holds_videos: bool = False
    own: bool = False
    general: bool = False
    columns: tuple[str, ...] = ()
    class_names: Callable[[ListSource], tuple[str, ...] | None] | None = None
    remark: str = ""


def list_format(
    title: str, *tells: str, fits: Callable[[ListSource], bool] | None, **traits: Any
) -> Callable[[Callable[[ListSource], Iterator[Row]]], ListFormat]:
    """Make a `ListFormat` of the function that reads it, whose name it takes; traits: its other attributes."""

    def made(read: Callable[[ListSource], Iterator[Row]]) -> ListFormat:
        return ListFormat(read.__name__, title, tells, fits, read, **traits)

    return made


def split_name(written: object) -> str:
    """Return what a split is called here, in lower case: "train", "val", "test" for all spellings of these."""
    name = str(written).strip().lower()
    return _SPLITS.get(name, name)


# --- Reading the fields of published lists


def text_of(value: Any, place: str) -> str:
    """Return `value` without surrounding space; raises UserError at `place` where it is not text, blank, or holds a NUL
    character, which no path has, or half of a surrogate pair, which no encoding has."""
    if not isinstance(value, str) or not (text := value.strip()):
        raise UserError(f"{place}: expected non-empty text, got {value!r}")
    if "\0" in text:
        raise UserError(f"{place}: expected text, got a NUL character in {value[:80]!a}")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{place}: expected text, got half of a surrogate pair in {value[:80]!a}")
    return text


def text(row: Mapping[str, Any], name: str, place: str) -> str:
    """Return the field `name` of a line, which must be text."""
    return text_of(row.get(name), f"{place}: field '{name}'")


def texts(row: Mapping[str, Any], name: str, place: str) -> list[str]:
    """Return the field `name` of a line, which must be a list of texts; blank ones may be among them."""
    value = row.get(name)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise UserError(f"{place}: field '{name}': expected a list of texts, got {_short(value)}")
    return value


def caption(row: Mapping[str, Any], name: str, place: str) -> str | list[str]:
    """Return the field `name` of a line, a text or several; blank ones are left to whoever counts them."""
    value = row.get(name)
    if isinstance(value, list):
        return texts(row, name, place)
    if value is None and name in row:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{place}: field '{name}': expected text, got {_short(value)}")
    return value


def number(row: Mapping[str, Any], name: str, place: str) -> float:
    """Return the field `name` of a line, a number or one as text."""
    value = row.get(name)
    try:
        if isinstance(value, bool):
            raise TypeError
        made = float(value)  # pyright: ignore[reportArgumentType]
        if not math.isfinite(made):
            raise ValueError
        return made
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{place}: field '{name}': expected a number, got {_short(value)}") from None


def whole_number(row: Mapping[str, Any], name: str, place: str) -> int:
    """Return the field `name` of a line, a whole number or one as text."""
    value = number(row, name, place)
    if value != int(value):
        raise UserError(f"{place}: field '{name}': expected a whole number, got {_short(row.get(name))}")
    return int(value)


def pairs(row: Mapping[str, Any], name: str, place: str) -> list[tuple[float, float]]:
    """Return the field `name` of a line, a list of [start, end]."""
    value = row.get(name)
    if not isinstance(value, list) or not all(_is_pair(pair) for pair in value):
        raise UserError(f"{place}: field '{name}': expected a list of [start, end], got {_short(value)}")
    return [(float(start), float(end)) for start, end in value]


def document(source: ListSource, name: str) -> Any:
    """Return a field of the one object that a list is."""
    if name not in source.first:
        raise UserError(f"{source.shown}: expected one JSON object with a field '{name}'{_because(source)}")
    return source.first[name]


def first_of(value: Any) -> Any:
    """Return the first entry of a list or the first value of an object, empty where there is none."""
    entries = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    return entries[0] if entries and isinstance(entries[0], dict) else {}


def object_of(value: Any, place: str) -> dict[str, Any]:
    """Return a value that must be an object."""
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected an object, got {type(value).__name__}")
    return value


def _because(source: ListSource) -> str:
    return f"; it is {source.fault}" if source.fault else ""


def _is_pair(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 2
    return numbers and all(
        isinstance(each, int | float) and not isinstance(each, bool) and abs(each) < _MOST for each in value
    )


def _short(value: Any) -> str:
    written = repr(value)
    return written if len(written) <= 80 else f"{written[:80]}..."
