"""Where a video lies, as one text: a path, a URL of an object store, or a member of an archive in either.

A location is what lists, log lines and reports name. Its forms:

- `/films/a.mp4`, an absolute path; of a folder whose files are the frames, the path of the folder;
- `s3://bucket/films/a.mp4`, a URL of any filesystem that fsspec knows;
- `/shards/000017.tar::000017042.mp4`, a member of a tar, by path or URL of the tar;
- `/lists/train-00000.parquet::17`, the bytes in row 17 of a parquet file.

This module is about the text alone: nothing is opened.
"""

from __future__ import annotations

import glob
import os
import posixpath
import re
from pathlib import PurePosixPath
from urllib.parse import unquote

SEPARATOR = "::"

_PACKED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".zip", ".7z", ".rar")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # at least two letters: "C:" is a drive
_URL_AS_PATH = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
# of a URL a query may follow, as those have that are signed
_MEMBER = re.compile(r"(.*?\.(?:tar|parquet)(?:\?(?:(?!::).)*)?)::(.+)", re.DOTALL)


def located(written: str, folder: str | os.PathLike[str]) -> str:
    """Turn a location as people write it in lists into an absolute one.

    Quotes around it go, "~" becomes the home folder, "file://" a path, and what is relative starts from `folder`, which
    may be a URL itself.
    """
    text = unquoted(written.strip())
    if text.startswith("file://"):
        text = unquote(_path_of_url(text))
    if is_remote(text):
        return text
    text, base = os.path.expanduser(text), os.fspath(folder)
    if is_remote(base):
        return text if text.startswith("/") else _under_url(base.rstrip("/"), posixpath.normpath(text))
    return os.path.join(base, text)


def _under_url(folder: str, path: str) -> str:
    """Return what a relative path names under a URL; stores know nothing of "..", which ends at the host or bucket."""
    while path.startswith("../"):
        path = path[3:]
        folder = folder.rpartition("/")[0] if "/" in folder.partition("://")[2] else folder
    return f"{folder}/{path}"


def unquoted(text: str) -> str:
    """Return a text without the quotes around it, where there are two of a kind."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def is_remote(location: str) -> bool:
    """Tell whether a location is a URL, or a member of an archive that one names."""
    return _SCHEME.match(location) is not None


def without_query(location: str) -> str:
    """Return a URL without the "?" and what follows it, as in those that are signed; a path as it is."""
    return location.partition("?")[0] if is_remote(location) else location


def spelled(location: str | os.PathLike[str]) -> str:
    """Return a location as it was written: a path keeps one slash of the two of a URL that it was made of."""
    text = os.fspath(location)
    return _URL_AS_PATH.sub(r"\1://", text) if isinstance(location, os.PathLike) else text


def refused_url(location: str | os.PathLike[str], named: str = "", kind: str = "folder") -> str:
    """Say that a URL is no place to write to, since a path of that name would be a folder "s3:" of the present one; ""
    for a path. named: what stands before it, such as "--output "; kind: what is expected, "file" or "folder"."""
    if "://" not in (text := spelled(location)):
        return ""
    return f"{named}{without_secrets(text)}: is a URL, expected a {kind} of this machine"


def is_pattern(location: str | os.PathLike[str]) -> bool:
    """Tell whether a text stands for several files: "shards/{000..017}.tar", "shards/*.tar", "shards/[0-9].tar". What
    follows the "?" of a URL does not count."""
    path = without_query(os.fspath(location))
    return "{" in path or glob.has_magic(path)


def to_be_unpacked(location: str | os.PathLike[str]) -> str:
    """Say of a compressed file or archive by its name, "films.tar.gz", how it can be read; "" for any other name."""
    if not without_query(os.fspath(location)).lower().endswith(_PACKED):
        return ""
    return "what is compressed or in such an archive is not read: unpack it into a folder, or make a plain .tar of it"


def member_of(location: str) -> tuple[str, str] | None:
    """Split a member of an archive into the location of the archive and the member's name; None for what is none."""
    match = _MEMBER.fullmatch(location)
    return None if match is None else (match[1], match[2])


def in_archive(archive: str, member: str) -> str:
    """Return the location of a member of an archive."""
    return f"{archive}{SEPARATOR}{member}"


def normal(location: str) -> str:
    """Return the one text for all that name the same place: paths lose "." and doubled slashes, URLs stay."""
    if is_remote(location):
        return location
    if (parts := member_of(location)) is not None:
        return in_archive(os.path.normpath(parts[0]), parts[1])
    return os.path.normpath(location)


def suffix_of(location: str) -> str:
    """Return the suffix in lower case, ".mp4"; of a URL that of its path, of a member that of its name."""
    if (parts := member_of(location)) is not None:
        location = parts[1]
    elif is_remote(location):
        location = _path_of_url(location)
    return PurePosixPath(location).suffix.lower()


def _path_of_url(url: str) -> str:
    # urllib refuses some of what people write, such as an open bracket
    _, slash, path = re.split(r"[?#]", url.partition("://")[2], maxsplit=1)[0].partition("/")
    return slash + path


def without_secrets(location: str) -> str:
    """Return a location as logs and messages may show it: a URL without user, password and signature."""
    if not is_remote(location):
        return location
    archive, member = member_of(location) or (location, "")
    scheme, _, rest = re.sub(r"[?#]\S*", "", archive).partition("://")  # a span may follow, " 60-70 s"
    host, slash, path = rest.partition("/")
    archive = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return in_archive(archive, member) if member else archive
