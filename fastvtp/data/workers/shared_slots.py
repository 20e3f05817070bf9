"""Memory that worker processes share with the main one: a slot for the arrays of each sample, what each is at, and the
object that they work with.

It has no name in any folder: the last process that lets go of it gives it back, however it ends.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_ENTRY, _ALIGNED = np.dtype(np.int64), 64
_AT = np.dtype([("record", np.int64), ("since", np.float64)])
_INLINE_BYTES = 1 << 14  # smaller arrays travel with the message
_DRAWS_BYTES = 1 << 12
_KEPT_BYTES = 1 << 24  # a slot that may hold more is emptied after use


@dataclass(frozen=True)
class _Placed:
    """What stands in a message for an array that lies in a slot, `start` bytes after its beginning."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype


def sample_bytes(frames: int, size: tuple[int, int]) -> int:
    """Return the bytes of a slot for a clip of `frames` pictures of that height and width, with the draws about it."""
    return 3 * frames * size[0] * size[1] + _DRAWS_BYTES


def batch_bytes(clips: int, frames: int, size: tuple[int, int], ahead: int) -> int:
    """Return the bytes that workers and the main process share: of a batch of `clips`, and of `ahead` more."""
    return clips * (1 + ahead) * _whole_pages(sample_bytes(frames, size))


class SharedSlots:
    """The memory, as one process sees it.

    Args:
        descriptor: of the memory's file.
        num_workers, slots, slot_bytes: its layout; `slot_bytes` is a multiple of the system's page.

    Attributes:
        descriptor, layout: what another process needs to see the same memory.
    """

    def __init__(self, descriptor: int, num_workers: int, slots: int, slot_bytes: int):
        self.descriptor, self.layout = descriptor, (num_workers, slots, slot_bytes)
        # numpy keeps the map as long as an array of it is alive
        self._slots_at = _whole_pages(num_workers * _AT.itemsize)
        self._memory = mmap.mmap(descriptor, self._slots_at + slots * slot_bytes)
        self._at = np.frombuffer(self._memory, _AT, num_workers)
        self._slots = np.frombuffer(self._memory, np.uint8, offset=self._slots_at).reshape(slots, slot_bytes)

    @classmethod
    def made(cls, num_workers: int, slots: int, slot_bytes: int) -> SharedSlots:
        """Make new memory. Pages are taken from the system when they are first written."""
        slot_bytes = _whole_pages(slot_bytes)
        descriptor = _unnamed(_whole_pages(num_workers * _AT.itemsize) + slots * slot_bytes)
        return cls(descriptor, num_workers, slots, slot_bytes)

    def tell(self, worker: int, record: int) -> None:
        """Say which record a worker is at from now on, by its number; -1 for none."""
        # in this order: whoever reads the record first, and then since when, never takes a new one for an old
        self._at["record"][worker] = -1
        self._at["since"][worker] = time.monotonic()
        self._at["record"][worker] = record

    def told(self, worker: int) -> tuple[int, float]:
        """Return which record a worker is at, and since when, in seconds of the monotonic clock, which all processes of
        a machine share."""
        record = int(self._at["record"][worker])
        return record, float(self._at["since"][worker])

    def empty(self, slot: int) -> None:
        """Give the pages of a slot back to the system, where it can: large samples shall not fill them all for ever."""
        if self._slots.shape[1] > _KEPT_BYTES and hasattr(mmap, "MADV_REMOVE"):
            start = self._slots_at + slot * self._slots.shape[1]
            self._memory.madvise(mmap.MADV_REMOVE, start, self._slots.shape[1])

    def close(self) -> None:
        """Let go of the file; arrays of it that somebody holds stay."""
        os.close(self.descriptor)

    def placed(self, slot: int, arrays: Iterable[np.ndarray]) -> tuple[Any, ...]:
        """Copy what is large into a slot, as far as it fits; returns the arrays with stand-ins for what was copied."""
        room, end, left = self._slots[slot], 0, []
        for array in arrays:
            start = end
            if array.nbytes < _INLINE_BYTES or start + array.nbytes > len(room):
                left.append(array)
                continue
            end = start + array.nbytes
            np.frombuffer(room[start:end], array.dtype).reshape(array.shape)[...] = array
            end = -(-end // _ALIGNED) * _ALIGNED
            left.append(_Placed(start, array.shape, array.dtype))
        return tuple(left)

    def found(self, slot: int, arrays: Iterable[Any]) -> tuple[np.ndarray, ...]:
        """Put what lies in a slot, without a copy, in the place of its stand-ins."""
        return tuple(self._seen(slot, array) if isinstance(array, _Placed) else array for array in arrays)

    def _seen(self, slot: int, array: _Placed) -> np.ndarray:
        size = int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize
        return self._slots[slot, array.start : array.start + size].view(array.dtype).reshape(array.shape)


class SharedObject:
    """An object in memory without a name, whose arrays are there once: each process that gets its `descriptor` sees the
    same, by `seen`.
    """

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    @classmethod
    def made(cls, thing: Any) -> SharedObject:
        """Make memory that holds a copy of an object that can be pickled."""
        arrays: list[pickle.PickleBuffer] = []
        parts = [memoryview(pickle.dumps(thing, protocol=5, buffer_callback=arrays.append))]
        parts += [each.raw() for each in arrays]
        places = _places([part.nbytes for part in parts])
        shared = cls(_unnamed(places[-1].stop))
        with mmap.mmap(shared.descriptor, 0) as memory:
            memory[: _ENTRY.itemsize] = np.array(len(parts), _ENTRY).tobytes()
            sizes = np.array([part.nbytes for part in parts], _ENTRY).tobytes()
            memory[_ENTRY.itemsize : _ENTRY.itemsize + len(sizes)] = sizes
            for place, part in zip(places, parts, strict=True):
                memory[place] = part
        return shared

    def seen(self) -> Any:
        """Return the object; its arrays cannot be written, and hold the memory as long as one of them is alive."""
        memory = memoryview(mmap.mmap(self.descriptor, 0, prot=mmap.PROT_READ))
        count = int(np.frombuffer(memory, _ENTRY, 1)[0])
        sizes = np.frombuffer(memory, _ENTRY, count, _ENTRY.itemsize).tolist()
        content, *arrays = (memory[place] for place in _places(sizes))
        return pickle.loads(content, buffers=arrays)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.descriptor)


def _places(sizes: Sequence[int]) -> list[slice]:
    """Tell where parts of these sizes lie, behind their number and their sizes."""
    places, end = [], (1 + len(sizes)) * _ENTRY.itemsize
    for size in sizes:
        start = -(-end // _ALIGNED) * _ALIGNED
        end = start + size
        places.append(slice(start, end))
    return places


def _unnamed(size: int) -> int:
    """Make a file without a name, in memory where the system can, and return its descriptor."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("fastvtp")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _whole_pages(size: int) -> int:
    return max(1, -(-size // mmap.ALLOCATIONGRANULARITY)) * mmap.ALLOCATIONGRANULARITY
