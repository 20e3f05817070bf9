"""Locks by which the processes that work in one folder of shards keep out of each other's way.

Locks are those of `flock`, which end with the process that holds them, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_FOLDER = ".locks"
_RUN = "run"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class SharedFolder:
    """The folder of shards while a run is at work in it, a context manager.

    output: the folder, which is there.
    """

    def __init__(self, output: Path):
        self._output = output
        self._held: int | None = None

    def __enter__(self) -> SharedFolder:
        self._held = _lock(self._output / _FOLDER / _RUN, fcntl.LOCK_SH)
        if self._held is None:
            logger.warning(
                "%s: files cannot be locked there: let no two runs work in it at once; .*.tmp that a kill leaves stay",
                self._output,
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._release()
        self._alone(lambda: shutil.rmtree(self._output / _FOLDER, ignore_errors=True))

    def if_alone(self, do: Callable[[], None]) -> None:
        """Call `do` where no other run is at work in the folder; until it returns, none begins. This run must have
        nothing under way."""
        self._release()
        try:
            self._alone(do)
        finally:
            self._held = _lock(self._output / _FOLDER / _RUN, fcntl.LOCK_SH)

    def _alone(self, do: Callable[[], None]) -> None:
        try:
            held = _lock(self._output / _FOLDER / _RUN, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if held is not None:
            try:
                do()
            finally:
                os.close(held)

    def _release(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


@contextmanager
def shard_lock(output: Path, name: str) -> Iterator[bool]:
    """Wait until nobody else works on a shard, and keep others from it until the block ends.

    Gives whether it is locked: on a filesystem without locks it is not.
    """
    path = output / _FOLDER / name
    try:
        held = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("%s: another process is at work on shard %s: waiting for it", output, name)
        held = _lock(path, fcntl.LOCK_EX)
    try:
        yield held is not None
    finally:
        if held is not None:
            os.close(held)


def _lock(path: Path, kind: int) -> int | None:
    """Lock a file, made if there is none, and return its descriptor; None where files cannot be locked.

    Raises BlockingIOError where another process has it, if `kind` says not to wait.
    """
    while True:
        path.parent.mkdir(exist_ok=True)
        try:
            held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the folder was deleted in between, by the last run that left it
            continue
        try:
            fcntl.flock(held, kind)
            if _is_at(held, path):
                return held
        except OSError as error:
            os.close(held)
            if error.errno in _NO_LOCKS:
                return None
            raise
        os.close(held)


def _is_at(held: int, path: Path) -> bool:
    """Tell whether an open file is still the one of that path."""
    try:
        return os.path.samestat(os.fstat(held), os.stat(path))
    except FileNotFoundError:
        return False
