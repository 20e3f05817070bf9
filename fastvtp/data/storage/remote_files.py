"""Objects of a store as files: small ones as copies in a bounded cache on disk, large ones read in blocks."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

from fastvtp.data.locations import suffix_of
from fastvtp.data.storage.disk_cache import DiskCache, HeldCopy
from fastvtp.data.storage.last_used import LastUsed
from fastvtp.data.storage.range_file import RangeFile, Scan, buffered
from fastvtp.data.storage.remote import NoRangesError, RemoteObject, look_up, one_opening, read_range
from fastvtp.data.storage.settings import storage_settings
from fastvtp.data.storage.stored_file import StoredFile, UnreadableError

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20  # bytes
_MOST_BLOCKS = 64  # of all objects of a process


def find_object(location: str) -> StoredFile:
    """Find an object of a store. Raises UnreadableError where it cannot be had, and UserError for an unknown store."""
    found = look_up(location)
    return find_part(location, location, found, 0, found.size)


def find_part(location: str, container: str, whole: RemoteObject, start: int, size: int) -> StoredFile:
    """Find `size` bytes from `start` on of the object `container`, which `location` names.

    Raises:
        UnreadableError: they cannot be had.
    """
    key = _key(container, whole, start, size)
    if 0 < size <= storage_settings().whole_bytes:
        # without a version an object of another content would go by the same name
        cached = None if key is None else _copy(key, suffix_of(location), lambda: _parts(container, whole, start, size))
        if cached is not None:
            path = str(cached.path)
            return StoredFile(path, partial(_open_held, path, cached), size, key, cached)
        data = b"".join(_parts(container, whole, start, size))
        return StoredFile(None, lambda: io.BytesIO(data), size, key)

    def opened() -> BinaryIO:
        return open_blocks(container, whole, start, size)

    return StoredFile(None, opened, size, key)


def open_blocks(location: str, whole: RemoteObject, start: int = 0, size: int | None = None) -> BinaryIO:
    """Open an object, or a part of it, as a file that is read in blocks, which a process remembers for a while."""
    size = whole.size if size is None else size

    def read_at(first: int, last: int) -> bytes:
        with one_opening():
            return _read_blocks(location, whole, start + first, start + last)

    return buffered(RangeFile(size, read_at))


def open_scan(location: str, whole: RemoteObject) -> BinaryIO:
    """Open an object as a file for who reads forward and skips most of it."""

    def read_at(first: int, last: int) -> bytes:
        with one_opening():
            return b"".join(_parts(location, whole, first, last - first))

    return buffered(RangeFile(whole.size, Scan(whole.size, read_at)), 1 << 13)


def _open_held(path: str, held: HeldCopy) -> BinaryIO:
    del held  # as long as the way to open the copy is there, the copy is
    return open(path, "rb")


def _key(container: str, whole: RemoteObject, start: int, size: int) -> tuple[Any, ...] | None:
    return None if whole.version is None else (container, whole.size, whole.version, start, size)


def _parts(location: str, whole: RemoteObject, start: int, size: int) -> Iterator[bytes]:
    """Read bytes of an object; where its server sends no parts, from a copy of all of it."""
    at, end, is_part = start, start + size, size < whole.size
    if is_part and (copy := _whole_copy(location, whole)) is not None:
        yield _slice(copy, at, end)
        return
    try:
        for data in read_range(location, start, end, whole.size):
            yield data
            at += len(data)
    except NoRangesError as error:
        content = error.content
    else:
        return
    if whole.size > storage_settings().whole_bytes:
        most = f"{whole.size / 1e6:.3g} MB are more than whole_mb ({storage_settings().whole_mb:g})"
        raise UnreadableError(location, f"the server sends no parts of objects (ranges of HTTP), and {most}")

    def read_all() -> Iterable[bytes]:
        return read_range(location, 0, whole.size, whole.size) if content is None else (content,)

    key = _key(location, whole, 0, whole.size)
    made = None if key is None else _copy(key, suffix_of(location), read_all)
    if made is not None:
        yield _slice(made, at, end)
    else:
        if (read := _wholes.get((location, whole))) is None:
            read = _wholes.keep((location, whole), b"".join(read_all()))
        yield read[at:end]


def _whole_copy(location: str, whole: RemoteObject) -> HeldCopy | None:
    key, copies = _key(location, whole, 0, whole.size), _cache()
    if key is None or copies is None or whole.size > storage_settings().whole_bytes:
        return None
    try:
        return copies.hold(_name(key, suffix_of(location)))
    except OSError:  # it is fetched again, and why is said then
        return None


def _slice(copy: HeldCopy, start: int, end: int) -> bytes:
    with open(copy.path, "rb") as file:
        file.seek(start)
        return file.read(end - start)


def _name(key: tuple[Any, ...], suffix: str) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:32] + suffix  # libav looks at suffixes, too


def _copy(key: tuple[Any, ...], suffix: str, read: Callable[[], Iterable[bytes]]) -> HeldCopy | None:
    """Return the copy of the bytes that `read` gives, made now where there is none; None where none can be.

    key: as `_key` makes it, its last part being how many bytes there are.
    """
    copies = _cache()
    if copies is None:
        return None

    def write(file: BinaryIO) -> None:
        for data in read():
            file.write(data)

    name = _name(key, suffix)
    try:
        held = copies.hold(name) or copies.add(name, key[-1], write)
        if held is None:
            _say_no_room(storage_settings().cache_gb)
        return held
    except OSError as error:  # the disk is full, say, however large the bound is
        _warn_of_disk(str(storage_settings().folder), error.strerror or str(error))
        return None


def _cache() -> DiskCache | None:
    settings = storage_settings()
    return _cache_in(str(settings.folder / "objects"), settings.cache_bytes) if settings.cache_bytes else None


@cache
def _cache_in(folder: str, most_bytes: int) -> DiskCache | None:
    try:
        made = DiskCache(Path(folder), most_bytes)
        made.check_writable()
        return made
    except OSError as error:
        _warn_of_disk(folder, error.strerror or str(error))
        return None


@cache
def _warn_of_disk(folder: str, reason: str) -> None:
    logger.warning("%s: no copies of objects can be kept (%s); they are read anew each time", folder, reason)


@cache
def _say_no_room(cache_gb: float) -> None:
    what = "too little for some objects, beside those in use: they are read anew each time"
    logger.warning("cache_gb=%g: %s", cache_gb, what)


_blocks = LastUsed[tuple[Any, ...], bytes](_MOST_BLOCKS)
_wholes = LastUsed[tuple[Any, ...], bytes](1)  # of servers that send no parts, where the disk keeps no copies


def _read_blocks(location: str, whole: RemoteObject, start: int, end: int) -> bytes:
    parts = []
    for number in range(start // _BLOCK, -(-end // _BLOCK)):
        first = number * _BLOCK
        last = min(first + _BLOCK, whole.size)
        key = (location, whole.size, whole.version, number)
        if (block := _blocks.get(key)) is None:
            block = _blocks.keep(key, b"".join(_parts(location, whole, first, last - first)))
        parts.append(block[max(start - first, 0) : end - first])
    return b"".join(parts)
