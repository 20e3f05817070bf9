"""All formats of lists, and which of them a list has."""

from __future__ import annotations

from collections.abc import Mapping

from fastvtp.data.formats import captions, classes, general, moments, questions, tars
from fastvtp.data.formats.fetched import LIST_SUFFIXES
from fastvtp.data.formats.lists import AUTO
from fastvtp.data.formats.registry import CAPTIONS, LABEL, LABELS, QUESTIONS, ListFormat
from fastvtp.data.formats.source import JSON_LINES, ListSource
from fastvtp.data.locations import is_pattern, is_remote, to_be_unpacked
from fastvtp.errors import UserError, unknown_name

FORMATS: dict[str, ListFormat] = {
    entry.name: entry
    for family in (general, captions, moments, questions, classes, tars)
    for entry in vars(family).values()
    if isinstance(entry, ListFormat)
}
"""Every format by the name that `data.format` calls it."""

_PUBLISHED = "a published list that docs/lists.md names"
EXPECTED: dict[str | None, str] = {
    CAPTIONS: f"a .jsonl file or a folder of videos, or {_PUBLISHED}",
    QUESTIONS: f"a .jsonl file of questions, or {_PUBLISHED}",
    LABEL: f"a .jsonl or .csv file, or a folder with one subfolder per class, or {_PUBLISHED}",
    LABELS: f"a .jsonl or .csv file, or a folder with one subfolder per class, or {_PUBLISHED}",
    None: f"a .jsonl file or a folder of videos, or {_PUBLISHED}",
}
"""What messages call a list, by what is to be read of it."""


def find_format(name: str) -> ListFormat:
    """Find a format by its name. Raises UserError with the nearest one."""
    if name not in FORMATS:
        raise unknown_name("list format", name, FORMATS)
    return FORMATS[name]


def recognise(source: ListSource, wanted: str | None = None) -> ListFormat:
    """Tell which format a list has: the one that the caller named, or the one that its content looks like.

    wanted: what is to be read of it; it decides where several formats fit.

    Raises:
        FileNotFoundError: nothing there.
        UserError: none fits, or several do.
    """
    packed = "" if source.is_folder else to_be_unpacked(source.listed.path)
    if packed and (source.path.exists() or is_remote(source.listed.path) or is_pattern(source.listed.path)):
        raise UserError(f"{source}: {packed}")
    if not source.path.exists() and not tars.are_tars(source):
        if is_remote(source.listed.path):
            lists = ", ".join(LIST_SUFFIXES)
            raise UserError(
                f"{source}: expected tars, or a list ({lists}); others are read from this machine: copy it here"
            )
        raise FileNotFoundError(f"{source.shown}: no such file or folder")
    if source.listed.format not in (None, AUTO):
        return find_format(source.listed.format)
    if source.fitting is None:
        source.fitting = [entry for entry in FORMATS.values() if entry.fits is not None and entry.fits(source)]
    fits = source.fitting
    named = source.listed.columns.given()
    by_columns = named and not source.is_folder and source.suffix != ".parquet" and not tars.are_tars(source)
    if by_columns and not any(_has_own_columns(entry, source, named) for entry in fits):
        return general.table
    fits = [entry for entry in fits if not entry.general] or fits
    if wanted is not None:
        fits = [entry for entry in fits if wanted in entry.tells] or fits
    if len(fits) > 1 and general.class_folders in fits:
        content = source.content
        deep = any("/" in name for name in content.videos or content.frame_folders)
        fits = [general.class_folders if deep else general.folder]
    if len(fits) > 1:
        names = " or ".join(f"{entry.title} (format={entry.name})" for entry in fits)
        raise UserError(f"{source.shown}: may be {names}: say which")
    if fits:
        return fits[0]
    if source.suffix in JSON_LINES:
        return general.jsonl  # whose reader says what is wrong with its lines
    raise UserError(f"{source.shown}: expected {EXPECTED[wanted]}{_seen(source)}")


def _has_own_columns(entry: ListFormat, source: ListSource, named: Mapping[str, str]) -> bool:
    """Tell whether a list is of a published format, and the columns that were named are of other lists or are those
    that the format may call otherwise."""
    strange = not {*source.first, *source.cells} & set(named.values())
    return not (entry.general or entry.own) and (strange or set(named) <= set(entry.columns))


def _seen(source: ListSource) -> str:
    """Say what is in a file that fits no format."""
    if source.fault:
        return f"; it is {source.fault}"
    if not source.path.is_file():
        return ""
    if not source.first_line:
        nul = source.path.stat().st_size > 0 and not source.head
        return "; it holds NUL bytes: is it UTF-16 without a byte-order mark?" if nul else "; it is empty"
    if source.first:
        return f"; its first object has the fields {', '.join(map(repr, source.first))}"
    mark = next((mark for mark in ";|" if mark in source.first_line), None)
    doubt = "" if mark is None else f": is {mark!r} the delimiter? Tabs and commas are"
    line = source.first_line if len(source.first_line) <= 80 else f"{source.first_line[:80]}..."
    named = "a column of your own is named by data.columns.video=NAME or --column video=NAME"
    own = f"; {named}" if mark is None and set(",\t") & set(line) else ""
    return f"; its first line is {line!r}{doubt}{own}"
