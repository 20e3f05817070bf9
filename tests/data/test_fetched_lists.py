"""Lists behind URLs, with videos beside them."""

import json
import logging

import pytest

from fastvtp.data.annotations import load_annotations, load_videos
from fastvtp.data.classes import load_classes
from fastvtp.data.formats.listing import describe_list
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.questions import load_questions
from fastvtp.errors import UserError
from tests.data.object_store import serve

pytest.importorskip("fsspec")

ROWS = [{"video": "clips/a.mp4", "caption": "x"}, {"video": "../b.mp4", "caption": "y", "start": 1}]


def lines(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def store(tmp_path):
    pytest.importorskip("aiohttp")
    (tmp_path / "store").mkdir()
    with serve(tmp_path / "store") as served:
        yield served


def test_a_list_over_http_is_read_once_and_its_videos_are_beside_it(store, caplog):
    url = store.put("train.jsonl", lines(*ROWS))
    with caplog.at_level(logging.INFO):
        records = load_annotations(f"{url}?signature=secret")
    base = url.rpartition("/")[0]
    assert [record.video for record in records] == [f"{base}/clips/a.mp4", f"{base}/b.mp4"]  # none above the host
    assert [(record.captions, record.start) for record in records] == [(("x",), None), (("y",), 1.0)]
    assert f"{url}: read as " in caplog.text
    assert "secret" not in caplog.text
    assert describe_list(f"{url}?signature=secret")["list"] == url
    sent = dict(store.sent)
    assert load_annotations(f"{url}?signature=secret") == records
    assert store.sent == sent


def test_lists_of_every_kind_are_read_from_a_store(caplog):
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, content in {
        "sets/questions.jsonl": lines({"video": "a.mp4", "question": "what?", "answer": "a dog"}),
        "sets/classes.csv": b"a.mp4 1\nb.mp4 0\n",
        "sets/table.tsv": b"path\ttitle\nc/a.mp4\ta dog\n",
        "sets/paths.txt": b"a.mp4\nb.mp4\n",
        "sets/array.json": json.dumps([{"video": "a.mp4", "caption": "x"}]).encode(),
    }.items():
        memory.pipe_file(f"/{name}", content)
    assert load_questions("memory://sets/questions.jsonl").records[0].video == "memory://sets/a.mp4"
    assert load_classes("memory://sets/classes.csv").labels == (1, 0)
    table = VideoList("memory://sets/table.tsv", videos="s3://bucket/all")
    assert [(record.video, record.captions) for record in load_annotations(table)] == [
        ("s3://bucket/all/c/a.mp4", ("a dog",))
    ]
    assert [record.video for record in load_videos("memory://sets/paths.txt")] == [
        "memory://sets/a.mp4", "memory://sets/b.mp4",
    ]  # fmt: skip
    assert load_annotations("memory://sets/array.json")[0].video == "memory://sets/a.mp4"


def test_paths_and_names_are_looked_for_from_the_folder_of_a_list():
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/named/lists/list.jsonl", lines(ROWS[1], {"video": "../../../c.mp4", "caption": "z"}))
    above = [record.video for record in load_annotations("memory://named/lists/list.jsonl")]
    assert above == ["memory://named/b.mp4", "memory://named/c.mp4"]
    memory.rm_file("/named/lists/list.jsonl")
    memory.pipe_file("/named/list.jsonl", lines(*({"clip_name": name, "caption": name} for name in ("a", "gone"))))
    memory.pipe_file("/named/deep/a.webm", b"0")
    records = load_annotations("memory://named/list.jsonl")
    assert [record.video for record in records] == ["memory://named/deep/a.webm"]


def test_a_list_that_cannot_be_had_is_one_line(store):
    with pytest.raises(UserError) as refused:
        load_annotations(f"{store.url}/gone.jsonl")
    assert str(refused.value).startswith(f"{store.url}/gone.jsonl: ")
    bad = store.put("bad.jsonl", b'{"video": 3}\n')
    with pytest.raises(UserError, match=r"/bad\.jsonl, line 1: field 'caption'"):
        load_annotations(bad)


def test_a_password_holds_for_the_videos_beside_a_list_and_a_signature_does_not(store):
    (store.folder / "sets").mkdir()
    url = store.put("sets/train.jsonl", lines(*ROWS)).replace("http://", "http://me:pass-word@")
    videos = [record.video for record in load_annotations(f"{url}?signature=secret")]
    base = url.removesuffix("/sets/train.jsonl")
    assert videos == [f"{base}/sets/clips/a.mp4", f"{base}/b.mp4"]


def test_a_list_of_which_no_copy_can_be_written_is_one_line():
    import fsspec

    name = f"{'a' * 300}.jsonl"  # longer than a name of this machine may be
    fsspec.filesystem("memory").pipe_file(f"/sets/{name}", lines(*ROWS))
    for _ in range(2):
        with pytest.raises(UserError, match=r"a\.jsonl: no copy of it can be written: File name too long"):
            load_annotations(f"memory://sets/{name}")
