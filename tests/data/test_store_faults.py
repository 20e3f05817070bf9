"""What goes wrong in object stores: what passes is outlasted, what stays is named, and nothing waits for ever."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastvtp.data.annotations import VideoRecord, load_annotations
from fastvtp.data.reading import ClipReading, ClipShape
from fastvtp.data.source import ClipSource, NoDecodableClipError
from fastvtp.data.storage import remote, remote_files
from fastvtp.data.storage.finding import UnreadableError, find_file, read_file
from fastvtp.data.stream import Batches, SampleStream
from fastvtp.data.video.decoding import Video, VideoDecodeError
from fastvtp.errors import UserError
from tests.data.loaders import make_loader
from tests.data.object_store import patch_storage
from tests.data.tars import write_shards

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


@pytest.mark.parametrize("scheme", ["http", "s3"])
@pytest.mark.parametrize(
    ("fault", "reason"), [("missing", r"no such object \(404\)"), ("forbidden", r"denied \(403\)")]
)
def test_what_is_not_there_or_not_allowed_is_said_at_once(store, scheme, fault, reason):
    if scheme == "s3":
        pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    store.put("bucket/a.mp4", b"video")
    getattr(store, fault).add("bucket/a.mp4")
    url = f"{store.url}/bucket/a.mp4" if scheme == "http" else "s3://bucket/a.mp4"
    with pytest.raises(UnreadableError, match=reason):
        find_file(url)
    asked = store.requests("bucket/a.mp4")
    assert asked <= 2  # fsspec asks by HEAD, then by GET
    with pytest.raises(VideoDecodeError, match=reason) as caught:
        Video(url)
    assert caught.value.path == url
    assert store.requests("bucket/a.mp4") == asked  # not asked again so soon


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(store, ten_clips, status):
    url = store.put("bucket/a.mp4", ten_clips[0].read_bytes())
    find_file(url)
    shutil.rmtree(remote_files.storage_settings().folder)
    remote_files._cache_in.cache_clear()
    store.failures["bucket/a.mp4"] = [status] * 3
    assert read_file(url) == ten_clips[0].read_bytes()


def test_a_server_that_stays_busy_is_given_up(store, ten_clips):
    url = store.put("bucket/a.mp4", ten_clips[0].read_bytes())
    store.failures["bucket/a.mp4"] = [503] * 1000
    with pytest.raises(UnreadableError, match=r"a.mp4: the server answers with status 503 \(tried 5 times in \d+ s\)"):
        find_file(url)


def test_answers_that_break_off_are_asked_for_again(store, ten_clips):
    url = store.put("bucket/a.mp4", ten_clips[0].read_bytes())
    store.cuts["bucket/a.mp4"] = 2
    assert read_file(url) == ten_clips[0].read_bytes()
    assert store.cuts["bucket/a.mp4"] == 0


def test_a_request_that_stands_still_is_made_again_and_given_up_in_time(store, ten_clips, monkeypatch):
    patch_storage(monkeypatch, request_seconds=0.5, object_seconds=2)
    url = store.put("bucket/a.mp4", ten_clips[0].read_bytes())
    store.stalls["bucket/a.mp4"] = 30
    started = time.monotonic()
    with pytest.raises(UnreadableError, match=r"no answer within 0.\d+ s \(tried \d times in \d s\)"):
        find_file(url)
    assert time.monotonic() - started < 10
    assert store.requests("bucket/a.mp4") > 1


def test_a_slow_link_is_asked_for_less_at_a_time(store, monkeypatch):
    patch_storage(monkeypatch, request_seconds=0.8, object_seconds=30)
    monkeypatch.setattr(remote, "_LEAST_AT_ONCE", 1000)
    content = bytes(range(250)) * 1200
    url = store.put("bucket/a.mp4", content)
    store.rates["bucket/a.mp4"] = 250_000  # all of it takes 1.2 s
    assert read_file(url) == content
    assert store.sent["bucket/a.mp4"] <= 4 * len(content)


def test_a_link_that_is_too_slow_is_called_so(store, monkeypatch):
    patch_storage(monkeypatch, request_seconds=0.3, tries=2)
    url = store.put("bucket/a.mp4", bytes(300_000))
    store.rates["bucket/a.mp4"] = 20_000
    with pytest.raises(
        UnreadableError, match=r"0.25 MB did not come within 0.3 s: no answer, or a slow link \(tried 2"
    ):
        find_file(url)


def test_all_requests_for_one_video_share_one_time_limit(store, monkeypatch):
    patch_storage(monkeypatch, object_seconds=1)
    for name in ("_FIRST_AT_ONCE", "_LEAST_AT_ONCE", "_MOST_AT_ONCE"):
        monkeypatch.setattr(remote, name, 1000)
    url = store.put("bucket/a.mp4", bytes(20_000))
    store.stalls["bucket/a.mp4"] = 0.2  # each of twenty requests
    started = time.monotonic()
    with pytest.raises(UnreadableError, match=r"not read within 1 s|did not come within"):
        find_file(url)
    assert time.monotonic() - started < 2
    other = store.put("bucket/b.mp4", bytes(10))
    with remote.one_opening():
        find_file(other)
        remote.forget(other)
        time.sleep(1)
        with pytest.raises(UnreadableError, match="not read within 1 s"):
            find_file(other)


def test_nothing_secret_is_said(store, monkeypatch):
    patch_storage(monkeypatch, tries=1)
    host = store.url.removeprefix("http://")
    for url in (
        f"http://me:pass-word@{host}/bucket/no.mp4?X-Amz-Signature=abc123",
        f"http://me:pass-word@{host}/bucket/no.tar?sig=abc123::a.mp4",
        "http://me:pass-word@127.0.0.1:9/no.mp4?X-Amz-Signature=abc123",
    ):
        with pytest.raises(UnreadableError) as caught:
            find_file(url)
        with pytest.raises(VideoDecodeError) as named:
            Video(url)
        for said in (str(caught.value), caught.value.reason, str(named.value), named.value.reason):
            assert "pass-word" not in said
            assert "abc123" not in said
        assert "/no." in str(caught.value)


def test_a_missing_package_and_an_unknown_store_end_the_run_with_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"].__dict__["_registry"], "s3", raising=False)
    said = r"s3:// needs a package that is not installed: pip install 'fastvtp\[s3\]'"
    with pytest.raises(UserError, match=said) as caught:
        find_file("s3://bucket/a.mp4")
    assert not isinstance(caught.value, UnreadableError)
    with pytest.raises(UserError, match="fsspec knows no filesystem nowhere://"):
        find_file("nowhere://bucket/a.mp4")


class _Faulty(fsspec.get_filesystem_class("memory")):
    """fsspec's memory, whose next calls fail as `faults` says."""

    protocol = "faulty"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    faults: list[Callable[[bytes], Any]] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("faulty://", "memory://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        content = super().cat_file(path, start=start, end=end, **kwargs)
        return self.faults.pop(0)(content) if self.faults else content


def fail(error: Exception) -> Callable[[bytes], Any]:
    def work(content: bytes) -> Any:
        raise error

    return work


@pytest.fixture
def faulty(tmp_path, monkeypatch, ten_clips):
    patch_storage(monkeypatch, cache_dir=tmp_path / "cache", request_seconds=0.5, object_seconds=10)
    monkeypatch.setattr(remote, "_FIRST_WAIT", 0.01)
    fsspec.register_implementation("faulty", _Faulty, clobber=True)
    _Faulty.store.clear()
    _Faulty.faults = []
    fsspec.filesystem("faulty").pipe_file("/a.mp4", ten_clips[0].read_bytes())
    remote.forget("faulty://a.mp4")
    return _Faulty.faults


@pytest.mark.parametrize(
    "fault",
    [
        fail(ConnectionResetError("reset")),
        fail(OSError(5, "Please reduce your request rate.")),
        fail(TimeoutError()),
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: time.sleep(5),
    ],
    ids=["reset", "throttled", "timeout", "short", "empty", "stall"],
)
def test_passing_faults_of_any_filesystem_are_outlasted(faulty, ten_clips, fault):
    faulty += [fault, fault]
    assert read_file("faulty://a.mp4") == ten_clips[0].read_bytes()
    assert faulty == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError("a.mp4"), r"no such object \(404\)"),
        (PermissionError("Access Denied"), r"access denied \(403\)"),
    ],
)
def test_lasting_faults_of_any_filesystem_are_not(faulty, error, reason):
    faulty += [fail(error), fail(ConnectionError("not asked for"))]
    with pytest.raises(UnreadableError, match=reason):
        find_file("faulty://a.mp4")
    assert len(faulty) == 1


@pytest.mark.parametrize(
    ("each", "workers"), [(1, 0), pytest.param(4, 2, marks=pytest.mark.long)], ids=["small", "workers"]
)
def test_a_pass_over_a_faulty_store_ends_and_names_every_bad_object(store, ten_clips, monkeypatch, each, workers):
    """Of ten objects one is missing and one does not answer in time, one answers late; a tar is gone."""
    patch_storage(monkeypatch, request_seconds=1, object_seconds=2, tries=2)
    total = 10 * each
    urls = [store.put(f"bucket/{i}.mp4", ten_clips[i % 10].read_bytes()) for i in range(total)]
    records = [VideoRecord(url, url, ("",)) for url in urls]
    write_shards(store.folder / "bucket", ten_clips[:4], 2)
    records += load_annotations(f"{store.url}/bucket/{{00000..00001}}.tar")
    store.missing |= {f"bucket/{number}.mp4" for number in range(3, total, 20)}
    store.stalls |= {f"bucket/{number}.mp4": 30 for number in range(8, total, 20)} | {"bucket/5.mp4": 0.1}
    store.missing |= {"bucket/00001.tar"}
    for tar in (0, 1):
        remote.forget(f"{store.url}/bucket/0000{tar}.tar")
    given = {"num_frames": 2, "image_size": 24, "batch_size": 4, "train": False, "num_workers": workers}
    with make_loader(records, None, decoder="pyav", **given) as loader:
        seen = sorted(number for batch in loader for number in batch.sample_ids.tolist())
        bad = loader.bad_files
    lost = dict.fromkeys(range(3, total, 20), "no such object (404)") | dict.fromkeys(range(8, total, 20), "no answer")
    lost |= dict.fromkeys((total + 2, total + 3), "its tar: no such object (404)")
    assert seen == [number for number in range(total + 4) if number not in lost]
    assert sorted(bad) == sorted(records[number].video for number in lost)
    for number, reason in lost.items():
        assert reason in bad[records[number].video]


def test_a_worker_that_is_killed_while_a_store_stalls_changes_nothing(store, ten_clips, caplog):
    given = {"num_frames": 2, "image_size": 24, "batch_size": 5, "train": True, "num_steps": 2, "decoder": "pyav"}
    with make_loader(
        [VideoRecord(f"{i}", str(clip), ("",)) for i, clip in enumerate(ten_clips)], None, **given
    ) as plain:
        expected = [batch.video for batch in plain]
    urls = [store.put(f"bucket/{i}.mp4", clip.read_bytes()) for i, clip in enumerate(ten_clips)]
    store.stalls["bucket/4.mp4"] = 8  # in good time, but for who is killed meanwhile
    pids = []

    def kill() -> None:
        while not store.requests("bucket/4.mp4"):
            time.sleep(0.02)
        pids.extend(loader.worker_pids)
        store.stalls.clear()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    records = [VideoRecord(f"{i}", url, ("",)) for i, url in enumerate(urls)]
    with make_loader(records, None, num_workers=2, **given) as loader:
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        found = [batch.video for batch in loader]
        killer.join(10)
        assert loader.bad_files == {}
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))
    assert len(pids) == 2
    for pid in pids:
        assert f"decoding worker {pid} was ended by SIGKILL" in caplog.text


def test_all_requests_of_one_attempt_share_their_time(monkeypatch):
    limits = []

    class Asking(ClipSource):
        def attempt(self, number, attempt):
            limits.append(remote._limits.until)
            raise VideoDecodeError("s3://bucket/a.mp4", "silent")

    records = [VideoRecord(str(n), f"s3://bucket/{n}.mp4", ("x",)) for n in range(2)]
    stream = SampleStream(2, Batches(batch_size=1, train=True))
    source = Asking(records, stream, reading=ClipReading(), shape=ClipShape(2, 32))
    with pytest.raises(NoDecodableClipError):
        source.load(0)
    assert len(limits) == 2
    assert None not in limits
    assert limits[0] < limits[1]  # each attempt has its own
    assert remote._limits.until is None
