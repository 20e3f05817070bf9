"""A process that works on one video at a time, and is ended where it takes too long: no file hangs or ends a run."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from fastvtp.data.workers.child_processes import end, how_it_ended, pass_on, start, tell_parent
from fastvtp.errors import UserError

T = TypeVar("T")

_TRIES = 2  # of a helper that is lost on a file: it may have been the machine, not the file


class LostOnFileError(UserError):
    """A piece of work that the process did not come back from, twice; the message says how."""


_idle: list[Helper] = []
_told: set[str] = set()  # what helpers that were lent have said, by the text, until the idle ones are ended
_idle_lock = threading.Lock()


@contextmanager
def lent_helper(seconds: float) -> Iterator[Helper]:
    """Lend a helper that is idle, or a new one; starting a process takes longer than many a file."""
    with _idle_lock:
        helper = _idle.pop() if _idle else Helper(seconds, _told)
    helper.seconds = seconds
    try:
        yield helper
    except BaseException:
        helper.close()
        raise
    with _idle_lock:
        _idle.append(helper)


def end_idle_helpers() -> None:
    """End the processes of helpers that nobody has borrowed, and forget what was said by those that were lent."""
    _told.clear()
    with _idle_lock:
        while _idle:
            _idle.pop().close()


class Helper:
    """Calls functions in a process of its own, a context manager.

    The process is started at the first call and again after it was lost. It ends with this one, however that ends.
    Several threads may each have their own.

    Args:
        seconds: that a call may take, from when the process has imported the module of the function.
        told: texts that are not written to the log again, though a process says them; helpers may share them, for each
            that opens the same file would say the same of it.
    """

    def __init__(self, seconds: float, told: set[str] | None = None):
        self.seconds = seconds
        self._told: set[str] = set() if told is None else told
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._stopped = False

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; by the thread that calls functions in it."""
        if self._process is not None and self._connection is not None:
            end(self._process)
            self._connection.close()
            self._process = self._connection = None

    def stop(self) -> None:
        """End the process, from another thread: a call on its way is lost, and no other is made."""
        self._stopped = True
        if (process := self._process) is not None:
            process.kill()

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return `function(*arguments)`, of a module, where all of these can be pickled.

        Raises:
            UserError: as the function does; another error of its own becomes one that names it.
            OSError: as the function does, such as where there is no room to write.
            LostOnFileError: it took longer than `seconds`, or its process ended, on two tries.
        """
        lost = "was stopped"
        for _ in range(_TRIES):
            if self._stopped:
                break
            if self._process is None or self._connection is None:
                self._process, self._connection = start(serve)
                if self._stopped:  # while it was started
                    break
            try:
                self._connection.send((function, arguments))
                self._answer(None)  # the function is there: what its import takes does not count
                result, error = self._answer(self.seconds)
            except TimeoutError:
                lost = f"took longer than {self.seconds:g} s"
                self.close()
                continue
            except (EOFError, OSError):
                lost = f"ended the process that worked on it ({how_it_ended(self._process)})"
                self.close()
                continue
            if error is not None:
                raise error
            return result
        raise LostOnFileError(lost)

    def _answer(self, seconds: float | None) -> Any:
        """Wait for what the process sends, and write to the log what it has to say meanwhile, once. Raises
        TimeoutError."""
        assert self._connection is not None
        until = None if seconds is None else time.monotonic() + seconds
        while self._connection.poll(None if until is None else max(0.0, until - time.monotonic())):
            message = self._connection.recv()
            if not isinstance(message, logging.LogRecord):
                return message
            if (text := message.getMessage()) not in self._told:
                self._told.add(text)
                pass_on(message)
        raise TimeoutError


def serve(connection: Connection) -> None:
    """Call the functions that come over the connection, and send back what they return or raise."""
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 writes its settings to the terminal for every clip
    import av  # noqa: F401 # here: on a busy machine its import shall not count as time spent at the first file

    to_parent = tell_parent(connection)
    while True:
        try:
            function, arguments = connection.recv()
            to_parent.send(None)
            try:
                answer = function(*arguments), None
            except UserError as error:
                answer = None, error
            except OSError as error:  # made anew: those of libav cannot be pickled
                said = error.strerror or str(error) or type(error).__name__
                answer = None, OSError(error.errno or 0, said, error.filename)
            except Exception as error:  # what libraries raise over a file that nobody foresaw is about that file
                answer = None, UserError(f"{type(error).__name__}: {error}".splitlines()[0])
            to_parent.send(answer)
        except (EOFError, ConnectionError):  # this process is not needed any longer
            return
