"""The side index of a tar: where its members lie, what is odd about it, and that it is never out of date."""

import gzip
import io
import logging
import multiprocessing
import os
import random
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from fastvtp.data.storage import remote, tar_index
from fastvtp.data.storage.finding import UnreadableError, find_file, read_file
from fastvtp.data.storage.range_file import RangeFile, buffered
from fastvtp.data.storage.tar_index import SUFFIX, index_tar, member_table, tar_listing
from fastvtp.data.storage.tar_members import read_members
from tests.data.object_store import patch_storage
from tests.data.tars import write_tar

LONG = "/".join(["a folder with a long name"] * 12) + "/dåta.mp4"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    patch_storage(monkeypatch, cache_dir=tmp_path / "cache")
    return tmp_path / "cache"


def payload(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_read_where_they_lie(tmp_path, form):
    files = [(f"{i:03d}.mp4", payload(i, size)) for i, size in enumerate([1, 511, 512, 513, 100_000, 0])]
    if form != tarfile.USTAR_FORMAT:
        files.insert(3, (LONG, payload(77, 700)))
    tar = write_tar(tmp_path / "0.tar", files, format=form)
    for name, content in files:
        found = find_file(f"{tar}::{name}")
        assert found.size == len(content)
        assert read_file(f"{tar}::{name}") == content
        with found.open() as file:
            file.seek(-min(5, len(content)), os.SEEK_END)
            assert file.read(100) == content[-5:]
    assert tar_listing(str(tar)).names == tuple(name for name, _ in files)
    assert tar_listing(str(tar)).notes == ()


def test_names_that_begin_with_a_dot_are_found_with_and_without_it(tmp_path):
    tar = write_tar(tmp_path / "0.tar", [("./a.mp4", b"aa"), ("b/../c.mp4", b"cc")])
    assert read_file(f"{tar}::a.mp4") == read_file(f"{tar}::./a.mp4") == b"aa"
    assert read_file(f"{tar}::c.mp4") == b"cc"


def test_only_headers_are_read():
    """Of 60 MB with 60 members the payload is skipped."""
    data, asked = io.BytesIO(), [0]
    with tarfile.open(fileobj=data, mode="w") as tar:
        for i in range(60):
            member = tarfile.TarInfo(f"{i}.mp4")
            member.size = 1_000_000
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    content = data.getvalue()

    def read_at(first: int, last: int) -> bytes:
        asked[0] += last - first
        return content[first:last]

    members = read_members(buffered(RangeFile(len(content), read_at), 1 << 13), len(content))
    assert len(members.names) == 60
    assert asked[0] < 1_200_000


def test_a_repeated_name_means_the_last_one(tmp_path, caplog):
    tar = write_tar(tmp_path / "0.tar", [("a.mp4", b"first"), ("b.mp4", b"b"), ("a.mp4", b"second")])
    assert read_file(f"{tar}::a.mp4") == b"second"
    assert "1 names come more than once" in caplog.text


def test_what_is_no_plain_file_is_left_out_and_named(tmp_path):
    tar = tmp_path / "0.tar"
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as file:
        for name, kind, target in (
            ("folder", tarfile.DIRTYPE, ""),
            ("a.mp4", tarfile.REGTYPE, ""),
            ("same.mp4", tarfile.LNKTYPE, "a.mp4"),
            ("lost.mp4", tarfile.LNKTYPE, "no.mp4"),
            ("soft.mp4", tarfile.SYMTYPE, "a.mp4"),
            ("pipe.mp4", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, target, 3 if kind == tarfile.REGTYPE else 0
            file.addfile(member, io.BytesIO(b"abc"))
    assert tar_listing(str(tar)).names == ("a.mp4", "same.mp4")
    assert read_file(f"{tar}::same.mp4") == b"abc"
    assert tar_listing(str(tar)).notes == (
        "2 links left out, the first lost.mp4",
        "1 members that are no files left out, the first pipe.mp4",
    )
    with pytest.raises(UnreadableError, match=r"pipe.mp4: the tar holds no file of that name"):
        find_file(f"{tar}::pipe.mp4")


def test_sparse_files_are_left_out_and_named(tmp_path):
    header = tarfile.TarInfo("holes.mp4")
    header.type, header.size = tarfile.GNUTYPE_SPARSE, 512
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[386:410], block[483:495] = b"%011o\0%011o\0" % (0, 512), b"%011o\0" % 4096
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:]))
    tar = tmp_path / "0.tar"
    rest = io.BytesIO()
    with tarfile.open(fileobj=rest, mode="w") as file:
        member = tarfile.TarInfo("b.mp4")
        member.size = 2
        file.addfile(member, io.BytesIO(b"bb"))
    tar.write_bytes(bytes(block) + bytes(512) + rest.getvalue())
    assert tar_listing(str(tar)).names == ("b.mp4",)
    assert tar_listing(str(tar)).notes == ("1 sparse files left out, the first holes.mp4",)
    assert read_file(f"{tar}::b.mp4") == b"bb"


def cut(end: int):
    return lambda content: content[:end]


def damaged(at: int):
    return lambda content: content[:at] + b"\x55" * 512 + content[at + 512 :]


# a.mp4 lies at 512 to 1536, b.mp4 at 2048 to 2748, c.mp4 at 3584 to 4284; each begins with a header of 512 bytes
@pytest.mark.parametrize(
    ("change", "names", "note"),
    {
        "in a member": (cut(4200), ("a.mp4", "b.mp4"), "breaks off inside c.mp4"),
        "in a header": (cut(3300), ("a.mp4", "b.mp4"), "ends after b.mp4 without an end mark"),
        "in padding": (cut(2800), ("a.mp4", "b.mp4"), "breaks off or is damaged after b.mp4"),
        "after a member": (cut(3072), ("a.mp4", "b.mp4"), "ends after b.mp4 without an end mark"),
        "damaged header": (damaged(3072), ("a.mp4", "b.mp4"), "is damaged after b.mp4"),
        "two tars": (lambda data: data[:5120] + bytes(10240) + data * 200, ("a.mp4", "b.mp4", "c.mp4"), "several tars"),
    }.values(),
    ids=["member", "header", "padding", "boundary", "damaged", "two"],
)
def test_of_a_broken_tar_what_is_whole_is_read_and_the_rest_is_named(tmp_path, caplog, change, names, note):
    files = [("a.mp4", payload(1, 1024)), ("b.mp4", payload(2, 700)), ("c.mp4", payload(3, 700))]
    tar = write_tar(tmp_path / "0.tar", files)
    tar.write_bytes(change(tar.read_bytes()))
    assert tar_listing(str(tar)).names == names
    assert len(tar_listing(str(tar)).notes) == 1
    assert note in tar_listing(str(tar)).notes[0]
    assert sum(note in record.getMessage() and str(tar) in record.getMessage() for record in caplog.records) == 1
    for name, content in files[: len(names)]:
        assert read_file(f"{tar}::{name}") == content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "zero bytes"),
        (b"no tar" * 1000, r"not a tar \("),
        (gzip.compress(bytes(10240), mtime=0), "a tar compressed with gzip, whose files cannot be reached one by one"),
    ],
)
def test_what_is_no_tar_is_refused_with_its_reason(tmp_path, content, reason):
    tar = tmp_path / "0.tar"
    tar.write_bytes(content)
    with pytest.raises(UnreadableError, match=rf"0.tar: {reason}"):
        tar_listing(str(tar))
    with pytest.raises(UnreadableError, match=rf"0.tar::a.mp4: its tar: {reason}"):
        find_file(f"{tar}::a.mp4")


def test_a_missing_tar_and_one_that_is_a_pipe_are_refused(tmp_path):
    with pytest.raises(UnreadableError, match=r"no.tar::a.mp4: its tar: No such file or directory"):
        find_file(f"{tmp_path}/no.tar::a.mp4")
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(UnreadableError, match="not a regular file but a pipe"):
        find_file(f"{tmp_path}/pipe.tar::a.mp4")


def test_a_changed_tar_is_indexed_anew(tmp_path):
    tar = write_tar(tmp_path / "0.tar", [("a.mp4", b"one"), ("b.mp4", b"two")])
    assert read_file(f"{tar}::b.mp4") == b"two"
    assert (tmp_path / f"0.tar{SUFFIX}").exists()
    before = find_file(f"{tar}::b.mp4").key
    write_tar(tar, [("b.mp4", b"new"), ("a.mp4", b"one")])  # as many bytes as before
    os.utime(tar, ns=(1, 1))
    assert read_file(f"{tar}::b.mp4") == b"new"
    assert find_file(f"{tar}::b.mp4").key != before
    assert tar_listing(str(tar)).names == ("b.mp4", "a.mp4")


def test_an_index_is_used_and_a_damaged_one_made_anew(tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "0.tar", [("a.mp4", b"one"), ("a.txt", "said")])
    index_tar(str(tar))
    index = tmp_path / f"0.tar{SUFFIX}"
    with monkeypatch.context() as patch:
        patch.setattr("fastvtp.data.storage.tar_index.read_members", None)  # nobody looks into the tar
        assert tar_listing(str(tar)).texts == {"a.txt": "said"}
    whole = index.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"\0" * len(whole)):
        index.write_bytes(content)
        assert tar_listing(str(tar)).names == ("a.mp4", "a.txt")
        assert len(index.read_bytes()) == len(whole)
    directory = whole.index(b"PK\1\2")
    for field, value in ((6, 99), (8, 1), (10, 99)):  # version of zip, encryption and compression of an array
        content = bytearray(whole)
        content[directory + field] = value
        index.write_bytes(content)
        assert tar_listing(str(tar)).names == ("a.mp4", "a.txt")


def test_an_index_goes_to_the_cache_where_none_can_be_written_beside_the_tar(tmp_path, cache, caplog):
    (tmp_path / "shards").mkdir()
    for name in ("0.tar", "1.tar"):
        write_tar(tmp_path / "shards" / name, [("a.mp4", b"one")])
        (tmp_path / "shards" / f"{name}{SUFFIX}").mkdir()  # root may write anywhere, but not over a folder
        assert read_file(f"{tmp_path}/shards/{name}::a.mp4") == b"one"
    assert len(list((cache / "indexes").iterdir())) == 2
    assert sum("no index can be written beside the tars" in message for message in caplog.messages) == 1
    place = tar_listing(str(tmp_path / "shards" / "0.tar")).place
    assert place is not None
    assert Path(place).parent == cache / "indexes"
    assert [path.name for path in (tmp_path / "shards").iterdir() if path.name.startswith(".")] == []


def test_processes_that_index_at_once_are_harmless(tmp_path):
    tar = write_tar(tmp_path / "0.tar", [(f"{i:04d}.mp4", payload(i, 3)) for i in range(200)])
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        tables = list(pool.map(_indexed_often, [str(tar)] * 2))
    assert tables == [tables[0]] * 2
    assert sorted(os.listdir(tmp_path)) == ["0.tar", f"0.tar{SUFFIX}"]


def _indexed_often(tar: str) -> list[int]:
    logging.disable()
    for _ in range(20):
        index_tar(tar)
        assert len(tar_listing(tar).names) == 200
    return member_table(tar).offset.tolist()


def test_an_index_of_a_tar_without_a_version_is_not_kept_for_another_process(tmp_path, monkeypatch):
    """Where a store tells neither ETag nor time, another tar of the same size would go by it, and give wrong bytes."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(remote, "_version", lambda said: None)
    memory = fsspec.filesystem("memory")
    for names in (("a.mp4", "b.mp4"), ("b.mp4", "a.mp4")):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 5
                tar.addfile(info, io.BytesIO(f"{name}".encode()))
        memory.pipe_file("/versions/0.tar", packed.getvalue())
        tar_index._tables.forget()  # as in another process
        remote.forget("memory://versions/0.tar")
        assert [read_file(f"memory://versions/0.tar::{name}") for name in ("a.mp4", "b.mp4")] == [b"a.mp4", b"b.mp4"]
