"""A folder of copies that stays within a bound, shared by any number of processes.

Nothing but file locks and renames coordinates them, so that one that is killed leaves nothing in the others' way. A
copy that a process holds is locked (flock) and is never removed; of the others those used longest ago go first, where
the bound is reached and where the disk is full before that.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

_KEPT = 0.9  # share of what may stay that does once something had to go, so that not every copy looks through all
_LEDGER = ".bytes"
_PARTIAL = ".partial-"
_SWEEP_SECONDS = 300.0  # between two looks for what killed processes left
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CANNOT_ALLOCATE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_CLOCKS_DIFFER = 60.0  # seconds by which a file server's clock may be ahead


class HeldCopy:
    """A copy in the cache, which stays there as long as this object lives or until `close`.

    Attributes:
        path: where it lies.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self._file = path, file

    def close(self) -> None:
        """Let go of the copy; files opened by its path stay readable."""
        self._file.close()

    def __del__(self) -> None:
        self.close()


class DiskCache:
    """The copies in a folder.

    Args:
        folder: made where it is missing.
        most_bytes: of all copies together, those being written included.
    """

    def __init__(self, folder: Path, most_bytes: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._most = folder, most_bytes
        self._next_sweep = 0.0

    def check_writable(self) -> None:
        """Raise OSError where no copies can be written, or locks do not work."""
        with self._ledger():
            pass

    def hold(self, name: str) -> HeldCopy | None:
        """Return the copy of that name, or None where there is none. Raises OSError where it cannot be opened."""
        path = self._folder / name
        try:
            file = open(path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            is_there = os.fstat(file.fileno()).st_nlink
        except OSError:
            file.close()
            raise
        if not is_there:  # removed before it was locked
            file.close()
            return None
        with suppress(OSError):
            os.utime(path)  # the times of change say what was used last
        return HeldCopy(path, file)

    def add(self, name: str, size: int, write: Callable[[BinaryIO], None]) -> HeldCopy | None:
        """Let `write` fill a new copy of `size` bytes; returns None, and writes nothing, where there is no room.

        What `write` raises comes through, and nothing is left of the copy then. Raises OSError where the disk has no
        room, as a rule before `write` is called, and where `write` gave another number of bytes.
        """
        partial = self._reserve(size)
        if partial is None:
            return None
        path, file = partial
        try:
            write(file)
            if (written := file.tell()) != size:  # the file has its size already: what is missing would be zeros
                raise OSError(errno.EIO, f"{written} bytes came of {size}")
            file.flush()
            return self._publish(path, file, name, size)
        except BaseException:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # the disk is full
                file.close()
            with self._ledger() as ledger:
                self._write(ledger, self._read(ledger) - size)
            raise

    def _reserve(self, size: int) -> tuple[Path, BinaryIO] | None:
        """Make room, and a locked file of that size under a name that nobody looks for."""
        if size > self._most:
            return None
        with self._ledger() as ledger:
            total = self._read(ledger)
            if time.monotonic() >= self._next_sweep:
                total -= self._sweep()
                self._next_sweep = time.monotonic() + _SWEEP_SECONDS
            if total + size > self._most:
                total = self._shrink(self._most - size)
                if total + size > self._most:
                    self._write(ledger, total)
                    return None
            try:
                made = self._partial(size)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                total = self._shrink(total - self._lacking(size, error))
                self._write(ledger, total)
                made = self._partial(size)
            self._write(ledger, total + size)
            return made

    def _lacking(self, size: int, error: OSError) -> int:
        """Return how many bytes have to go for a file of `size`, by what the disk says; of a quota nothing is known."""
        free = _free(self._folder) if error.errno == errno.ENOSPC else 0
        return size - free if free < size else size

    def _partial(self, size: int) -> tuple[Path, BinaryIO]:
        """Make a locked file that has at once the size that it counts with. Raises OSError where the disk is full."""
        path = self._folder / f"{_PARTIAL}{secrets.token_hex(8)}"
        file = open(path, "x+b")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            _allocate(file, size)
        except BaseException:
            file.close()
            path.unlink(missing_ok=True)
            raise
        return path, file

    def _publish(self, partial: Path, file: BinaryIO, name: str, size: int) -> HeldCopy:
        with self._ledger() as ledger:  # nothing is removed meanwhile: a lock cannot be weakened without letting go
            # Where another process was as quick its copy stays, for it is held by its name.
            if (other := self.hold(name)) is not None:
                partial.unlink()
                file.close()
                self._write(ledger, self._read(ledger) - size)
                return other
            os.replace(partial, self._folder / name)
            fcntl.flock(file, fcntl.LOCK_SH)
        return HeldCopy(self._folder / name, file)

    @contextmanager
    def _ledger(self) -> Iterator[int]:
        """Lock the file that says how many bytes there are."""
        descriptor = os.open(self._folder / _LEDGER, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _read(self, ledger: int) -> int:
        text = os.pread(ledger, 32, 0)
        return int(text) if text.strip().isdigit() else sum(size for _, size, _ in self._copies())

    def _write(self, ledger: int, total: int) -> None:
        os.pwrite(ledger, b"%-32d" % max(total, 0), 0)

    def _sweep(self) -> int:
        """Remove what killed processes left of copies; returns its bytes."""
        left = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.startswith(_PARTIAL):
                    with suppress(FileNotFoundError):
                        size = entry.stat(follow_symlinks=False).st_size
                        left += size if _removed_unless_held(entry.path) else 0
        return left

    def _copies(self) -> list[tuple[float, int, str]]:
        """List all copies, and what killed processes left of some: when used last, bytes, path."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name != _LEDGER:
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        found.append((status.st_mtime, status.st_size, entry.path))
        return found

    def _shrink(self, most: int) -> int:
        """Remove copies until no more than `most` bytes are left, those used longest ago first; none where so many
        cannot go, be it that they are held. Returns the bytes that are left."""
        # what seems to be used later than now stems from before the clock was set back: nobody knows how long ago
        latest = time.time() + _CLOCKS_DIFFER
        copies = sorted(self._copies(), key=lambda copy: (copy[0] <= latest, copy))
        total, whole = sum(size for _, size, _ in copies), []
        for _, size, path in copies:
            if not os.path.basename(path).startswith(_PARTIAL):
                whole.append((size, path))
            elif _removed_unless_held(path):
                total -= size
        left, target, going = total, int(most * _KEPT), []
        for size, path in whole:
            if left <= target:
                break
            if not _is_held(path):
                going.append((size, path))
                left -= size
        if left > most:
            return total
        for size, path in going:
            total -= size if _removed_unless_held(path) else 0
        return total


def _allocate(file: BinaryIO, size: int) -> None:
    """Give an empty file its size, and set its room on the disk aside where its filesystem can do that.

    Raises OSError where the disk has no room.
    """
    # Not by posix_fallocate: where the filesystem cannot, the C library writes to every block of the file instead.
    if (set_aside := _fallocate()) is not None:
        try:
            set_aside(file.fileno(), size)
        except OSError as error:
            if error.errno not in _CANNOT_ALLOCATE:
                raise
        else:
            return
    if size > _free(file.fileno()):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    file.truncate(size)


@cache
def _fallocate() -> Callable[[int, int], None] | None:
    """Return Linux' call by which a file is given so many bytes on the disk; None of other systems."""
    library = ctypes.CDLL(None, use_errno=True)
    # the name without the number takes 32 bits on some machines
    call: Any = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if call is None:
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    def set_aside(descriptor: int, size: int) -> None:
        while call(descriptor, 0, 0, size):
            if (number := ctypes.get_errno()) != errno.EINTR:
                raise OSError(number, os.strerror(number))

    return set_aside


def _free(place: Path | int) -> int:
    """Return the bytes that are free on the disk of a folder or an open file, as far as it says so."""
    told = os.statvfs(place)
    return told.f_bavail * told.f_frsize if told.f_blocks else 1 << 62


def _is_held(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _removed_unless_held(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:  # held by another
        return False
    return True
