"""CPU time, user and system, of a process with all its threads and children: what a machine that is shared measures."""

import os
import threading
import time
from pathlib import Path

_LOOK_EVERY, _LOOKS = 0.02, 6  # seconds between looks, and how many in a row must find nothing running


def cpu_seconds() -> float:
    """Return the CPU time of this process, of its children that live, of theirs, and of those that have ended."""
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system + sum(map(_of, _descendants(os.getpid())))


def settled_cpu_seconds(limit: float = 60.0) -> float:
    """Return `cpu_seconds` once all threads wait for something: what is made ahead belongs to what was asked for.

    A thread that is ready to run counts as running, however long a busy machine keeps it from doing so.
    """
    deadline, quiet = time.monotonic() + limit, 0
    while quiet < _LOOKS and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY)
        quiet = quiet + 1 if not _any_runs() else 0
    return cpu_seconds()


def _any_runs() -> bool:
    own = threading.get_native_id()
    for process in (os.getpid(), *_descendants(os.getpid())):
        for task in Path(f"/proc/{process}/task").glob("*/stat"):
            try:
                state = task.read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state in "RD" and task.parent.name != str(own):
                return True
    return False


def _of(process: int) -> float:
    try:
        return time.clock_gettime(~process << 3 | 2)  # the clock that clock_getcpuclockid(3) names
    except OSError:
        return 0.0


def _descendants(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        found += [*children, *(one for child in children for one in _descendants(child))]
    return found
