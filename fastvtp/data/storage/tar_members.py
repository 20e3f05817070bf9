"""The members of a tar: names, places and sizes, read from its headers alone."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from fastvtp.data.storage.stored_file import UnreadableError

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_PADDING = 1 << 20  # bytes after the end mark that may be there: tar fills its last record


class NoTarError(Exception):
    """A file is no tar whose members can be reached one by one; the message says what it is."""


@dataclass(frozen=True)
class Members:
    """What the headers of a tar list.

    Attributes:
        names: of the regular files in their order, each once.
        offset, size: place of the first byte in the tar, and bytes, by name.
        texts: content of the small members that were asked for, by name.
        notes: what is odd or missing, each fit for one line after the tar's name.
    """

    names: list[str]
    offset: dict[str, int]
    size: dict[str, int]
    texts: dict[str, bytes]
    notes: list[str]


def read_members(file: BinaryIO, size: int, is_text: Callable[[str, int], bool] = lambda name, size: False) -> Members:
    """Read the headers of a tar of `size` bytes, and the members for whose name and bytes `is_text` is true; what the
    others hold is skipped.

    Where names come more than once the last one counts, as it does for who unpacks the tar. What broke off at the end,
    sparse files and links that lead nowhere are left out, each with a note.

    Raises:
        NoTarError: not a tar, or a compressed one.
        OSError, UnreadableError: the file cannot be read.
    """
    offset: dict[str, int] = {}
    sizes: dict[str, int] = {}
    texts: dict[str, bytes] = {}
    left_out: dict[str, list[str]] = {}
    repeated, notes, archive, last = 0, [], None, None
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := _next(archive)) is not None:
                last = name = posixpath.normpath(member.name)
                if member.isdir():
                    continue
                place = _place(member, offset, sizes)
                if place is None:
                    left_out.setdefault(_kind(member), []).append(name)
                elif sum(place) > size:
                    notes.append(f"breaks off inside {name}, which is left out with all that followed")
                    break
                else:
                    repeated += name in offset
                    offset[name], sizes[name] = place
                    if is_text(name, place[1]):  # at once: in a store a second look would be a second request
                        file.seek(place[0])
                        texts[name] = file.read(place[1])
            else:
                notes += _end_notes(file, archive.offset, size, last)
    except UnreadableError:
        raise
    except (tarfile.TarError, ValueError, EOFError) as error:
        if archive is None or last is None:
            raise NoTarError(_what_else(file, str(error))) from None
        notes.append(f"breaks off or is damaged after {last} ({error}); what follows is left out")
    notes += [f"{len(found)} {kind} left out, the first {found[0]}" for kind, found in left_out.items()]
    if repeated:
        notes.append(f"{repeated} names come more than once; the last of each counts")
    return Members(list(offset), offset, sizes, texts, notes)


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    member = archive.next()
    # it would keep all, for extraction
    archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
    return member


def _place(member: tarfile.TarInfo, offset: dict[str, int], sizes: dict[str, int]) -> tuple[int, int] | None:
    if member.islnk():
        target = posixpath.normpath(member.linkname)
        return (offset[target], sizes[target]) if target in offset else None
    return None if not member.isreg() or member.issparse() else (member.offset_data, member.size)


def _kind(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "sparse files"
    return "links" if member.islnk() or member.issym() else "members that are no files"


def _end_notes(file: BinaryIO, end: int, size: int, last: str | None) -> list[str]:
    """Say what is wrong with the end of a tar, whose members end at `end` as far as they could be read."""
    file.seek(end)
    mark = file.read(tarfile.BLOCKSIZE)
    if last is None and size >= tarfile.BLOCKSIZE:
        return ["holds no files"]
    if len(mark) < tarfile.BLOCKSIZE:
        return [f"ends after {last} without an end mark: it may have broken off there"]
    if mark.strip(b"\0"):
        return [f"is damaged after {last}: no header where the next file should begin; what follows is left out"]
    if size - end > _PADDING:
        return [f"{size - end} bytes after the end mark are left out: are these several tars one after the other?"]
    return []


def _what_else(file: BinaryIO, reason: str) -> str:
    file.seek(0)
    head = file.read(6)
    if not head:
        return "zero bytes"
    packed = next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)
    if packed:
        return f"a tar compressed with {packed}, whose files cannot be reached one by one: unpack it to a plain tar"
    return f"not a tar ({reason})"
