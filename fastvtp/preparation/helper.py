"""A process that works on one video at a time, and is ended where it takes too long: no file hangs or ends a run."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fastvtp.errors import UserError

T = TypeVar("T")

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_TRIES = 2  # of a helper that is lost on a file: it may have been the machine, not the file


class LostOnFileError(UserError):
    """A piece of work that the process did not come back from, twice; the message says how."""


_idle: list[Helper] = []
_idle_lock = threading.Lock()


@contextmanager
def lent_helper(seconds: float) -> Iterator[Helper]:
    """Lend a helper that is idle, or a new one; starting a process takes longer than many a file."""
    with _idle_lock:
        helper = _idle.pop() if _idle else Helper(seconds)
    helper.seconds = seconds
    try:
        yield helper
    except BaseException:
        helper.close()
        raise
    with _idle_lock:
        _idle.append(helper)


def end_idle_helpers() -> None:
    """End the processes of helpers that nobody has borrowed."""
    with _idle_lock:
        while _idle:
            _idle.pop().close()


class Helper:
    """Calls functions in a process of its own, a context manager.

    The process is started at the first call and again after it was lost. It ends with this one, however that ends.
    Several threads may each have their own.

    seconds: that a call may take.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._process: Any = None
        self._connection: Any = None

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return `function(*arguments)`, of a module, where all of these can be pickled.

        Raises:
            UserError: as the function does; another error of its own becomes one that names it.
            OSError: there is no room to write.
            LostOnFileError: it took longer than `seconds`, or its process ended, on two tries.
        """
        for tried in range(1, _TRIES + 1):
            process = self._start() if self._process is None else self._process
            try:
                self._connection.send((function, arguments))
                if self._connection.poll(self.seconds):
                    result, error = self._connection.recv()
                    if error is not None:
                        raise error
                    return result
                lost = f"took longer than {self.seconds:g} s"
            except (EOFError, ConnectionError):
                process.join()
                lost = f"ended the process that worked on it ({_ending(process.exitcode)})"
            self.close()
            if tried == _TRIES:
                raise LostOnFileError(lost)
        raise AssertionError("unreachable")

    def _start(self) -> Any:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        return self._process


def _ending(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _serve(connection: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C the parent tells
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 writes its settings to the terminal for every clip
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = function(*arguments), None
        except UserError as error:
            answer = None, error
        except Exception as error:  # what libraries raise over a file that nobody foresaw is about that file
            if (number := getattr(error, "errno", None)) in _NO_ROOM:
                answer = None, OSError(number, os.strerror(number))
            else:
                answer = None, UserError(f"{type(error).__name__}: {error}".splitlines()[0])
        connection.send(answer)
