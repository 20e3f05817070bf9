"""Worker processes that are killed, stopped or hang: the same batches come, and the log says what happened."""

import gc
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.pipeline import Feed
from fastvtp.data.source import ENDED_WORKERS, TOOK_TOO_LONG, ClipSource, NoDecodableClipError, Sample
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.data.workers import pool
from fastvtp.data.workers.child_processes import start
from fastvtp.data.workers.pool import ClipWorkers, WorkersLostError
from tests.data.clips import write_clip
from tests.data.loaders import make_loader

SETTINGS = {"batch_size": 3, "num_frames": 4, "train": True, "seed": 3, "image_size": 32}


class Made:
    """A source of numbers in place of clips; `deeds` says what a worker does at a sample, by its number."""

    def __init__(self, deeds=None, once=None, shape=(64, 64)):
        self.deeds, self.once, self.shape, self.bad = deeds or {}, once, shape, {}
        self.before_attempt = None

    def path_of(self, record):
        return f"/films/{record}.mp4"

    def load(self, number):
        self.before_attempt(number)
        if self.path_of(number) in self.bad:
            return Sample((np.array([-1]),), ((self.path_of(number), self.bad[self.path_of(number)]),))
        if number in self.deeds and (self.once is None or not Path(self.once).exists()):
            if self.once is not None:
                Path(self.once).touch()
            self.deeds[number]()
        return Sample((np.array([number]), np.full(self.shape, number % 256, np.uint8)))


def hang():
    time.sleep(60)


def nap():
    time.sleep(1.5)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.01)


def fail():
    raise ZeroDivisionError("nothing to share")


def refuse():
    raise NoDecodableClipError("none left", [("/films/a.mp4", "zero bytes")])


def taken(source, last=12, **settings):
    defaults = {"num_workers": 2, "ahead": 6, "slot_bytes": 5000, "seconds": 30.0}
    with ClipWorkers(source, **{**defaults, **settings}) as workers:
        workers.begin(iter(range(last)))
        found = [workers.take([number, number + 1]) for number in range(0, last, 2)]
        return [
            (int(sample.arrays[0][0]), *(array.copy() for array in sample.arrays[1:]))
            for pair in found
            for sample in pair
        ]


def test_samples_come_in_order_and_whole():
    for number, (told, pixels) in enumerate(taken(Made())):
        assert told == number
        np.testing.assert_array_equal(pixels, np.full((64, 64), number, np.uint8))


def test_what_does_not_fit_its_slot_comes_all_the_same():
    found = taken(Made(shape=(512, 512)), last=4)
    assert [pixels.mean() for _, pixels in found] == [0, 1, 2, 3]


@pytest.mark.parametrize(("deed", "word"), [(die, "was ended by SIGKILL"), (stop, "was stopped")])
def test_a_worker_that_is_lost_once_is_replaced_and_its_sample_made_again(deed, word, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        found = taken(Made({5: deed}, once=str(tmp_path / "done")))
    assert [number for number, _ in found] == list(range(12))
    assert f"{word} while reading /films/5.mp4; another takes its place" in caplog.text


def test_a_file_at_which_workers_end_again_and_again_counts_as_undecodable():
    source = Made({5: die})
    found = taken(source)
    assert [entry[0] for entry in found] == [0, 1, 2, 3, 4, -1, *range(6, 12)]
    assert source.bad == {"/films/5.mp4": ENDED_WORKERS}


def test_a_file_that_takes_too_long_counts_as_undecodable(caplog):
    source, started = Made({5: hang}), time.monotonic()
    with caplog.at_level(logging.WARNING):
        found = taken(source, seconds=1.0)
    assert [entry[0] for entry in found] == [0, 1, 2, 3, 4, -1, *range(6, 12)]
    assert time.monotonic() - started < 50
    assert source.bad == {"/films/5.mp4": f"{TOOK_TOO_LONG} 1 s"}
    assert "took longer than 1 s while reading /films/5.mp4" in caplog.text


def test_what_is_set_aside_is_so_for_whatever_begins_next_and_for_workers_to_come():
    source = Made()
    with ClipWorkers(source, num_workers=2, ahead=4, slot_bytes=5000) as workers:
        workers.begin(count())
        workers.take([0, 1])
        workers.set_aside({"/films/4.mp4": "odd"})
        workers.begin(count(3))
        assert [[int(sample.arrays[0][0]) for sample in workers.take([n, n + 1])] for n in (3, 5)] == [[3, -1], [5, 6]]
        for pid in workers.pids:
            os.kill(pid, signal.SIGKILL)
        workers.set_aside({"/films/8.mp4": "odd too"})
        workers.begin(count(3))
        found = [[int(sample.arrays[0][0]) for sample in workers.take([n, n + 1])] for n in (3, 5, 7)]
    assert found == [[3, -1], [5, 6], [7, -1]]
    assert source.bad == {"/films/4.mp4": "odd", "/films/8.mp4": "odd too"}


class Stillborn(Made):
    def __setstate__(self, state):
        os._exit(7)


def test_workers_that_never_live_end_in_an_error(monkeypatch):
    monkeypatch.setattr("fastvtp.data.workers.pool._MOST_LOST", 4)
    with pytest.raises(WorkersLostError, match="4 decoding workers ended in a row, the last ended with exit code 7"):
        taken(Stillborn())


def test_errors_of_a_worker_come_where_their_sample_is_taken():
    with pytest.raises(RuntimeError, match="ZeroDivisionError: nothing to share"):
        taken(Made({3: fail}))
    with pytest.raises(NoDecodableClipError) as caught:
        taken(Made({3: refuse}))
    assert str(caught.value) == "none left"
    assert caught.value.failures == [("/films/a.mp4", "zero bytes")]


def test_nothing_is_left_behind():
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), set(os.listdir("/dev/shm"))
    for _ in range(2):
        taken(Made())
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), set(os.listdir("/dev/shm"))) == before


def test_workers_end_with_their_parent_however_it_ends(tmp_path):
    child = os.fork()
    if child == 0:
        try:
            workers = ClipWorkers(Made(), num_workers=2, ahead=4, slot_bytes=5000)
            workers.begin(count())
            workers.take([0, 1])
            (tmp_path / "new").write_text(" ".join(map(str, workers.pids)))
            (tmp_path / "new").rename(tmp_path / "pids")
            time.sleep(60)
        finally:
            os._exit(1)  # else the tests that follow would run in this process, too
    pids, patience = [], time.monotonic() + 40
    try:
        while not pids:
            assert time.monotonic() < patience
            time.sleep(0.05)
            pids = (tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else []
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    end = time.monotonic() + 10
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    paths = [write_clip(folder / f"{i}.mp4", 8, first=8 * i) for i in range(6)]
    return [VideoRecord(path.stem, str(path), (f"clip {path.stem}",)) for path in paths]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_run_gets_the_same_batches_whatever_happens_to_its_workers(clips, sent):
    tokenizer = CaptionTokenizer.train([record.captions[0] for record in clips], 50)
    with make_loader(clips, tokenizer, max_text_length=8, num_steps=20, num_workers=0, **SETTINGS) as loader:
        expected = [batch.video.clone() for batch in loader]
    with make_loader(clips, tokenizer, max_text_length=8, num_steps=20, num_workers=2, **SETTINGS) as loader:
        for step, batch in enumerate(loader):
            torch.testing.assert_close(batch.video, expected[step], rtol=0, atol=0)
            if step % 6 == 2:
                os.kill(loader.worker_pids[step % 2], sent)
        assert step == 19
        assert loader.bad_files == {}


def test_a_resumed_run_knows_the_files_that_hung(clips):
    name, reason = clips[2].video, f"{TOOK_TOO_LONG} 60 s"
    with make_loader(clips, None, num_steps=4, num_workers=0, known_bad={name: reason}, **SETTINGS) as loader:
        shown = [int(index) for batch in loader for index in batch.sample_ids]
    assert 2 not in shown
    assert isinstance(loader._source, ClipSource)
    assert loader._source.bad == {name: reason}


def _state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _until(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_worker_that_is_stopped_before_it_has_begun_holds_nobody_up():
    source = Made()
    source.ballast = bytes(4_000_000)  # far more than waits in a pipe
    with ClipWorkers(source, num_workers=1, ahead=4, slot_bytes=5000) as workers:
        _until(lambda: workers.pids)
        os.kill(first := workers.pids[0], signal.SIGSTOP)
        workers.begin(iter(range(4)))
        assert [int(sample.arrays[0][0]) for sample in workers.take(range(4))] == [0, 1, 2, 3]
        assert first not in workers.pids


def test_much_that_is_bad_makes_nobody_wait_for_a_worker_that_is_stopped_before_it_has_begun(tmp_path, monkeypatch):
    """The pipe to a worker holds a few hundred of such messages."""
    started = []

    def start_and_stop_the_second(*arguments):
        process, ours = start(*arguments)
        started.append(process.pid)
        if len(started) == 2:
            os.kill(process.pid, signal.SIGSTOP)
            overdue.start()
        return process, ours

    overdue = threading.Timer(90.0, lambda: os.kill(started[1], signal.SIGKILL))
    monkeypatch.setattr(pool, "start", start_and_stop_the_second)
    with ClipWorkers(Made({2: die}, str(tmp_path / "done")), num_workers=1, ahead=2, slot_bytes=5000) as workers:
        workers.set_aside({f"/films/{number}.mp4": "odd" for number in range(6, 3000)})
        workers.begin(count())
        found = [int(sample.arrays[0][0]) for n in range(0, 8, 2) for sample in workers.take([n, n + 1])]
        waited = overdue.finished.is_set()
        overdue.cancel()
    assert found == [*range(6), -1, -1]
    assert (len(started), waited) == (3, False)


def test_files_are_not_to_blame_for_a_machine_that_slept(monkeypatch):
    source = Made({1: nap})
    with ClipWorkers(source, num_workers=1, ahead=2, slot_bytes=5000, seconds=2.5) as workers:
        workers.begin(iter(range(2)))
        workers.take([0])
        awake = time.monotonic
        monkeypatch.setattr("fastvtp.data.workers.pool.time.monotonic", lambda: awake() + 3600)
        (slow,) = workers.take([1])
    assert int(slow.arrays[0][0]) == 1
    assert source.bad == {}


def test_quick_samples_are_never_taken_for_slow_ones():
    source = Made(shape=(2,))
    with ClipWorkers(source, num_workers=2, ahead=64, slot_bytes=64, seconds=20.0) as workers:
        workers.begin(count())
        for first in range(0, 6400, 32):
            workers.take(range(first, first + 32))
        pids = workers.pids
    assert source.bad == {}
    assert len(pids) == 2


def test_a_file_of_the_users_is_not_taken_for_a_library(tmp_path, monkeypatch):
    (tmp_path / "tempfile.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])
    assert [entry[0] for entry in taken(Made(), last=2)] == [0, 1]


class Telling(Made):
    def load(self, number):
        logging.getLogger("fastvtp.test").warning("film %d is short", number % 2)
        return super().load(number)


def test_what_workers_log_comes_to_the_log_of_the_run_once(caplog):
    with caplog.at_level(logging.WARNING):
        taken(Telling())
    told = [record.getMessage() for record in caplog.records if record.name == "fastvtp.test"]
    assert sorted(told) == ["film 0 is short", "film 1 is short"]


def test_a_loader_that_nobody_closed_ends_its_workers(clips):
    loader = make_loader(clips, None, num_steps=4, num_workers=1, **SETTINGS)
    next(iter(loader))
    (pid,) = loader.worker_pids
    del loader
    gc.collect()
    _until(lambda: not _runs(pid))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_whoever_goes_on_after_an_interruption_gets_the_batch_it_was_waiting_for(clips, num_workers, monkeypatch):
    with make_loader(clips, None, num_steps=8, num_workers=0, **SETTINGS) as loader:
        expected = [batch.video.clone() for batch in loader]
    with make_loader(clips, None, num_steps=8, num_workers=num_workers, **SETTINGS) as loader:
        batches = iter(loader)
        shown = [next(batches).video.clone() for _ in range(3)]
        with monkeypatch.context() as patch:
            patch.setattr(Feed, "__call__", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(batches)
        shown += [batch.video.clone() for batch in loader]
    for made, wanted in zip(shown, expected, strict=True):
        torch.testing.assert_close(made, wanted, rtol=0, atol=0)


def interrupted(*_):
    raise KeyboardInterrupt


def test_an_error_that_is_no_files_is_raised_as_it_is(clips, monkeypatch):
    def failing(self, number):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(ClipSource, "load", failing)
    with (
        make_loader(clips, None, num_steps=2, num_workers=0, **SETTINGS) as loader,
        pytest.raises(OSError, match="Too many open files"),
    ):
        next(iter(loader))


def test_a_file_that_was_away_for_a_while_comes_back(clips, tmp_path):
    away = [replace(record, video=str(tmp_path / Path(record.video).name)) for record in clips]
    for record, here in zip(clips, away, strict=True):
        os.link(record.video, here.video)
    with make_loader(away, None, num_steps=12, num_workers=0, **SETTINGS) as loader:
        batches = iter(loader)
        Path(away[2].video).rename(tmp_path / "elsewhere")
        first = [int(index) for _ in range(4) for index in next(batches).sample_ids]
        (tmp_path / "elsewhere").rename(away[2].video)
        later = [int(index) for batch in batches for index in batch.sample_ids]
    assert 2 not in first
    assert 2 in later
    assert list(loader.bad_files) == [away[2].video]
