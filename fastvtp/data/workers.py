"""Worker processes that make samples ahead of the training step, and outlive whatever a video does to one of them.

A thread of the main process hands the numbers of samples to the workers and collects what they make; pixels come
through memory that both share, which has no name: nothing is left in /dev/shm whatever is killed, and the size of
/dev/shm does not matter. Whether a worker lives and how long it has been at a file is looked at several times a second:

- One that ended, or that somebody stopped, is replaced, and what it had to make is made again.
- One that takes longer than `seconds` for a file is ended, and the file counts as undecodable from then on.
- A file at which workers end three times in a row counts as undecodable as well.

The source is stateless, so samples are the same whatever happened on the way. This module imports neither torch nor
DALI, and its workers run no line of the user's script.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

from fastvtp.data.locations import without_secrets
from fastvtp.data.shared_slots import SharedSlots
from fastvtp.data.source import ENDED_WORKERS, STOP_SIGNALS, TOOK_TOO_LONG, ClipSource, Sample
from fastvtp.errors import UserError

logger = logging.getLogger(__name__)

_LOOK_EVERY, _LOOK_FOR_PARENT, _TO_END = 0.25, 1.0, 5.0  # seconds
_QUEUED = 2  # samples that a worker holds: one in the making, one to go on with
_ENDS_AT_A_FILE = 3  # the machine may have run out of memory twice
_MOST_LOST = 20  # workers in a row, without a sample made in between

_START = """
import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
from fastvtp.data.workers import serve
serve(connection, int(sys.argv[2]))
"""


class WorkersLostError(RuntimeError):
    """Workers end one after the other without making anything; what they wrote on the way is above."""


@dataclass
class _Task:
    number: int
    slot: int
    begun: int
    ends: int = 0


@dataclass
class _Worker:
    """A process at place `place`; `tasks` are those that it was sent, in their order."""

    place: int
    process: subprocess.Popen[bytes]
    connection: Connection
    tasks: deque[_Task] = field(default_factory=deque)


class ClipWorkers:
    """Makes the samples of a stream, in their order, in worker processes; a context manager.

    Args:
        source: makes one sample.
        num_workers: processes, at least 1.
        ahead: samples made before they are asked for.
        slot_bytes: shared memory for a sample. What does not fit comes another way, at the cost of a copy.
        seconds: longest time that a file may take; None: any.
        in_a_row: samples that the same worker makes, from each number on that this divides, see `Batches.repeats`.
    """

    def __init__(
        self,
        source: ClipSource,
        *,
        num_workers: int,
        ahead: int,
        slot_bytes: int,
        seconds: float | None = None,
        in_a_row: int = 1,
    ):
        self._source, self._seconds = source, seconds
        self._in_a_row, self._last = in_a_row, cast("_Worker | None", None)
        self._memory = SharedSlots.made(num_workers, ahead, slot_bytes)
        self._numbers: Iterator[int] = iter(())
        self._free = list(range(ahead))
        self._waiting: deque[_Task] = deque()
        self._taken: list[int] = []
        self._done: dict[int, tuple[int, Sample | Exception]] = {}
        self._failure: BaseException | None = None
        self._closed, self._lost, self._begun = False, 0, 0
        self._news: list[tuple[str, str]] = []
        self._changed = threading.Condition()
        self._wake, self._woken = Pipe()
        self._workers: list[_Worker | None] = [None] * num_workers
        self._thread = threading.Thread(target=self._run, name="fastvtp workers", daemon=True)
        self._thread.start()

    def __enter__(self) -> ClipWorkers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """The process numbers of the workers that are running now."""
        return tuple(worker.process.pid for worker in self._workers if worker is not None)

    def begin(self, numbers: Iterator[int], bad: Mapping[str, str] = {}) -> None:
        """Make the samples of these numbers from now on, and forget those made before that nobody took.

        bad: reason by path, for files that the workers are to count as `ClipSource.bad` before they make the first.
        """
        with self._changed:
            self._numbers = numbers
            self._begun += 1
            self._news += bad.items()
            self._free += [slot for slot, _ in self._done.values()]
            self._done.clear()
            self._wake.send_bytes(b"")

    def take(self, numbers: Sequence[int]) -> list[Sample]:
        """Wait for the next samples, which have these numbers. Their arrays hold until the next call.

        Raises:
            NoDecodableClipError: as `ClipSource.load`.
            WorkersLostError: no worker stays alive.
        """
        for slot in self._taken:
            self._memory.empty(slot)
        with self._changed:
            self._free += self._taken
            self._taken = []
            self._wake.send_bytes(b"")
            while not (self._failure or all(number in self._done for number in numbers)):
                self._changed.wait()
            if self._failure:
                raise self._failure
            found = [self._done.pop(number) for number in numbers]
        self._taken = [slot for slot, _ in found]
        for _, made in found:
            if isinstance(made, Exception):
                raise made
        return [made for _, made in found if isinstance(made, Sample)]

    def close(self) -> None:
        """End the workers and give their memory back as soon as nobody holds an array of theirs."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._wake.send_bytes(b"")
        self._thread.join()
        self._wake.close()
        self._woken.close()
        self._memory.close()

    # --- The thread

    def _run(self) -> None:
        # Workers begin with the signals blocked that this thread has blocked: schedulers send these to every process of
        # a job, and Ctrl-C reaches every one of a terminal; the run saves itself first, and ends its workers.
        signal.pthread_sigmask(signal.SIG_BLOCK, (*STOP_SIGNALS, signal.SIGINT, signal.SIGHUP))
        try:
            while not self._closed:
                for place, worker in enumerate(self._workers):
                    if worker is None:
                        self._workers[place] = self._started(place)
                self._hand_out()
                self._collect()
                self._look_after()
        except BaseException as error:  # whoever waits for a sample has to hear of it
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        finally:
            for worker in self._workers:
                if worker is not None:
                    _end(worker)

    def _started(self, place: int) -> _Worker:
        self._memory.tell(place, -1)
        ours, theirs = Pipe()
        with theirs:
            handles = (theirs.fileno(), self._memory.descriptor)
            process = subprocess.Popen(
                [sys.executable, "-c", _START, *map(str, handles)], pass_fds=handles, stdin=subprocess.DEVNULL
            )
        worker = _Worker(place, process, ours)
        with contextlib.suppress(OSError):  # one that has ended already is noticed by its end
            ours.send([str(Path(entry or ".").absolute()) for entry in sys.path])
            ours.send((place, self._memory.layout, self._source))
        return worker

    def _hand_out(self) -> None:
        with self._changed:
            news, self._news = self._news, []
            self._free += [task.slot for task in self._waiting if task.begun != self._begun]
            self._waiting = deque(task for task in self._waiting if task.begun == self._begun)
            while self._free:
                number = next(self._numbers, None)
                if number is None:
                    break
                self._waiting.append(_Task(number, self._free.pop(), self._begun))
        for path, reason in news:
            self._set_aside(path, reason)
        while self._waiting:
            # of a row that shows the same frames: where they have been decoded
            worker = self._last if self._waiting[0].number % self._in_a_row else None
            if worker is None or worker not in self._workers:
                ready = [worker for worker in self._workers if worker and len(worker.tasks) < _QUEUED]
                if not ready:
                    return
                worker = min(ready, key=lambda worker: len(worker.tasks))
            task, self._last = self._waiting.popleft(), worker
            worker.tasks.append(task)
            with contextlib.suppress(OSError):
                worker.connection.send((task.number, task.slot))

    def _collect(self) -> None:
        workers: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers if worker is not None}
        for ready in wait([*workers, self._woken], _LOOK_EVERY):
            if ready is self._woken:
                self._woken.recv_bytes()
                continue
            worker = workers[ready]
            try:
                while worker.connection.poll():
                    self._note(worker, worker.connection.recv())
            except (EOFError, OSError):
                self._replace(worker, _how_it_ended(worker.process), at_file=True)

    def _note(self, worker: _Worker, made: Sample | Exception) -> None:
        task = worker.tasks.popleft()
        self._lost = 0
        if isinstance(made, Sample):
            made = replace(made, arrays=self._memory.found(task.slot, made.arrays))
        with self._changed:
            if task.begun != self._begun:
                self._free.append(task.slot)
                return
            self._done[task.number] = (task.slot, made)
            self._changed.notify_all()

    def _look_after(self) -> None:
        for worker in self._workers:
            if worker is None:
                continue
            record, since = self._memory.told(worker.place)
            if _is_stopped(worker.process.pid):
                self._replace(worker, "was stopped")
            elif record >= 0 and self._seconds is not None and time.monotonic() - since > self._seconds:
                self._replace(worker, f"took longer than {self._seconds:g} s", at_file=True, bad_as=TOOK_TOO_LONG)

    def _replace(self, worker: _Worker, how: str, *, at_file: bool = False, bad_as: str | None = None) -> None:
        """End what is left of a worker, and have its samples made again.

        at_file: whether the file it was at may be the reason, which it counts as the third time. bad_as: why the file
        is bad, if that is certain.
        """
        _end(worker)
        record, _ = self._memory.told(worker.place)  # after its end: what it was at then
        self._workers[worker.place] = None
        self._waiting.extendleft(reversed(worker.tasks))
        path = self._source.path_of(record) if record >= 0 and worker.tasks else None
        place = f" while reading {without_secrets(path)}" if path else ""
        logger.warning("decoding worker %d %s%s; another takes its place", worker.process.pid, how, place)
        if path and at_file:
            task = worker.tasks[0]
            task.ends += 1
            if bad_as is None and task.ends >= _ENDS_AT_A_FILE:
                bad_as = ENDED_WORKERS
            if bad_as:
                task.ends = 0
                self._set_aside(path, f"{bad_as} {self._seconds:g} s" if bad_as == TOOK_TOO_LONG else bad_as)
        self._lost += 1
        if self._lost > _MOST_LOST:
            raise WorkersLostError(f"{_MOST_LOST} decoding workers ended in a row, the last {how}{place}")

    def _set_aside(self, path: str, reason: str) -> None:
        """Let every worker, and those still to start, count a file as undecodable."""
        self._source.bad[path] = reason
        for worker in self._workers:
            if worker is not None:
                with contextlib.suppress(OSError):
                    worker.connection.send((path, reason))


def _end(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a dead disk does not even end by SIGKILL
        worker.process.wait(_TO_END)


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(_TO_END)
    except subprocess.TimeoutExpired:
        return "closed its connection"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _is_stopped(pid: int) -> bool:
    """Tell whether a process was stopped, by SIGSTOP or a debugger; False where the system does not say."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in (b"T", b"t")


# --- In a worker


def serve(connection: Connection, descriptor: int) -> None:
    """Make the samples that come over the connection, until the main process closes it or ends."""
    import av  # noqa: F401 # here: on a busy machine its import shall not count as time spent at the first file

    place, layout, source = connection.recv()
    memory, tasks = SharedSlots(descriptor, *layout), SimpleQueue[tuple[int, int]]()
    threading.Thread(target=_listen, args=(connection, source, tasks), daemon=True).start()

    source.before_attempt = partial(memory.tell, place)
    while True:
        number, slot = tasks.get()
        made: Sample | Exception
        try:
            sample = source.load(number)
            made = replace(sample, arrays=memory.placed(slot, sample.arrays))
        except UserError as error:
            made = error
        except Exception as error:
            made = RuntimeError("".join(traceback.format_exception(error)))
        memory.tell(place, -1)
        connection.send(made)


def _listen(connection: Connection, source: ClipSource, tasks: SimpleQueue[tuple[int, int]]) -> None:
    parent = os.getppid()
    try:
        while True:
            while not connection.poll(_LOOK_FOR_PARENT):
                if os.getppid() != parent:
                    os._exit(1)
            message = connection.recv()
            if isinstance(message[0], str):
                source.bad[message[0]] = message[1]
            else:
                tasks.put(message)
    except (EOFError, OSError):
        os._exit(0)
