"""A list as it lies on the disk: its lines, the rows of a table, the objects of JSON in any layout, each with its place
for error messages."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fastvtp.data.formats.faults import Faults
from fastvtp.data.formats.fetched import folder_of, local_copy
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.video_files import FolderContent, content_of
from fastvtp.errors import UserError
from fastvtp.files import decoded, existing_file, lines_of

FOLDER_METADATA = ("metadata.jsonl", "metadata.csv")
FOLDER_LISTS = ("captions.jsonl", "train.jsonl", *FOLDER_METADATA)
SHARDS_NAME = "dataset.json"
"""What prepared shards are listed in, and the name of the list of their clips."""
CLASS_NAMES = "class_names.txt"
"""The names of all classes in the order of their numbers, one a line, beside a list of our own form."""
JSON_LINES = (".jsonl", ".ndjson")

_HEAD_BYTES = 1 << 20
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SPACE = " \t\r\n"
_Row = TypeVar("_Row")


class ListSource:
    """A file or folder that lists videos; it stands wherever a function takes the path of a list.

    Nothing is read before it is asked for, and what was read is kept: whoever tells what a list says before reading it
    makes one source, and gives it to both. A list of less than a mebibyte is then opened once, a longer one twice.

    Attributes:
        listed: what the caller said of it.
        path: where it lies, absolute, or the copy of one behind a URL; of a folder that holds a list of one of the
            names `inner`, that list; of a folder of prepared shards their list.
        prepared: whether it is the list of prepared shards, given by their folder.
        shown: the list as messages name it: its path, or the URL that it was fetched from without its secrets.
        home: what its relative paths start from: its folder, or the URL that a list was fetched from.
        names: the fields of all objects that were read of it, in the order of their first lines.
        fitting: the formats that it looks like, once `fastvtp.data.formats.catalogue.recognise` has asked all of them.
        faults: what becomes of malformed lines; the first one raises its error, unless others are given.
    """

    def __init__(self, listed: VideoList, inner: tuple[str, ...] = FOLDER_LISTS, faults: Faults | None = None):
        self.listed, self.faults = listed, faults or Faults()
        copy = local_copy(listed.path)
        self.path = Path(listed.path).absolute() if copy is None else copy
        if ".." in self.path.parts:  # one spelling, where it is linked, too
            self.path = self.path.resolve()
        self.prepared = False
        if inner and (listed_there := _prepared_list(self.path)) is not None:
            self.path, self.prepared = listed_there, True
        elif self.path.is_dir():
            found = [self.path / name for name in inner if (self.path / name).is_file()]
            self.path = found[0] if found else self.path
        self.is_folder = self.path.is_dir()
        self.suffix = "" if self.is_folder else self.path.suffix.lower()
        self.folder = self.path if self.is_folder else self.path.parent
        self.home = str(self.folder) if copy is None else folder_of(listed.path)
        self.shown = str(self.path) if copy is None else str(listed)
        self.names: dict[str, None] = {}
        self.fitting: list[Any] | None = None
        self._begun: dict[Callable[[ListSource], Iterator[Any]], tuple[Any, Iterator[Any]]] = {}

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> ListSource:
        """Return `path` itself where it is a source, else that of the list at the path, or of a `VideoList`."""
        return path if isinstance(path, ListSource) else cls(VideoList.of(path))

    def __fspath__(self) -> str:
        return self.listed.path

    def __str__(self) -> str:
        """Return the path as messages may show it."""
        return str(self.listed)

    def first_row(self, read: Callable[[ListSource], Iterator[_Row]]) -> _Row | None:
        """Return the first row that a format's `read` gives, which `all_rows` gives again; None: there is none."""
        if read not in self._begun:
            rows = self._rows_of(read)
            self._begun[read] = (next(rows, None), rows)
        return self._begun[read][0]

    def all_rows(self, read: Callable[[ListSource], Iterator[_Row]]) -> Iterator[_Row]:
        """Return the rows that a format's `read` gives, going on behind the first where `first_row` asked for it."""
        if (begun := self._begun.pop(read, None)) is None:
            return self._rows_of(read)
        first, rows = begun
        return rows if first is None else chain((first,), rows)

    def _rows_of(self, read: Callable[[ListSource], Iterator[_Row]]) -> Iterator[_Row]:
        return self._rows_but_malformed(read) if self.faults.collects else read(self)

    def _rows_but_malformed(self, read: Callable[[ListSource], Iterator[_Row]]) -> Iterator[_Row]:
        """Return all rows but those of malformed entries, at each of which reading begins anew without it."""
        given, goes_on = 0, True
        while goes_on:
            try:
                for number, row in enumerate(read(self)):
                    if number >= given:
                        given = number + 1
                        yield row
                return
            except UserError as error:
                goes_on = self.faults.leave_out(error)

    def place(self, line: int) -> str:
        """Return "file, line number"."""
        return f"{self.shown}, line {line}"

    def beside(self, *names: str) -> Path | None:
        """Find the first of files by their names in the folder of the list or the one around it; None: there is
        none."""
        for folder in (self.folder, self.folder.parent):
            for name in names:
                if (folder / name).is_file():
                    return folder / name
        return None

    def other(self, path: Path) -> ListSource:
        """Return the source of another file of the same publication."""
        other = ListSource(VideoList(str(path)), faults=self.faults)
        other.shown = self.shown if other.path == self.path else other.shown
        return other

    @cached_property
    def content(self) -> FolderContent:
        """What lies in the folder that this is, looked at once."""
        return content_of(self.path)

    # --- Text

    @cached_property
    def _start(self) -> bytes:
        with existing_file(self.path).open("rb") as file:
            return file.read(_HEAD_BYTES)

    def open(self) -> BinaryIO:
        """Open the file. Raises FileNotFoundError, and UserError for a folder."""
        whole = len(self._start) < _HEAD_BYTES
        return io.BytesIO(self._start) if whole else existing_file(self.path).open("rb")

    @cached_property
    def text(self) -> str:
        """The whole content, UTF-8 or, with a byte-order mark, UTF-16.

        Raises FileNotFoundError, and UserError for a folder or another encoding.
        """
        with self.open() as file:
            content = file.read()
        return decoded(content, self.shown, "utf-16" if content.startswith(_UTF16) else "utf-8-sig")

    @cached_property
    def head(self) -> str:
        """The first mebibyte as text; empty for what is no text, whose first line holds NUL bytes."""
        if self.is_folder or not self.path.is_file():
            return ""
        encoding = "utf-16" if self._start.startswith(_UTF16) else "utf-8-sig"
        text = self._start.decode(encoding, errors="replace")
        return "" if "\0" in text[: text.find("\n")] else text

    @cached_property
    def first_line(self) -> str:
        """The first line that is not blank, without the space around it."""
        return next((line.strip(" \r\n") for line in lines_of(self.head) if line.strip()), "")

    def lines(self) -> Iterator[tuple[str, str]]:
        """Return the lines that are not blank, each behind its place."""
        lines = enumerate(lines_of(self.text), start=1)
        yield from self.faults.entries((self.place(number), line) for number, line in lines if line.strip())

    # --- Tables

    @cached_property
    def delimiter(self) -> str:
        """What stands between the cells of the first line: a tab where there is one, else a comma."""
        return "\t" if "\t" in self.first_line else ","

    @cached_property
    def cells(self) -> list[str]:
        """The cells of the first line of a table, without the space around them; empty for JSON."""
        if self.suffix in (*JSON_LINES, ".json") or not self.first_line:
            return []
        if self.delimiter == "\t":  # where captions may hold quotes that do not end
            return [cell.strip().strip('"') for cell in self.first_line.split("\t")]
        try:
            return [cell.strip() for cell in next(csv.reader([self.first_line], delimiter=self.delimiter))]
        except csv.Error:
            return []

    def has_columns(self, *names: str) -> bool:
        """Tell whether the first line is a header that has these columns."""
        return bool(self.cells) and set(names) <= set(self.cells)

    def rows(self, *, quoted: bool = True, columns: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, str]]]:
        """Return the rows of a table by its header, each behind its place.

        quoted: whether quotes around a cell are none of it. columns: their names, in a table without a header.

        Raises:
            UserError: a row with another number of cells; quotes that do not end.
        """
        return self.faults.entries(self._rows(columns, quoted=quoted))

    def _rows(self, columns: tuple[str, ...], *, quoted: bool) -> Iterator[tuple[str, dict[str, str]]]:
        quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        reader = csv.reader(io.StringIO(self.text, newline=""), delimiter=self.delimiter, quoting=quoting, strict=True)
        header = list(columns)
        while True:
            start = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                self.faults.note(UserError(f"{self.place(start)}: no row of a table: {error}"))
                continue
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
            elif len(cells) != len(header):
                field = header[min(len(cells), len(header) - 1)]
                what = "missing" if len(cells) < len(header) else "not the last"
                counts = f"expected {len(header)} columns, got {len(cells)}"
                self.faults.note(UserError(f"{self.place(start)}: field '{field}': is {what}, {counts}"))
            else:
                yield self.place(start), dict(zip(header, cells, strict=True))

    # --- JSON

    @cached_property
    def _layout(self) -> tuple[str, dict[str, Any], str]:
        """Say how JSON is laid out, "lines", "values" or "none", the first object, and what is wrong where it is
        none."""
        if self.is_folder or not self.head:
            return "none", {}, ""
        if self.suffix in JSON_LINES and (first := _object(self.first_line)) is not None:
            other_ends = "\n" not in self.head and "\r" in self.head.strip()
            return ("values" if self._start.startswith(_UTF16) or other_ends else "lines"), first, ""
        if self.suffix not in (*JSON_LINES, ".json"):
            return "none", {}, ""
        try:
            _, first = next(values_of(self.text), ("", {}))
        except json.JSONDecodeError as error:
            return "none", {}, f"not JSON: {_fault_of(error)} at line {error.lineno}, column {error.colno}"
        except ValueError as error:
            return "none", {}, f"not JSON: {error}"
        return "values", first if isinstance(first, dict) else {}, ""

    @property
    def first(self) -> dict[str, Any]:
        """The first object of a list in JSON, or the one object that the list is; empty where there is none."""
        return self._layout[1]

    @property
    def is_document(self) -> bool:
        """Whether the list is one JSON object as a whole."""
        return self.suffix == ".json" and self.head.lstrip(_SPACE).startswith("{")

    @property
    def fault(self) -> str:
        """What keeps a .json file from being read as JSON; empty where nothing does."""
        return self._layout[2]

    def objects(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Return the objects of a list in JSON, each behind its place: one a line, one after the other in any layout,
        or those of one array.

        Raises:
            FileNotFoundError: nothing there.
            UserError: what is no JSON, or no object.
        """
        for place, fields in self.faults.entries(self._objects()):
            if not fields.keys() <= self.names.keys():
                self.names |= dict.fromkeys(fields)
            yield place, fields

    def _objects(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._layout[0] != "values":
            with self.open() as file:
                yield from _objects_in(file, self.shown, self.faults)
            return
        try:
            for number, value in values_of(self.text):
                if isinstance(value, dict):
                    yield f"{self.shown}, {number}", value
                    continue
                self.faults.note(UserError(f"{self.shown}, {number}: expected an object, got {type(value).__name__}"))
        except json.JSONDecodeError as error:
            found = f"{_fault_of(error)} at column {error.colno}"
            self.faults.note(UserError(f"{self.place(error.lineno)}: not JSON: {found}"))


def values_of(text: str) -> Iterator[tuple[str, Any]]:
    """Return the values of JSON text behind one another, or of one array, each behind its place: "line 3" or "line 1,
    entry 3". Raises JSONDecodeError."""
    decode = json.JSONDecoder().raw_decode
    position, line, counted, entry = _skip(text, 0), 1, 0, 0
    in_array = text.startswith("[", position)
    if in_array:
        position = _skip(text, position + 1)
    while position < len(text):
        if in_array and text[position] == "]":
            if _skip(text, position + 1) < len(text):
                raise json.JSONDecodeError("Extra data", text, position + 1)
            return
        line, counted, entry = line + text.count("\n", counted, position), position, entry + 1
        value, position = decode(text, position)
        yield f"line {line}, entry {entry}" if in_array else f"line {line}", value
        position = _skip(text, position)
        if in_array and text.startswith(",", position):
            position = _skip(text, position + 1)
        elif in_array and not text.startswith("]", position):
            raise json.JSONDecodeError("Expecting ',' or ']'", text, min(position, len(text)))
    if in_array:
        raise json.JSONDecodeError("Expecting ']'", text, len(text))


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the objects of a `.jsonl` file in order, each behind its place, "file, line number", for error messages.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a line that is not a JSON object.
    """
    with existing_file(path).open("rb") as file:
        yield from _objects_in(file, path, Faults())


def _objects_in(file: BinaryIO, path: str | os.PathLike[str], faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    named = f"{path}, line "
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8"))
        except json.JSONDecodeError as error:
            wrong = f"not JSON: {_fault_of(error)} at column {error.colno}"
        except UnicodeDecodeError as error:
            wrong = f"expected UTF-8 text: {error}"
        else:
            if isinstance(fields, dict):
                yield f"{named}{number}", fields
                continue
            wrong = f"expected an object, got {type(fields).__name__}"
        faults.note(UserError(f"{named}{number}: {wrong}"))


def _fault_of(error: json.JSONDecodeError) -> str:
    """Return what is wrong, to stand before " at" and the place: some messages end with that word themselves."""
    return error.msg.removesuffix(" at")


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position


def _prepared_list(folder: Path) -> Path | None:
    """Return the list of clips of a folder of shards that `fastvtp prepare` finished; None for anything else."""
    try:
        told = json.loads((folder / SHARDS_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    name = told.get("list") if isinstance(told, dict) else None
    return folder / name if isinstance(name, str) and (folder / name).is_file() else None
