"""Opening what a location names: what libav is to open, the same bytes as a file of Python, and who the file is."""

from __future__ import annotations

from fastvtp.data.locations import is_remote, member_of, suffix_of
from fastvtp.data.storage.parquet_rows import find_row
from fastvtp.data.storage.range_file import open_part
from fastvtp.data.storage.remote import look_up, one_opening
from fastvtp.data.storage.remote_files import find_object, find_part
from fastvtp.data.storage.stored_file import StoredFile, UnreadableError, regular_file
from fastvtp.data.storage.tar_index import TarStamp, member_table

__all__ = ["StoredFile", "UnreadableError", "find_file", "read_file", "size_of"]


def find_file(location: str) -> StoredFile:
    """Find the bytes of a video by its location, see `fastvtp.data.locations`.

    A member of a local tar is read where it lies. Of an object store, small objects and members of tars are fetched
    whole into a cache on disk, larger ones read in blocks, see `StorageSettings`.

    Raises:
        UnreadableError: nothing there, no permission, no such member, a store that does not answer in time; or no
            regular file, such as a pipe, socket or device, which might never end.
        UserError: a URL whose filesystem is unknown, or needs a package that is not installed.
    """
    parts = member_of(location)
    if parts is None and not is_remote(location):
        return _find_local(location)
    with one_opening():
        return find_object(location) if parts is None else _find_in(location, *parts)


def _find_in(location: str, archive: str, member: str) -> StoredFile:
    if suffix_of(archive) == ".parquet":
        return find_row(location, archive, member)
    return _find_member(location, archive, member)


def size_of(location: str) -> int:
    """Return the bytes of a file without reading any, but for a row of a parquet file. Raises as `find_file` does."""
    parts = member_of(location)
    if parts is None:
        return look_up(location).size if is_remote(location) else regular_file(location).st_size
    if suffix_of(parts[0]) == ".parquet":
        return find_file(location).size
    with one_opening():
        return _place_in_tar(location, *parts)[1]


def read_file(location: str) -> bytes:
    """Read all bytes that a location names. Raises as `find_file` does."""
    found = find_file(location)
    try:
        with found.open() as file:
            return file.read()
    except OSError as error:
        raise UnreadableError(location, error.strerror or str(error)) from None


def _find_local(location: str) -> StoredFile:
    status = regular_file(location)
    key = (location, status.st_size, status.st_mtime_ns, status.st_ino)
    return StoredFile(location, lambda: open(location, "rb"), status.st_size, key)


def _place_in_tar(location: str, archive: str, member: str) -> tuple[int, int, TarStamp]:
    """Return where a member of a tar begins, how long it is, and which state of the tar that holds for."""
    try:
        table = member_table(archive)
    except UnreadableError as error:
        raise UnreadableError(location, f"its tar: {error.reason}") from None
    if (place := table.find(member)) is None:
        raise UnreadableError(location, "the tar holds no file of that name")
    return *place, table.stamp


def _find_member(location: str, archive: str, member: str) -> StoredFile:
    start, size, stamp = _place_in_tar(location, archive, member)
    if is_remote(archive):
        return find_part(location, archive, look_up(archive), start, size)
    part = f"subfile,,start,{start},end,{start + size},,:{archive}"
    key = (archive, stamp.size, stamp.changed, start, size)
    return StoredFile(part, lambda: open_part(archive, start, size), size, key)
