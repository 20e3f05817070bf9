"""Opening what a location names: what libav is to open, the same bytes as a file of Python, and who the file is."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastvtp.errors import UserError


class UnreadableError(UserError):
    """A location whose bytes cannot be had; `location` names it and `reason` says why, each fit for one line."""

    def __init__(self, location: str, reason: str):
        super().__init__(location, reason)
        self.location = location
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.location}: {self.reason}"


@dataclass(frozen=True)
class StoredFile:
    """The bytes of one video.

    Attributes:
        libav: what `av.open` takes: a path, a URL of libav's own, or an object with `read` and `seek`.
        open: opens the same bytes as a binary file that can seek, position 0 being the first byte of the video.
        size: bytes.
        key: equal as long as the bytes are, as far as can be told without reading them; None if that is not known.
    """

    libav: Any
    open: Callable[[], BinaryIO]
    size: int
    key: tuple[Any, ...] | None


def find_file(location: str) -> StoredFile:
    """Find the bytes of a video by its location, see `fastvtp.data.locations`.

    Raises:
        UnreadableError: nothing there, no permission, or no regular file, such as a pipe, socket or device, which might
            never end.
    """
    try:
        status = os.stat(location)
    except (OSError, ValueError) as error:
        raise UnreadableError(location, getattr(error, "strerror", None) or str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError(location, f"not a regular file but a {_kind_of(status.st_mode)}")
    key = (location, status.st_size, status.st_mtime_ns, status.st_ino)
    return StoredFile(location, lambda: open(location, "rb"), status.st_size, key)


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")
