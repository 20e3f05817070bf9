"""What a decoding worker runs: it makes the samples that the pool asks for. Neither torch nor DALI."""

from __future__ import annotations

import os
import threading
import traceback
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue

from fastvtp.data.source import ClipSource, Sample
from fastvtp.data.workers.child_processes import tell_parent
from fastvtp.data.workers.shared_slots import SharedObject, SharedSlots
from fastvtp.errors import UserError

IDLE, STARTING = -1, -2
"""What a worker is at where it is at no record."""


def serve(connection: Connection, memory_descriptor: int, source_descriptor: int) -> None:
    """Make the samples that come over the connection, until the main process closes it or ends."""
    import av  # noqa: F401 # here: on a busy machine its import shall not count as time spent at the first file

    place, layout = connection.recv()
    source: ClipSource = SharedObject(source_descriptor).seen()
    memory, tasks = SharedSlots(memory_descriptor, *layout), SimpleQueue[tuple[int, int]]()
    to_parent = tell_parent(connection)
    threading.Thread(target=_listen, args=(connection, source, tasks), daemon=True).start()
    memory.tell(place, IDLE)
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
        memory.tell(place, IDLE)
        to_parent.send(made)


def _listen(connection: Connection, source: ClipSource, tasks: SimpleQueue[tuple[int, int]]) -> None:
    try:
        while True:
            message = connection.recv()
            if isinstance(message[0], str):
                source.bad[message[0]] = message[1]
            else:
                tasks.put(message)
    except (EOFError, OSError):
        os._exit(0)
