"""Videos in object stores: HTTP and S3 on loopback, fsspec's memory, and what goes wrong there."""

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvtp.data.annotations import VideoRecord, load_annotations
from fastvtp.data.source import ClipSource
from fastvtp.data.storage import remote, remote_files, tar_index
from fastvtp.data.storage.finding import UnreadableError, find_file, read_file
from fastvtp.data.storage.range_file import Scan
from fastvtp.data.storage.tar_index import SUFFIX, tar_listing
from fastvtp.data.storage.tar_samples import tar_samples
from fastvtp.data.video.decoding import Video
from tests.data.loaders import make_loader
from tests.data.object_store import Store, patch_storage, s3_environment
from tests.data.tars import write_shards, write_tar

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

# --- The same clips, wherever they lie


def plain(store: Store, clips: list[Path]) -> list[VideoRecord]:
    return [VideoRecord(clip.stem, str(clip), (f"clip {clip.stem}",)) for clip in clips]


def tars(store: Store, clips: list[Path]) -> list[VideoRecord]:
    write_shards(store.folder / "bucket", clips, 4)
    return load_annotations(store.folder / "bucket")


def tars_over_http(store: Store, clips: list[Path]) -> list[VideoRecord]:
    write_shards(store.folder / "bucket", clips, 4)
    return load_annotations(f"{store.url}/bucket/{{00000..00002}}.tar")


def tars_over_s3(store: Store, clips: list[Path]) -> list[VideoRecord]:
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    write_shards(store.folder / "bucket", clips, 4)
    return load_annotations("s3://bucket")


def tars_in_memory(store: Store, clips: list[Path]) -> list[VideoRecord]:
    memory = fsspec.filesystem("memory")
    for tar in write_shards(store.folder / "bucket", clips, 4):
        memory.pipe_file(f"/deep/er/{tar.name}", tar.read_bytes())
    return load_annotations("memory://deep")


def objects_over_http(store: Store, clips: list[Path]) -> list[VideoRecord]:
    for clip in clips:
        shutil.copy(clip, store.folder / "bucket")
    return [VideoRecord(clip.stem, f"{store.url}/bucket/{clip.name}", (f"clip {clip.stem}",)) for clip in clips]


def parquet_rows(store: Store, clips: list[Path]) -> list[VideoRecord]:
    path = str(write_parquet(store.folder / "bucket" / "x.parquet", clips))
    return [VideoRecord(clip.stem, f"{path}::{i}", (f"clip {clip.stem}",)) for i, clip in enumerate(clips)]


def parquet_over_http(store: Store, clips: list[Path]) -> list[VideoRecord]:
    write_parquet(store.folder / "bucket" / "x.parquet", clips)
    path = f"{store.url}/bucket/x.parquet"
    return [VideoRecord(clip.stem, f"{path}::{i}", (f"clip {clip.stem}",)) for i, clip in enumerate(clips)]


def write_parquet(path: Path, clips: list[Path]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"bytes": clip.read_bytes(), "path": clip.name} for clip in clips]
    parquet.write_table(pyarrow.table({"video": rows, "n": list(range(len(rows)))}), path, row_group_size=3)
    return path


SOURCES = (
    *(tars, tars_over_http, tars_over_s3, tars_in_memory),
    *(objects_over_http, parquet_rows, parquet_over_http),
)


def batches(records: list[VideoRecord], start: int, steps: int, **settings: Any) -> list[tuple[Any, ...]]:
    given = {
        **{"num_frames": 4, "image_size": 24, "batch_size": 3, "train": True, "seed": 5, "start_step": start},
        **{"num_workers": 0, "decoder": "pyav", **settings},
    }
    with make_loader(records, None, **given) as loader:
        made = list(islice(loader, steps))
        assert loader.bad_files == {}
    return [(batch.video, batch.captions, batch.sample_ids.tolist()) for batch in made]


def same(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_order_and_pixels_are_those_of_plain_files(store, ten_clips, source):
    expected = batches(plain(store, ten_clips), 0, 6)
    records = source(store, ten_clips)
    assert [record.id for record in records] == [clip.stem for clip in ten_clips]
    assert same(batches(records, 0, 6), expected)
    assert same(batches(records, 4, 2), expected[4:])  # a run that goes on


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_workers_read_the_same_from_a_store(store, ten_clips, workers):
    expected = batches(plain(store, ten_clips), 0, 3, batch_size=4)
    records = tars_over_http(store, ten_clips)
    assert same(batches(records, 1, 2, batch_size=4, num_workers=workers), expected[1:])


def test_ranks_read_the_same_from_a_store(store, ten_clips):
    expected = batches(plain(store, ten_clips), 0, 4, batch_size=4)
    records = tars_over_s3(store, ten_clips)
    for rank in range(2):
        mine = batches(records, 2, 2, batch_size=2, rank=rank, world_size=2)
        halves = [(video[2 * rank :][:2], *(part[2 * rank :][:2] for part in rest)) for video, *rest in expected[2:]]
        assert same(mine, halves)


def test_moto_serves_the_same(tmp_path, monkeypatch, ten_clips):
    """The S3 of others' making, where it is installed."""
    server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    patch_storage(monkeypatch, cache_dir=tmp_path / "cache")
    moto = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        for name, value in s3_environment(Store(tmp_path, f"http://{host}:{port}")).items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        filesystem = s3fs.S3FileSystem()
        filesystem.mkdir("films")
        for tar in write_shards(tmp_path / "shards", ten_clips, 4):
            filesystem.put_file(str(tar), f"films/train/{tar.name}")
        records = load_annotations("s3://films/train/*.tar")
        assert [record.video for record in records][:1] == ["s3://films/train/00000.tar::00000.mp4"]
        for record, clip in zip(records, ten_clips, strict=True):
            assert read_file(record.video) == clip.read_bytes()
        with pytest.raises(UnreadableError, match=r"s3://films/no.mp4: no such object \(404\)"):
            find_file("s3://films/no.mp4")
    finally:
        moto.stop()


# --- What is asked of the store


def test_a_member_is_one_request_and_afterwards_none(store, ten_clips):
    records = tars_over_http(store, ten_clips)
    tar = "bucket/00001.tar"
    store.asked.clear()
    store.sent.clear()
    for _ in range(3):
        assert read_file(records[4].video) == ten_clips[4].read_bytes()
    assert store.requests(tar) == 1
    assert store.sent[tar] == ten_clips[4].stat().st_size
    remote.forget(f"{store.url}/{tar}")  # as another process would
    assert read_file(records[4].video) == ten_clips[4].read_bytes()
    assert store.sent[tar] == ten_clips[4].stat().st_size


def test_the_index_of_a_remote_tar_reads_headers_and_is_kept(store, tmp_path, caplog):
    files = [
        (f"{i}.{suffix}", content) for i in range(20) for suffix, content in (("mp4", bytes(400_000)), ("txt", "a"))
    ]
    write_tar(store.folder / "bucket" / "0.tar", files)
    url = f"{store.url}/bucket/0.tar"
    assert len(tar_listing(url).names) == 40
    assert store.sent["bucket/0.tar"] < 1_500_000
    assert store.requests("bucket/0.tar") < 30
    store.sent.clear()
    assert tar_listing(url).texts["19.txt"] == "a"
    assert store.sent["bucket/0.tar"] == 0
    assert len(list((tmp_path / "cache" / "indexes").iterdir())) == 1


def test_tars_of_a_store_are_indexed_several_at_a_time(store):
    urls = []
    for number in range(40):
        files = [(f"{number}.mp4", bytes(3)), (f"{number}.txt", f"{number}")]
        urls.append(store.put(f"bucket/{number:02d}.tar", write_tar(store.folder / "one.tar", files).read_bytes()))
        store.stalls[f"bucket/{number:02d}.tar"] = 0.1
    assert [sample.captions() for sample in tar_samples(urls)] == [(f"{number}",) for number in range(40)]
    assert store.most_at_once > 3
    assert len(list(islice(tar_samples(urls), 3))) == 3


def test_tars_that_a_list_names_are_indexed_before_anything_is_read(store, ten_clips, tmp_path, seen_tars):
    """Several at a time, and by the main process: a worker has the time of one file alone."""
    names = [f"{number:02d}.tar" for number in range(12)]
    for name in names:
        write_tar(store.folder / "bucket" / name, [("a.mp4", ten_clips[0])])
        store.stalls[f"bucket/{name}"] = 0.1
    local = write_tar(tmp_path / "here.tar", [("a.mp4", ten_clips[0])])
    records = [VideoRecord(name, f"{store.url}/bucket/{name}::a.mp4", ("",)) for name in (*names, "no.tar")]
    records.append(VideoRecord("here", f"{local}::a.mp4", ("",)))
    given = {"num_frames": 2, "image_size": 24, "batch_size": 4, "train": False, "num_workers": 0, "decoder": "pyav"}
    with make_loader(records, None, **given) as loader:
        ready = len(seen_tars)
        seen = [number for batch in loader for number in batch.sample_ids.tolist()]
        assert loader.bad_files == {records[12].video: "its tar: no such object (404)"}
    assert seen == [*range(12), 13]
    assert (ready, len(seen_tars)) == (0, 13)
    assert store.most_at_once > 3


@pytest.fixture
def seen_tars(monkeypatch) -> list[int]:
    """The sizes of the tars that are looked through; to look through one while a sample is made fails."""
    sizes: list[int] = []
    read, attempt = tar_index.read_members, ClipSource.attempt

    def looked_through(file: Any, size: int, *rest: Any) -> Any:
        sizes.append(size)
        return read(file, size, *rest)

    def attempted(source: ClipSource, *which: int) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tar_index, "read_members", None)
            return attempt(source, *which)

    monkeypatch.setattr(tar_index, "read_members", looked_through)
    monkeypatch.setattr(ClipSource, "attempt", attempted)
    return sizes


def test_an_index_beside_a_remote_tar_is_used(store, tmp_path):
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    from fastvtp.data.storage.shard_indexing import index_tars

    write_tar(store.folder / "bucket" / "0.tar", [("a.mp4", b"one"), ("b.mp4", b"two")])
    (done,) = index_tars(["s3://bucket/0.tar"], again=True)
    assert done.place == f"s3://bucket/0.tar{SUFFIX}"
    assert (store.folder / "bucket" / f"0.tar{SUFFIX}").exists()
    shutil.rmtree(tmp_path / "cache")
    store.sent.clear()
    assert tar_listing("s3://bucket/0.tar").names == ("a.mp4", "b.mp4")
    assert store.sent["bucket/0.tar"] == 0
    assert read_file("s3://bucket/0.tar::b.mp4") == b"two"


def test_scans_read_little_where_parts_are_skipped_and_much_where_not():
    data = bytes(range(256)) * 40_000
    asked: list[tuple[int, int]] = []

    def read_at(first: int, last: int) -> bytes:
        asked.append((first, last))
        return data[first:last]

    scan = Scan(len(data), read_at, 1000, 64_000)
    for at in range(0, len(data), 1_000_000):
        assert scan(at, at + 512) == data[at : at + 512]
    assert {last - first for first, last in asked} == {1000}
    asked.clear()
    scan = Scan(len(data), read_at, 1000, 64_000)
    assert b"".join(scan(at, at + 512) for at in range(0, 10_240_000, 512)) == data
    assert len(asked) < 200


def test_a_large_object_is_read_in_blocks(store, monkeypatch, ten_clips):
    patch_storage(monkeypatch, whole_mb=0.001)
    monkeypatch.setattr(remote_files, "_BLOCK", 1 << 12)
    video = ten_clips[3].read_bytes()
    url = store.put("bucket/large.mp4", video + b"\0\0\x4c\x40free" + bytes(5_000_000 - 8))  # a box of nothing
    with Video(url) as remote_video, Video(str(ten_clips[3])) as local:
        assert np.array_equal(remote_video.read(range(8)), local.read(range(8)))
    assert 0 < store.sent["bucket/large.mp4"] < 200_000
    assert find_file(url).path is None


def test_of_a_server_without_ranges_each_object_comes_once(store, ten_clips, monkeypatch, caplog):
    """Python's own http.server, say, which answers with all of a file."""
    monkeypatch.setattr(remote, "_MOST_AT_ONCE", 1000)
    monkeypatch.setattr(type(store), "knows_ranges", False)
    remote._say_no_ranges.cache_clear()
    url = store.put("bucket/a.mp4", ten_clips[0].read_bytes())
    assert read_file(url) == ten_clips[0].read_bytes()
    assert store.sent["bucket/a.mp4"] == ten_clips[0].stat().st_size
    tar = write_tar(store.folder / "bucket" / "0.tar", [(f"{i}.mp4", clip) for i, clip in enumerate(ten_clips)])
    for numbers in ((3, 7), (5, 3)):
        for number in numbers:
            assert read_file(f"{store.url}/bucket/0.tar::{number}.mp4") == ten_clips[number].read_bytes()
        shutil.rmtree(remote_files.storage_settings().folder / "indexes", ignore_errors=True)
        tar_index._tables.forget()  # as another process would
        remote._without_ranges.clear()
    assert store.sent["bucket/0.tar"] == tar.stat().st_size
    said = [line for line in caplog.messages if "the server sends no parts of objects" in line]
    assert len(said) == 1
    assert store.url in said[0]


@pytest.mark.parametrize("setting", [{"cache_gb": 0}, {"whole_mb": 0.001}])
def test_without_ranges_and_room_an_object_is_kept_in_memory_or_refused_with_a_line(
    store, ten_clips, monkeypatch, setting
):
    patch_storage(monkeypatch, **setting)
    monkeypatch.setattr(type(store), "knows_ranges", False)
    tar = write_tar(store.folder / "bucket" / "0.tar", [(f"{i}.mp4", clip) for i, clip in enumerate(ten_clips)])
    for number in (3, 7):
        location = f"{store.url}/bucket/0.tar::{number}.mp4"
        if "cache_gb" in setting:
            assert read_file(location) == ten_clips[number].read_bytes()
        else:
            with pytest.raises(UnreadableError, match=r"no parts of objects .* more than whole_mb \(0.001\)"):
                find_file(location)
    assert store.sent["bucket/0.tar"] == tar.stat().st_size
