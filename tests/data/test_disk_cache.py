"""The folder of copies: its bound, who goes first, and that processes do not get in each other's way."""

import errno
import multiprocessing
import os
import random
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from fastvtp.data.storage import disk_cache, remote_files
from fastvtp.data.storage.disk_cache import DiskCache
from fastvtp.data.storage.finding import read_file
from tests.data.object_store import patch_storage


def used(folder: Path) -> int:
    total = 0
    for entry in os.scandir(folder):
        if entry.name != ".bytes":
            try:
                total += entry.stat().st_size
            except FileNotFoundError:
                continue
    return total


def add(cache: DiskCache, name: str, size: int = 100, content: bytes | None = None):
    def write(file: BinaryIO) -> None:
        file.write(content or name[:1].encode() * size)

    return cache.add(name, size, write)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".bytes")


def test_copies_are_found_again(tmp_path):
    cache = DiskCache(tmp_path / "new" / "folder", 1000)
    assert cache.hold("a") is None
    made = add(cache, "a")
    assert made is not None
    assert made.path.read_bytes() == b"a" * 100
    held = DiskCache(tmp_path / "new" / "folder", 1000).hold("a")
    assert held is not None
    assert held.path == made.path


def test_those_used_longest_ago_go_first(tmp_path):
    cache = DiskCache(tmp_path, 1000)
    for i in range(9):
        held = add(cache, f"{i}")
        assert held is not None
        held.close()
        os.utime(tmp_path / f"{i}", (i, i))
    held = cache.hold("0")  # used now
    assert held is not None
    held.close()
    big = add(cache, "b", 300)
    assert big is not None
    assert names(tmp_path) == ["0", "4", "5", "6", "7", "8", "b"]


def test_copies_that_are_held_stay_and_what_finds_no_room_is_not_written(tmp_path):
    cache = DiskCache(tmp_path, 1000)
    held = [add(cache, f"{i}") for i in range(10)]
    assert add(cache, "more") is None
    assert len(names(tmp_path)) == 10
    first = held.pop(0)
    assert first is not None
    first.close()
    assert add(cache, "n") is not None
    assert "0" not in names(tmp_path)
    assert len(names(tmp_path)) == 10
    assert add(cache, "too large", 1001) is None


def test_a_copy_that_is_open_stays_readable_after_it_is_removed(tmp_path):
    cache = DiskCache(tmp_path, 250)
    made = add(cache, "a")
    assert made is not None
    with open(made.path, "rb") as file:
        made.close()
        assert add(cache, "b", 200) is not None
        assert names(tmp_path) == ["b"]
        assert file.read() == b"a" * 100


def test_what_fails_leaves_nothing_and_gives_its_room_back(tmp_path):
    cache = DiskCache(tmp_path, 1000)

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise ConnectionError("lost")

    for _ in range(20):
        with pytest.raises(ConnectionError, match="lost"):
            cache.add("a", 900, fail)
    assert names(tmp_path) == []
    assert add(cache, "b", 1000) is not None


def test_a_copy_that_cannot_be_opened_is_done_without(tmp_path, monkeypatch, caplog):
    """As where a process has too many files open."""
    fsspec = pytest.importorskip("fsspec")
    patch_storage(monkeypatch, cache_dir=tmp_path)
    fsspec.filesystem("memory").pipe_file("/held.mp4", b"content")
    assert read_file("memory://held.mp4") == b"content"

    def refused(cache: DiskCache, name: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(DiskCache, "hold", refused)
    assert read_file("memory://held.mp4") == b"content"
    assert "no copies of objects can be kept (Too many open files)" in caplog.text


class Disk:
    """A disk of so many bytes, as far as files are given their size at once."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size

    def allocate(self, descriptor: int, size: int) -> None:
        if used(self.folder) + size > self.size:
            raise OSError(errno.ENOSPC, "No space left on device")
        os.truncate(descriptor, size)

    def use(self, monkeypatch) -> None:
        """Let the cache find this disk."""
        monkeypatch.setattr(disk_cache, "_fallocate", lambda: self.allocate)
        monkeypatch.setattr(disk_cache, "_free", lambda place: self.size - used(self.folder))


def test_where_the_disk_is_full_the_oldest_copies_make_room(tmp_path, monkeypatch):
    cache = DiskCache(tmp_path, 10_000)
    Disk(tmp_path, 1050).use(monkeypatch)
    for i in range(10):
        held = add(cache, f"{i}")
        assert held is not None
        held.close()
        os.utime(tmp_path / f"{i}", (i, i))
    made = add(cache, "b")
    assert made is not None
    assert names(tmp_path) == [*"23456789", "b"]
    assert int((tmp_path / ".bytes").read_text()) == 900


def test_where_others_filled_the_disk_nothing_goes_for_what_cannot_fit(tmp_path, monkeypatch):
    cache = DiskCache(tmp_path, 10_000)
    Disk(tmp_path, 1050).use(monkeypatch)
    for i in range(10):
        held = add(cache, f"{i}")
        assert held is not None
        held.close()
    with pytest.raises(OSError, match="No space left"):
        add(cache, "b", 1100)
    assert names(tmp_path) == [*"0123456789"]


def test_what_cannot_fit_beside_held_copies_sends_none_of_the_others_away(tmp_path):
    cache = DiskCache(tmp_path, 1000)
    held = add(cache, "held", 500)
    assert held is not None
    for i in range(4):
        made = add(cache, f"{i}")
        assert made is not None
        made.close()
    assert add(cache, "b", 600) is None
    assert names(tmp_path) == [*"0123", "held"]
    held.close()
    os.utime(tmp_path / "held", (1, 1))
    assert add(cache, "b", 600) is not None
    assert names(tmp_path) == [*"123", "b"]  # 90 % of the 400 that may stay


def test_an_object_larger_than_the_bound_is_read_and_said_once(tmp_path, monkeypatch, caplog):
    fsspec = pytest.importorskip("fsspec")
    patch_storage(monkeypatch, cache_dir=tmp_path, cache_gb=1e-6)
    fsspec.filesystem("memory").pipe_file("/small.mp4", b"s" * 500)
    fsspec.filesystem("memory").pipe_file("/large.mp4", b"l" * 2000)
    assert read_file("memory://small.mp4") == b"s" * 500
    for _ in range(2):
        assert read_file("memory://large.mp4") == b"l" * 2000
    assert len(names(tmp_path / "objects")) == 1
    assert caplog.text.count("cache_gb=1e-06: too little for some objects") == 1


def test_a_copy_that_came_short_is_none(tmp_path):
    """A file has its size from the start: nobody could tell the zeros at its end from content."""
    cache = DiskCache(tmp_path, 1000)
    with pytest.raises(OSError, match="99 bytes came of 100"):
        add(cache, "a", 100, b"a" * 99)
    assert names(tmp_path) == []
    assert add(cache, "b", 1000) is not None


def test_an_object_comes_once_where_the_disk_keeps_no_copy(tmp_path, monkeypatch, caplog):
    fsspec = pytest.importorskip("fsspec")
    patch_storage(monkeypatch, cache_dir=tmp_path / "cache")
    fsspec.filesystem("memory").pipe_file("/full.mp4", b"content")
    Disk(tmp_path / "cache" / "objects", 6).use(monkeypatch)
    fetched = []
    read = remote_files.read_range
    monkeypatch.setattr(remote_files, "read_range", lambda *given: fetched.append(given) or read(*given))
    assert read_file("memory://full.mp4") == b"content"
    assert len(fetched) == 1
    assert names(tmp_path / "cache" / "objects") == []
    assert "no copies of objects can be kept (No space left on device)" in caplog.text


def test_where_room_cannot_be_set_aside_a_copy_is_written_all_the_same(tmp_path, monkeypatch):
    """As on NFS; and nothing is written before the content is."""

    def refuse(descriptor: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(disk_cache, "_fallocate", lambda: refuse)
    blocks = []

    def write(file: BinaryIO) -> None:
        blocks.append((os.fstat(file.fileno()).st_size, os.fstat(file.fileno()).st_blocks))
        file.write(b"a" * 100_000)

    made = DiskCache(tmp_path, 1_000_000).add("a", 100_000, write)
    assert made is not None
    assert made.path.read_bytes() == b"a" * 100_000
    assert blocks == [(100_000, 0)]
    monkeypatch.setattr(disk_cache, "_free", lambda place: 99)
    with pytest.raises(OSError, match="No space left"):
        add(DiskCache(tmp_path, 1_000_000), "b")
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone has the call")
def test_room_is_set_aside_before_the_content_comes(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, 1)
        except OSError:
            pytest.skip("this filesystem cannot")
        disk_cache._allocate(file, 100_000)
        status = os.fstat(file.fileno())
    assert (status.st_size, status.st_blocks * 512 >= 100_000) == (100_000, True)


def test_after_the_clock_was_set_back_what_is_used_stays(tmp_path):
    cache = DiskCache(tmp_path, 1000)
    before = time.time() + 7200  # by the clock that went two hours fast
    for i in range(9):
        held = add(cache, f"{i}")
        assert held is not None
        held.close()
        os.utime(tmp_path / f"{i}", (before + i, before + i))
    held = cache.hold("7")  # used now
    assert held is not None
    held.close()
    assert add(cache, "b", 300) is not None
    assert names(tmp_path) == [*"345678", "b"]


def test_a_copy_made_twice_counts_once(tmp_path):
    cache = DiskCache(tmp_path, 1000)
    for _ in range(50):
        made = add(cache, "a", 400)
        assert made is not None
        made.close()
    assert (tmp_path / ".bytes").read_bytes().split() == [b"400"]


def test_a_ledger_that_is_damaged_is_counted_anew(tmp_path):
    cache = DiskCache(tmp_path, 1000)
    held = add(cache, "a", 400)
    assert held is not None
    (tmp_path / ".bytes").write_bytes(b"nonsense")
    assert add(cache, "b", 700) is None
    held.close()
    assert add(cache, "b", 700) is not None


def test_what_a_killed_process_left_is_removed(tmp_path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_hang, args=(tmp_path, started))
    process.start()
    assert started.wait(30)
    cache = DiskCache(tmp_path, 1000)
    assert used(tmp_path) == 800
    assert add(cache, "a", 400) is None  # it is being written
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert add(cache, "a", 400) is not None
    assert names(tmp_path) == ["a"]


def test_what_killed_processes_left_goes_before_the_folder_is_full(tmp_path):
    """The bytes of a video, say, whose worker was ended because it took too long."""
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_hang, args=(tmp_path, started))
    process.start()
    assert started.wait(30)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert used(tmp_path) == 800
    assert add(DiskCache(tmp_path, 1000), "a", 10) is not None
    assert names(tmp_path) == ["a"]
    assert (tmp_path / ".bytes").read_bytes().split() == [b"10"]


def test_what_others_left_is_looked_for_again_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_cache, "_SWEEP_SECONDS", 0)
    cache = DiskCache(tmp_path, 1000)
    assert add(cache, "a", 10) is not None
    (tmp_path / ".partial-0").write_bytes(bytes(100))  # as of a process that was killed since
    assert add(cache, "b", 10) is not None
    assert names(tmp_path) == ["a", "b"]


def _hang(folder: Path, started) -> None:
    def write(file: BinaryIO) -> None:
        started.set()
        time.sleep(60)

    DiskCache(folder, 1000).add("h", 800, write)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.long)])
def test_the_bound_holds_for_several_processes(tmp_path, processes):
    """They fill the folder many times over while another looks."""
    seen, done = [0], threading.Event()

    def look() -> None:
        while not done.is_set():
            seen[0] = max(seen[0], used(tmp_path))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            wrong = list(pool.map(_fill, [tmp_path] * processes, range(processes)))
    finally:
        done.set()
        watcher.join()
    assert wrong == [0] * processes
    assert 10_000 < seen[0] <= 20_000
    assert int((tmp_path / ".bytes").read_text()) == used(tmp_path)
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def _fill(folder: Path, seed: int) -> int:
    cache, choice, wrong = DiskCache(folder, 20_000), random.Random(seed), 0
    for _ in range(400):
        name = f"{choice.randrange(60):02d}"
        content = name.encode() * 400
        held = cache.hold(name) or add(cache, name, len(content), content)
        if held is not None:
            wrong += held.path.read_bytes() != content
            held.close()
    return wrong
