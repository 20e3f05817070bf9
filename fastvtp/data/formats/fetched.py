"""Lists behind URLs: each is copied to this machine for the time of the process, and read there."""

from __future__ import annotations

import logging
import re
import tempfile
import threading
from pathlib import Path

from fastvtp.data.locations import is_remote, member_of, suffix_of, without_secrets
from fastvtp.data.storage.finding import UnreadableError, read_file

logger = logging.getLogger(__name__)

LIST_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
"""Of what is fetched as a list."""

_lock = threading.Lock()
_copies: dict[str, Path] = {}
_folders: list[tempfile.TemporaryDirectory[str]] = []  # which go with the process


def local_copy(location: str) -> Path | None:
    """Return the copy of a list behind a URL, made when this process first asks for it; None for what is no URL or has
    no suffix of a list.

    Raises:
        UnreadableError: it is not there, or cannot be had.
        UserError: a URL whose filesystem is unknown, or needs a package that is not installed.
    """
    if not is_remote(location) or member_of(location) is not None or suffix_of(location) not in LIST_SUFFIXES:
        return None
    with _lock:
        if location not in _copies:
            content, shown = read_file(location), without_secrets(location)
            try:
                _copies[location] = _written(shown, content)
            except OSError as error:
                raise UnreadableError(location, f"no copy of it can be written: {error.strerror or error}") from None
            logger.info("%s: fetched; files beside it are not looked for", shown)
        return _copies[location]


def _written(shown: str, content: bytes) -> Path:
    if not _folders:
        _folders.append(tempfile.TemporaryDirectory(prefix="fastvtp-lists-"))
    parts = [part for part in shown.partition("://")[2].split("/") if part not in ("", ".", "..")]
    copy = Path(_folders[0].name, str(len(_copies)), *parts)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(content)
    return copy


def folder_of(location: str) -> str:
    """Return the URL of the folder that an object lies in: with user and password, which hold for all that is there,
    and without the signature, which holds for the object alone."""
    return re.split(r"[?#]", location, maxsplit=1)[0].rpartition("/")[0]
