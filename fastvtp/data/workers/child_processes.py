"""Starts processes that call one function of a module, run no line of the user's script, and end with this process."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

_LOOK_FOR_PARENT, _TO_END = 1.0, 5.0  # seconds
_OF_EVERY_PROCESS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)

# The working folder is no place to import from: a file of the user's may bear the name of a library's.
_START = """
import sys
sys.path[:] = filter(None, sys.path)
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
from fastvtp.data.workers.child_processes import serve
serve(connection)
"""


def start(target: Callable[..., object], *descriptors: int) -> tuple[subprocess.Popen[bytes], Connection]:
    """Start a process that calls `target(connection, *descriptors)`, and ends when that returns or this process ends.

    It ignores the signals that schedulers and terminals send to every process of a job: what becomes of it is up to
    this process. Modules are looked for where this one does.

    Args:
        target: a function of a module, which can be pickled by its name; it gets one end of a pipe, an object of
            `multiprocessing.connection.Connection`.
        descriptors: open files that the process is to have, under the same numbers.

    Returns:
        The process and the other end.
    """
    ours, theirs = Pipe()
    # A signal that is blocked here is so in the process from its first instruction.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_EVERY_PROCESS)
    try:
        with theirs:
            command = [sys.executable, "-c", _START, str(theirs.fileno())]
            handed = (theirs.fileno(), *descriptors)
            process = subprocess.Popen(command, pass_fds=handed, stdin=subprocess.DEVNULL)
    except BaseException:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    with contextlib.suppress(OSError):  # one that has ended already is noticed by its end
        ours.send([str(Path(entry or ".").absolute()) for entry in sys.path])
        ours.send((target, descriptors))
    return process, ours


def cores() -> int:
    """Return how many cores this process may use, which a scheduler or a container may have made fewer than there
    are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, whatever it does; what is left in its pipe can still be read."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a dead disk does not even end by SIGKILL
        process.wait(_TO_END)


def how_it_ended(process: subprocess.Popen[bytes]) -> str:
    """Wait until a process whose connection is closed has ended; returns "SIGKILL", "exit code 3" or the like."""
    try:
        code = process.wait(_TO_END)
    except subprocess.TimeoutExpired:
        return "closed its connection"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def pass_on(record: logging.LogRecord) -> None:
    """Write to this process's log what another one has to say, as far as its level is shown here."""
    if (logger := logging.getLogger(record.name)).isEnabledFor(record.levelno):
        logger.handle(record)


# --- In the process


class ToParent(logging.Handler):
    """Sends log records, their texts complete, and whatever else is to be sent through a connection that both use."""

    def __init__(self, connection: Connection):
        super().__init__()
        self._connection = connection

    def send(self, message: Any) -> None:
        """Send an object that can be pickled."""
        self.acquire()
        try:
            self._connection.send(message)
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        text, place = record.getMessage(), (record.pathname, record.lineno)
        with contextlib.suppress(OSError):
            self._connection.send(logging.LogRecord(record.name, record.levelno, *place, text, None, None))


def tell_parent(connection: Connection) -> ToParent:
    """Send what this process logs through a connection; returns what sends everything else through it as well."""
    to_parent = ToParent(connection)
    logging.basicConfig(level=logging.INFO, handlers=[to_parent])
    return to_parent


def serve(connection: Connection) -> None:
    """Call the function that `start` was given."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    target, descriptors = connection.recv()
    target(connection, *descriptors)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_FOR_PARENT)
    os._exit(1)
