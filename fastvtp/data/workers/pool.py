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
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, cast

from fastvtp.data.locations import without_secrets
from fastvtp.data.source import ENDED_WORKERS, TOOK_TOO_LONG, ClipSource, Sample
from fastvtp.data.workers.child_processes import end, how_it_ended, pass_on, start
from fastvtp.data.workers.shared_slots import SharedObject, SharedSlots
from fastvtp.data.workers.worker_process import STARTING, serve

logger = logging.getLogger(__name__)

_LOOK_EVERY = 0.25  # seconds
_TO_START = 120.0  # seconds, of a machine that is busy
_SUSPENDED = 2.0  # seconds without a look: this process, and the workers with it, did not run meanwhile
_QUEUED = 2  # samples that a worker holds: one in the making, one to go on with
_ENDS_AT_A_FILE = 3  # the machine may have run out of memory twice
_MOST_LOST = 20  # workers in a row, without a sample made in between


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
    """A process at place `place`; `tasks` are those that it was sent, in their order, and `told` is how many of the bad
    files it has heard of."""

    place: int
    process: subprocess.Popen[bytes]
    connection: Connection
    tasks: deque[_Task] = field(default_factory=deque)
    told: int = 0


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
        self._shared_source = SharedObject.made(source)
        self._bad: list[tuple[str, str]] = []  # since then
        self._told: set[str] = set()
        self._numbers: Iterator[int] = iter(())
        self._free = list(range(ahead))
        self._waiting: deque[_Task] = deque()
        self._taken: list[int] = []
        self._done: dict[int, tuple[int, Sample | Exception]] = {}
        self._failure: BaseException | None = None
        self._closed, self._lost, self._begun = False, 0, 0
        self._looked = self._resumed = time.monotonic()
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

    def set_aside(self, bad: Mapping[str, str]) -> None:
        """Add to `ClipSource.bad`, reason by path, here and in every worker, those still to start included: before any
        of them makes a sample of what `begin` begins next."""
        with self._changed:
            self._source.bad.update(bad)
            self._bad += bad.items()

    def begin(self, numbers: Iterator[int]) -> None:
        """Make the samples of these numbers from now on, and forget those made before that nobody took."""
        with self._changed:
            self._numbers = numbers
            self._begun += 1
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
        if threading.current_thread() is self._thread:  # the garbage of a loader is collected wherever it happens to be
            return
        self._thread.join()
        for shared in (self._wake, self._woken, self._memory, self._shared_source):
            shared.close()

    # --- The thread

    def _run(self) -> None:
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
        self._memory.tell(place, STARTING)
        process, ours = start(serve, self._memory.descriptor, self._shared_source.descriptor)
        worker = _Worker(place, process, ours)
        # Little is sent, so that it waits in the pipe: whoever is stopped before it reads must not stop this thread.
        with contextlib.suppress(OSError):  # one that has ended already is noticed by its end
            ours.send((place, self._memory.layout))
        return worker

    def _hand_out(self) -> None:
        with self._changed:
            self._free += [task.slot for task in self._waiting if task.begun != self._begun]
            self._waiting = deque(task for task in self._waiting if task.begun == self._begun)
            while self._free:
                number = next(self._numbers, None)
                if number is None:
                    break
                self._waiting.append(_Task(number, self._free.pop(), self._begun))
        self._tell()  # what is bad first
        while self._waiting:
            # of a row that shows the same frames: where they have been decoded
            worker = self._last if self._waiting[0].number % self._in_a_row else None
            if worker is None or worker not in self._workers or worker.told < len(self._bad):
                ready = [worker for worker in self._workers if worker and self._is_ready(worker)]
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
                    message = worker.connection.recv()
                    if isinstance(message, logging.LogRecord):
                        self._pass_on(message)
                    else:
                        self._note(worker, message)
            except (EOFError, OSError):
                self._replace(worker, _way_of_ending(worker.process), at_file=True)

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

    def _pass_on(self, record: logging.LogRecord) -> None:
        """Write to this process's log what a worker has to say, once whoever says it."""
        if (text := record.getMessage()) not in self._told:
            self._told.add(text)
            pass_on(record)

    def _look_after(self) -> None:
        now = time.monotonic()
        if now - self._looked > _SUSPENDED:
            self._resumed = now
        self._looked = now
        for worker in self._workers:
            if worker is None:
                continue
            record, since = self._memory.told(worker.place)
            passed = now - max(since, self._resumed)
            if _is_stopped(worker.process.pid):
                self._replace(worker, "was stopped")
            elif record == STARTING and passed > _TO_START:
                self._replace(worker, f"was not ready within {_TO_START:g} s")
            elif record >= 0 and self._seconds is not None and passed > self._seconds:
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
                self.set_aside({path: f"{bad_as} {self._seconds:g} s" if bad_as == TOOK_TOO_LONG else bad_as})
        self._lost += 1
        if self._lost > _MOST_LOST:
            raise WorkersLostError(f"{_MOST_LOST} decoding workers ended in a row, the last {how}{place}")

    def _is_ready(self, worker: _Worker) -> bool:
        return len(worker.tasks) < _QUEUED and worker.told == len(self._bad)

    def _tell(self) -> None:
        """Tell each worker that listens of the bad files that it has not heard of: more than waits in a pipe may be."""
        for worker in self._workers:
            if worker is None or self._memory.told(worker.place)[0] == STARTING:
                continue
            while worker.told < len(self._bad):
                with contextlib.suppress(OSError):
                    worker.connection.send(self._bad[worker.told])
                worker.told += 1


def _end(worker: _Worker) -> None:
    worker.connection.close()
    end(worker.process)


def _way_of_ending(process: subprocess.Popen[bytes]) -> str:
    how = how_it_ended(process)
    if how.startswith("exit code"):
        return f"ended with {how}"
    return f"was ended by {how}" if how.startswith(("SIG", "signal")) else how


def _is_stopped(pid: int) -> bool:
    """Tell whether a process was stopped, by SIGSTOP or a debugger; False where the system does not say."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in (b"T", b"t")
