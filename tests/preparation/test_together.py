"""Several runs in one folder of shards, and what goes wrong there that no video is to be blamed for."""

import multiprocessing
import threading

import pytest

from fastvtp.errors import UserError
from fastvtp.preparation import preparing
from fastvtp.preparation.locks import SharedFolder, shard_lock
from tests.preparation.sets import captioned, digests, run


def _prepare(source, output):
    report = run(source, output, per_shard=2)
    assert report is not None
    assert report["rejected"]["count"] == 0


def test_two_runs_at_once_make_the_shards_of_one(tmp_path):
    source = captioned(tmp_path / "in", 12)
    run(source, tmp_path / "whole", per_shard=2)
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_prepare, args=(source, tmp_path / "out")) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert not list((tmp_path / "out").glob(".*"))


def test_what_others_write_at_the_moment_stays(tmp_path):
    """A whole run beside a job of an array, which has temporary names."""
    (tmp_path / ".000000.7.ab.tmp").mkdir()
    with SharedFolder(tmp_path), SharedFolder(tmp_path) as second:
        second.if_alone(lambda: preparing.clear(tmp_path))
        assert (tmp_path / ".000000.7.ab.tmp").is_dir()
    with SharedFolder(tmp_path) as only:
        only.if_alone(lambda: preparing.clear(tmp_path))
        assert not (tmp_path / ".000000.7.ab.tmp").exists()
    assert not list(tmp_path.iterdir())


def _hold(output, started, end):
    with SharedFolder(output), shard_lock(output, "000001"):
        started.set()
        end.wait(60)


def test_a_shard_that_another_process_makes_is_waited_for(tmp_path, caplog):
    context = multiprocessing.get_context("fork")
    started, end = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, started, end))
    other.start()
    started.wait(60)
    with shard_lock(tmp_path, "000002") as locked:
        assert locked
    caplog.set_level("INFO")
    threading.Timer(0.2, end.set).start()
    with shard_lock(tmp_path, "000001") as locked:
        assert (end.is_set(), locked) == (True, True)
    assert "another process is at work on shard 000001" in caplog.text
    other.join()


def test_where_files_cannot_be_locked_it_is_said(tmp_path, monkeypatch, caplog):
    def flock(file, kind):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".x.1.tmp").write_bytes(b"")
    _prepare(captioned(tmp_path / "in", 2), tmp_path / "out")
    assert "files cannot be locked there" in caplog.text
    assert [path.name for path in (tmp_path / "out").glob(".*.tmp")] == [".x.1.tmp"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("no more"), r"0\.mp4: MemoryError: no more"),
        (ImportError("no module"), r"0\.mp4: ImportError: no module"),
        (PermissionError(13, "Permission denied"), r"\[Errno 13\] Permission denied: '.*\.tmp/clip\.mp4'"),
        (OSError(28, "No space left on device"), r"\[Errno 28\] No space left on device: '.*\.tmp/clip\.mp4'"),
        (UserError("s3 needs a package"), "s3 needs a package"),
    ],
)
def test_what_no_video_is_to_be_blamed_for_ends_the_run(tmp_path, monkeypatch, error, line):
    def fails(*arguments):
        raise error

    monkeypatch.setattr("fastvtp.preparation.work.write_clip", fails)
    monkeypatch.setattr(
        "fastvtp.data.workers.helper_process.Helper.call", lambda self, function, *rest: function(*rest)
    )
    with pytest.raises((UserError, OSError), match=line):
        run(captioned(tmp_path / "in", 1), tmp_path / "out")
    assert not (tmp_path / "out" / "000000.json").exists()


def test_a_full_disk_is_named_by_the_shard(tmp_path, monkeypatch):
    def fails(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tarfile.TarFile.addfile", fails)
    with pytest.raises(OSError, match=r"No space left on device: '.*/out/000000\.tar'"):
        run(captioned(tmp_path / "in", 1), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["settings.json"]
