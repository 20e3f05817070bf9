import os
import sys
import threading
import time

import numpy as np
import pytest

from fastvtp.data.workers.shared_slots import SharedObject, SharedSlots


def test_what_a_worker_is_at_is_never_read_with_the_time_of_something_else():
    slots, ended = SharedSlots.made(2, 1, 16), threading.Event()

    def write():
        record = 0
        while not ended.is_set():
            slots.tell(1, record)
            slots.tell(1, -1)
            record += 1

    before, interval = time.monotonic(), sys.getswitchinterval()
    slots.tell(1, -1)
    sys.setswitchinterval(1e-6)  # the two threads take turns within a call
    writer = threading.Thread(target=write)
    writer.start()
    read: list[tuple[int, float]] = []
    try:
        # until the threads have taken turns often enough for a reading to fall into the middle of a writing
        while len({record for record, _ in read}) < 10 and time.monotonic() < before + 120:
            read += [slots.told(1) for _ in range(5000)]
            time.sleep(0)
    finally:
        ended.set()
        writer.join()
        sys.setswitchinterval(interval)
    assert len({record for record, _ in read}) >= 10
    assert min(since for _, since in read) >= before
    times = [since for record, since in read if record >= 0]
    assert times == sorted(times)
    assert slots.told(0)[0] == 0  # never told


def test_arrays_come_back_from_their_slot():
    slots = SharedSlots.made(1, 3, 100_000)
    arrays = np.arange(3), np.full((100, 200), 7, np.uint8), np.full(9000, 0.5)
    placed = slots.placed(1, arrays)
    assert placed[0] is arrays[0]  # small ones travel with the message
    for found, array in zip(slots.found(1, placed), arrays, strict=True):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype
    assert not slots.found(0, placed)[1].any()
    large = np.ones(200_000, np.uint8)
    assert slots.placed(2, [large])[0] is large


def test_a_slot_that_was_emptied_holds_zeros():
    slots = SharedSlots.made(1, 2, 1 << 25)
    placed = [slots.placed(slot, [np.full(1 << 20, 9, np.uint8)]) for slot in (0, 1)]
    slots.empty(0)
    assert not slots.found(0, placed[0])[0].any()
    assert slots.found(1, placed[1])[0].all()


def test_an_object_is_seen_by_whoever_has_the_descriptor_and_its_arrays_are_there_once():
    numbers, empty = np.arange(100_001, dtype=np.int32), np.empty((0, 2))
    shared = SharedObject.made(
        {"numbers": numbers, "empty": empty, "turned": numbers[::-2], "text": "a source of clips"}
    )
    descriptor = os.dup(shared.descriptor)
    one, other = SharedObject(descriptor).seen(), SharedObject(descriptor).seen()
    shared.close()
    os.close(descriptor)
    for found in (one, other):
        np.testing.assert_array_equal(found["numbers"], numbers)
        np.testing.assert_array_equal(found["turned"], numbers[::-2])
        assert (found["empty"].shape, found["text"]) == ((0, 2), "a source of clips")
        assert not found["numbers"].flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        one["numbers"][0] = 1
