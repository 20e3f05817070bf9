"""Files of Python over a part of another file, or over whatever can hand out a range of bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import BinaryIO, cast


class RangeFile(io.RawIOBase):
    """A file that reads by ranges.

    Args:
        size: bytes of the file.
        read_at: returns the bytes from its first argument to before its second one, both within the file; what it
            raises comes through.
        close: called once the file is closed.
    """

    def __init__(self, size: int, read_at: Callable[[int, int], bytes], close: Callable[[], None] | None = None):
        self._size, self._read_at, self._close, self._at = size, read_at, close, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"seek to {start + offset}, before the first byte")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        end = min(self._size, self._at + len(buffer))
        if end <= self._at:
            return 0
        data = self._read_at(self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed and self._close is not None:
            self._close()
        super().close()


def buffered(file: RangeFile, buffer: int = 1 << 16) -> BinaryIO:
    """Return the file with a buffer before it, so that many small reads are few ranges."""
    return cast(BinaryIO, io.BufferedReader(file, buffer))


class Scan:
    """Reads of a file that goes forward and skips parts, as who reads headers does: `read_at` of a `RangeFile`.

    Where parts are skipped little more is read than asked for; where they are not, ever more at once.

    Args:
        size: bytes of the file.
        read_at: as of `RangeFile`, of the file itself.
        least, most: bytes that are read at once.
    """

    def __init__(self, size: int, read_at: Callable[[int, int], bytes], least: int = 1 << 15, most: int = 1 << 23):
        self._size, self._read_at, self._least, self._most = size, read_at, least, most
        self._start, self._data, self._ahead = 0, b"", least

    def __call__(self, first: int, last: int) -> bytes:
        end = self._start + len(self._data)
        if not self._start <= first <= last <= end:
            goes_on = self._data and self._start <= first < end + self._ahead
            self._ahead = min(2 * self._ahead, self._most) if goes_on else self._least
            self._start, self._data = first, self._read_at(first, min(max(last, first + self._ahead), self._size))
        return self._data[first - self._start : last - self._start]


def open_part(path: str, start: int, size: int, buffer: int = 1 << 16) -> BinaryIO:
    """Open `size` bytes of a file from `start` on as a file of its own; `buffer` are read at once at least."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def read_at(first: int, last: int) -> bytes:
        return os.pread(descriptor, last - first, start + first)

    return buffered(RangeFile(size, read_at, lambda: os.close(descriptor)), buffer)
