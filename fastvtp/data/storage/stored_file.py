"""What is known of the bytes of one video, wherever they lie, and the error where they cannot be had."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from fastvtp.data.locations import without_secrets
from fastvtp.errors import UserError


class UnreadableError(UserError):
    """A location whose bytes cannot be had; `location` names it and `reason` says why, each fit for one line."""

    def __init__(self, location: str, reason: str):
        super().__init__(without_secrets(location), reason)  # what shows in tracebacks
        self.location = location
        self.reason = reason

    def __str__(self) -> str:
        return f"{without_secrets(self.location)}: {self.reason}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location, self.reason)


@dataclass(frozen=True)
class StoredFile:
    """The bytes of one video.

    Attributes:
        path: a path, or a URL of libav's own, by which libav opens the video itself; None where it has to read through
            an object of Python.
        open: opens the same bytes as a binary file that can seek, position 0 being the first byte of the video.
        size: bytes.
        key: equal as long as the bytes are, as far as can be told without reading them; None if that is not known.
        held: what must live as long as `path` is to be there, such as the lock on a copy in the cache: keep the
            `StoredFile` while the video is open.
    """

    path: str | None
    open: Callable[[], BinaryIO]
    size: int
    key: tuple[Any, ...] | None
    held: Any = field(default=None, repr=False, compare=False)

    @property
    def libav(self) -> Any:
        """What `av.open` takes: `path`, or an object with `read` and `seek`, a new one each time."""
        return self.open() if self.path is None else self.path


def regular_file(path: str) -> os.stat_result:
    """Return what the system says of a file on disk.

    Raises UnreadableError where there is none, or no regular one: a pipe, socket or device might never end.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise UnreadableError(path, getattr(error, "strerror", None) or str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError(path, f"not a regular file but a {_kind_of(status.st_mode)}")
    return status


def _kind_of(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")
