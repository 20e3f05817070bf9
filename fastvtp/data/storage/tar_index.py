"""The side index of a tar: where each member lies, so that any can be read without those before it.

It is a file beside the tar, `000017.tar.index.npz`, or one in the cache folder where none can be written there. It
holds the size and time of change (of an object, its version) of the tar it was made from, and is made anew once they
differ. It is made on first use or by `fastvtp index`; several processes may do so at once.

The members' names are found by a hash: a table of a million members is 24 MB, and is read as fast as the disk gives it.
The texts of small members (.txt, .json, .cls) lie in the index too, so that lists need no look into the tar.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import posixpath
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from fastvtp.data.locations import in_archive, is_remote, without_secrets
from fastvtp.data.storage.last_used import LastUsed
from fastvtp.data.storage.range_file import open_part
from fastvtp.data.storage.remote import RemoteObject, look_up, no_opening, read_range, write_object
from fastvtp.data.storage.remote_files import open_scan
from fastvtp.data.storage.settings import storage_settings
from fastvtp.data.storage.stored_file import UnreadableError, regular_file
from fastvtp.data.storage.tar_members import NoTarError, read_members
from fastvtp.files import write_atomically

logger = logging.getLogger(__name__)

SUFFIX = ".index.npz"
TEXT_SUFFIXES = (".txt", ".json", ".cls")
_VERSION = 1
_NO_VERSION = "None"  # of a tar in a store that tells none
_TABLE = ("hashes", "offset", "size")
_LONGEST_TEXT = 1 << 16  # bytes of a member whose text is kept in the index
_AT_ONCE = 8  # tars of a store
_MOST_MEMBERS = 1 << 21  # in memory, of all tars of a process: 50 MB


@dataclass(frozen=True)
class TarStamp:
    """What tells whether a tar is still the one that was indexed: bytes, and time of change or version."""

    size: int
    changed: str


@dataclass(frozen=True)
class MemberTable:
    """Where the members of a tar lie.

    Attributes:
        stamp: of the tar.
        hashes: uint64 `[N]`, rising, of their names.
        offset, size: int64 `[N]`, in the order of `hashes`.
    """

    stamp: TarStamp
    hashes: np.ndarray
    offset: np.ndarray
    size: np.ndarray

    def find(self, member: str) -> tuple[int, int] | None:
        """Return where a member begins and how long it is; None where there is none of that name."""
        wanted = _hash(posixpath.normpath(member))
        place = int(np.searchsorted(self.hashes, wanted))
        if place == len(self.hashes) or self.hashes[place] != wanted:
            return None
        return int(self.offset[place]), int(self.size[place])


class VideoFacts(NamedTuple):
    """What the header of an mp4 or mov says of its video: codec as libav names it, number of frames and of keyframes,
    seconds, and the pixels of the coded picture. For whoever counts or chooses; decoding goes by the header itself."""

    codec: str
    frames: int
    keyframes: int
    seconds: float
    height: int
    width: int


@dataclass(frozen=True)
class TarListing:
    """What is in a tar.

    Attributes:
        names: of the members, in their order.
        texts: the content of small members whose suffix is one of `TEXT_SUFFIXES`, by name.
        notes: what is odd or missing, each fit for one line after the tar's name.
        facts: of the videos, by name; empty where the index was made without a look at them.
        place: where its index lies; None where none could be written.
    """

    names: tuple[str, ...]
    texts: dict[str, str]
    notes: tuple[str, ...]
    facts: dict[str, VideoFacts]
    place: str | None


def stamp_of(archive: str) -> TarStamp:
    """Return what a tar is recognised by. Raises UnreadableError where it is not there, or is no regular file."""
    if is_remote(archive):
        found = look_up(archive)
        return TarStamp(found.size, found.version or _NO_VERSION)
    status = regular_file(archive)
    return TarStamp(status.st_size, f"{status.st_mtime_ns}")


def member_table(archive: str) -> MemberTable:
    """Return where the members of a tar lie, from memory, from its index, or by making that.

    Raises:
        UnreadableError: the tar cannot be read, or is none.
    """
    stamp = stamp_of(archive)
    table = _tables.get(archive)
    if table is None or table.stamp != stamp:
        found = _stored(archive, stamp, *_TABLE)
        table = MemberTable(stamp, *found[0]) if found else index_tar(archive)[1]
        _tables.keep(archive, table)
    return table


def ensure_index(archive: str) -> None:
    """Make the index of a tar where there is none that fits it; one that is there is not read.

    Raises:
        UnreadableError: the tar cannot be read, or is none.
    """
    stamp = stamp_of(archive)
    if _stored(archive, stamp) is None:
        index_tar(archive)


def tar_listing(archive: str) -> TarListing:
    """Return what is in a tar, from its index, or by making that.

    Raises:
        UnreadableError: the tar cannot be read, or is none.
    """
    found = _stored(archive, stamp_of(archive), "listing")
    if found is None:
        return index_tar(archive)[0]
    try:
        said = json.loads(zlib.decompress(found[0][0].tobytes()))
        facts = {name: VideoFacts(*values) for name, values in said["facts"].items()}
        listing = TarListing(tuple(said["names"]), said["texts"], tuple(said["notes"]), facts, found[1])
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error):  # damaged
        return index_tar(archive)[0]
    _say(archive, listing.notes)
    return listing


def tar_listings(archives: Sequence[str]) -> Iterator[TarListing]:
    """Return what is in each of several tars, in their order; those in stores are looked up some ahead of their turn.

    Raises as `tar_listing` does.
    """
    if not any(map(is_remote, archives)):
        yield from map(tar_listing, archives)
        return
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        ahead = deque(pool.submit(tar_listing, archive) for archive in archives[: 2 * _AT_ONCE])
        try:
            for archive in (*archives[2 * _AT_ONCE :], *[None] * len(ahead)):
                yield ahead.popleft().result()
                if archive is not None:
                    ahead.append(pool.submit(tar_listing, archive))
        finally:
            for future in ahead:
                future.cancel()


def index_tar(
    archive: str, *, beside: bool = False, look: Callable[[str], VideoFacts | None] | None = None
) -> tuple[TarListing, MemberTable]:
    """Make the index of a tar and write it, in place of one that is there.

    Args:
        archive: path or URL.
        beside: write it beside a tar of an object store too, and not to the cache folder alone. That of a local tar
            goes beside it in any case, where that can be written.
        look: finds what the index is to say of a video, by its location.

    Raises:
        UnreadableError: the tar cannot be read, or is none.
    """
    stamp = stamp_of(archive)
    try:
        with no_opening(), _opened(archive, stamp) as file:  # thousands of headers have no time limit of a video's
            members = read_members(file, stamp.size, _is_text)
    except NoTarError as error:
        raise UnreadableError(archive, str(error)) from None
    except OSError as error:
        raise UnreadableError(archive, error.strerror or str(error)) from None
    texts = {name: content.decode("utf-8-sig", errors="replace") for name, content in members.texts.items()}
    hashes = np.array([_hash(name) for name in members.names], np.uint64)
    order = np.argsort(hashes)
    if len(np.unique(hashes)) < len(hashes):
        raise UnreadableError(archive, "two of its names have the same hash: rename a file in it")
    columns = (hashes, *(np.array(list(column.values()), np.int64) for column in (members.offset, members.size)))
    table = MemberTable(stamp, *(column[order] for column in columns))
    _tables.keep(archive, table)  # so that `look` finds the members
    facts = (
        {} if look is None else {name: found for name in members.names if (found := look(in_archive(archive, name)))}
    )
    listing = {"names": members.names, "texts": texts, "notes": members.notes, "facts": facts}
    about = {"format": "fastvtp tar index", "version": _VERSION, "size": stamp.size, "changed": stamp.changed}
    arrays = {name: getattr(table, name) for name in _TABLE}
    packed = io.BytesIO()
    np.savez(
        packed,
        about=_bytes(json.dumps(about).encode()),
        listing=_bytes(zlib.compress(json.dumps(listing).encode())),
        **arrays,
    )
    place = _write(archive, packed.getvalue(), beside=beside)
    _say(archive, tuple(members.notes))
    return TarListing(tuple(members.names), texts, tuple(members.notes), facts, place), table


@cache
def _say(archive: str, notes: tuple[str, ...]) -> None:
    for note in notes:
        logger.warning("%s: %s", without_secrets(archive), note)


def _opened(archive: str, stamp: TarStamp) -> BinaryIO:
    if is_remote(archive):
        return open_scan(archive, look_up(archive))
    return open_part(archive, 0, stamp.size, 1 << 13)


def _is_text(name: str, size: int) -> bool:
    return os.path.splitext(name)[1].lower() in TEXT_SUFFIXES and size <= _LONGEST_TEXT


def _hash(name: str) -> np.uint64:
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "big"))


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


# --- Where the index lies


def _cached_place(archive: str) -> Path:
    digest = hashlib.sha256(archive.encode(errors="surrogateescape")).hexdigest()[:24]
    return storage_settings().folder / "indexes" / f"{digest}{SUFFIX}"


def _stored(archive: str, stamp: TarStamp, *names: str) -> tuple[list[np.ndarray], str] | None:
    """Return arrays of the index of a tar, and where it lies; None where none fits the tar."""
    local = [] if is_remote(archive) else [Path(archive + SUFFIX)]
    # of a tar without a version another one of the same size would go by what is kept here
    kept = [] if stamp.changed == _NO_VERSION else [_cached_place(archive)]
    for path in (*local, *kept):
        try:
            found = _loaded(path, stamp, names)
        except Exception:  # none, or a damaged one: the zip file, the arrays and the JSON in it fail in many ways
            continue
        if found is not None:
            return found, str(path)
    if not is_remote(archive) or "?" in archive:
        return None
    beside = archive + SUFFIX
    try:
        content = _fetched(beside, look_up(beside))
        found = _loaded(io.BytesIO(content), stamp, names)
    except Exception:
        return None
    if found is not None:
        _write_to(_cached_place(archive), content)
    return None if found is None else (found, beside)


def _fetched(location: str, whole: RemoteObject) -> bytes:
    return b"".join(read_range(location, 0, whole.size, whole.size))


def _loaded(file: Path | io.BytesIO, stamp: TarStamp, names: tuple[str, ...]) -> list[np.ndarray] | None:
    """Return arrays of an index; None where it is of another tar."""
    with np.load(file, allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        fits = about["version"] == _VERSION and TarStamp(about["size"], about["changed"]) == stamp
        return [arrays[name] for name in names] if fits else None


def _write(archive: str, content: bytes, *, beside: bool) -> str | None:
    """Write an index where it can be written; returns where that is."""
    if not is_remote(archive):
        try:
            write_atomically(Path(archive + SUFFIX), content)
            return archive + SUFFIX
        except OSError as error:
            _say_cached(os.path.dirname(archive), error.strerror or str(error))
    elif beside and "?" in archive:  # what is put behind the query would replace the tar itself
        _say_cached(archive.partition("?")[0].rpartition("/")[0], "the URL is signed for one object")
    elif beside:
        try:
            write_object(archive + SUFFIX, content)
        except UnreadableError as error:
            _say_cached(archive.rpartition("/")[0], error.reason)
        else:
            _write_to(_cached_place(archive), content)
            return archive + SUFFIX
    return _write_to(_cached_place(archive), content)


def _write_to(path: Path, content: bytes) -> str | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        return str(path)
    except OSError as error:
        _say_unwritten(str(path.parent), error.strerror or str(error))
        return None


@cache
def _say_cached(folder: str, reason: str) -> None:
    where = storage_settings().folder / "indexes"
    note = "no index can be written beside the tars"
    logger.warning("%s: %s (%s); they go to %s", without_secrets(folder), note, reason, where)


@cache
def _say_unwritten(folder: str, reason: str) -> None:
    logger.warning("%s: no index of a tar can be written (%s); each process makes its own", folder, reason)


_tables = LastUsed[str, MemberTable](_MOST_MEMBERS, lambda table: len(table.hashes))
