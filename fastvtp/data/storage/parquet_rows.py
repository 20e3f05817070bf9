"""Videos in the rows of parquet files, as Hugging Face's datasets have them: bytes in a column.

A parquet file can only be read a row group at a time: the groups read last are kept in memory. For training at random,
groups of few rows, or tars, are what reads fast.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from fastvtp.data.locations import is_remote, without_secrets
from fastvtp.data.storage.last_used import LastUsed
from fastvtp.data.storage.remote import look_up
from fastvtp.data.storage.remote_files import open_blocks
from fastvtp.data.storage.stored_file import StoredFile, UnreadableError, regular_file
from fastvtp.errors import UserError

_PREFERRED = ("video", "mp4", "webm", "movie", "clip", "bytes", "content", "image", "jpg", "png")
_MOST_BYTES = 1 << 28  # of row groups in memory; one may be larger
_MOST_FILES = 16


@dataclass
class _Table:
    """An opened parquet file: where its row groups begin, and which columns may hold videos."""

    stamp: tuple[Any, ...]
    file: Any
    starts: np.ndarray
    columns: tuple[str, ...]


_lock = threading.RLock()
_tables = LastUsed[str, _Table](_MOST_FILES)
_groups = LastUsed[tuple[Any, ...], Any](_MOST_BYTES, lambda group: group.nbytes)


def find_row(location: str, archive: str, member: str) -> StoredFile:
    """Find the video in a row of a parquet file.

    Args:
        location: what names it.
        archive: path or URL of the file.
        member: the number of the row from 0 on; or number and name of the column, "17::video". Without a column, the
            one that holds bytes (or, in Hugging Face's form, a struct with the field "bytes").

    Raises:
        UnreadableError: no such file, row or column, or no bytes there.
        UserError: pyarrow is not installed.
    """
    number, _, column = member.partition("::")
    if not number.isdecimal():
        raise UnreadableError(location, f"expected the number of a row after '::', got {number!r}")
    with _lock, _damage_named(location):
        table = _opened(archive)
        if int(number) >= table.starts[-1]:
            raise UnreadableError(location, f"the file has {table.starts[-1]} rows")
        name = column or _column(location, table)
        if name not in table.columns:
            known = ", ".join(table.columns) or "none"
            raise UnreadableError(location, f"no column {name!r} that holds bytes; those that do: {known}")
        group = int(np.searchsorted(table.starts, int(number), side="right")) - 1
        values = _group(table, group, name)
        value = values[int(number) - int(table.starts[group])].as_py()
    if isinstance(value, dict):
        value = value.get("bytes")
    if value is None:
        raise UnreadableError(location, f"no bytes in column {name!r}")
    return StoredFile(None, lambda: io.BytesIO(value), len(value), (*table.stamp, int(number), name))


def bytes_columns(archive: str) -> tuple[str, ...]:
    """Return the columns of a parquet file that hold bytes, the likeliest first, see `find_row`.

    Raises as that does.
    """
    with _lock:
        columns = _opened(archive).columns
    return tuple(sorted(columns, key=lambda name: _PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED)))


@contextmanager
def _damage_named(location: str, what: str = "damaged") -> Iterator[None]:
    """Turn what pyarrow makes of a damaged file into an UnreadableError of `location`."""
    try:
        yield
    except UnreadableError as error:
        raise UnreadableError(location, error.reason) from None
    except UserError:
        raise
    except Exception as error:  # pyarrow's come from a dozen kinds: ValueError, IndexError, NotImplementedError, ...
        raise UnreadableError(location, f"{what} ({' '.join(str(error).split())})") from None


def _column(location: str, table: _Table) -> str:
    if len(table.columns) == 1:
        return table.columns[0]
    named = [name for name in _PREFERRED if name in table.columns]
    if not named:
        known = ", ".join(table.columns) or "none"
        raise UnreadableError(location, f"expected one column that holds bytes, got {known}")
    return named[0]


def _opened(archive: str) -> _Table:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        needs = "needs a package that is not installed: pip install 'fastvtp[shards]'"
        raise UserError(f"{without_secrets(archive)}: {needs}") from None
    stamp, whole = _stamp(archive)
    if (known := _tables.get(archive)) is not None and known.stamp == stamp:
        return known
    with _damage_named(archive, "not a parquet file"):
        source: str | BinaryIO = archive if whole is None else open_blocks(archive, whole)
        file = parquet.ParquetFile(source)
        rows = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        columns = tuple(field.name for field in file.schema_arrow if _holds_bytes(field.type))
    return _tables.keep(archive, _Table(stamp, file, np.cumsum((0, *rows)), columns))


def _stamp(archive: str) -> tuple[tuple[Any, ...], Any]:
    if is_remote(archive):
        whole = look_up(archive)
        return (archive, whole.size, whole.version), whole
    status = regular_file(archive)
    return (archive, status.st_size, status.st_mtime_ns), None


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _group(table: _Table, number: int, column: str) -> Any:
    key = (*table.stamp, number, column)
    if (known := _groups.get(key)) is not None:
        return known
    return _groups.keep(key, table.file.read_row_group(number, columns=[column]).column(0))
