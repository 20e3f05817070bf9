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
    assert f"{url}: fetched; files beside it are not looked for" in caplog.text
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


DAMAGED = {
    "line.jsonl": (lines(ROWS[0]) + b"{broken\n", load_annotations, "line.jsonl, line 2: not JSON"),
    "utf8.jsonl": (lines(ROWS[0]) + b'{"video": "\xff"}\n', load_annotations, "utf8.jsonl, line 2: expected UTF-8"),
    "utf8.csv": (b"path,title\na.mp4,\xff\n", load_annotations, "utf8.csv, line 2: expected UTF-8"),
    "entry.json": (b'[{"video": "a.mp4", "caption": "x"}, 3]', load_annotations, "entry.json, line 1, entry 2: exp"),
    "array.json": (b'[{"video": "a.mp4", "caption": "x"}, {]', load_annotations, "array.json, line 1: not JSON"),
    "row.tsv": (b"path\ttitle\na.mp4\n", load_annotations, "row.tsv, line 2: field 'title': is missing"),
    "label.csv": (b"a.mp4 1\nb.mp4 x\n", load_classes, "label.csv, line 2: field 'label'"),
    "question.jsonl": (lines({"video": "a.mp4", "question": "q"}), load_questions, "question.jsonl, line 1: field 'an"),
    "span.jsonl": (lines({**ROWS[1], "end": 0.5}), load_annotations, "span.jsonl, line 1: field 'end'"),
    "strange.json": (b'{"a": 1}', load_annotations, "strange.json: expected a .jsonl file"),
    "hmdb_test_split1.txt": (b"a.avi 1\nb.avi 7\n", load_classes, "hmdb_test_split1.txt, line 2: field 'flag'"),
    "empty.jsonl": (b"\n", load_annotations, "empty.jsonl: lists no videos"),
    "nul.json": (b"\0\0\n", load_annotations, "nul.json: expected a .jsonl file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_wrong_with_a_fetched_list_is_said_of_its_url(name, store, caplog):
    """Not of the copy, which nobody made and which goes with the process; and without its signature."""
    content, load, said = DAMAGED[name]
    url = store.put(name, content)
    with caplog.at_level(logging.INFO), pytest.raises(UserError) as refused:
        load(f"{url}?signature=secret")
    assert f"{url.removesuffix(name)}{said}" in str(refused.value)
    for shown in (str(refused.value), caplog.text):
        assert "fastvtp-lists-" not in shown
        assert "secret" not in shown


def test_what_is_left_out_of_a_fetched_list_is_said_of_its_url(store, caplog):
    url = store.put("t.jsonl", lines(*ROWS, {"video": "c.mp4", "caption": "", "id": "x"}, {**ROWS[0], "begin_time": 3}))
    listed = VideoList(f"{url}?signature=secret")
    with caplog.at_level(logging.INFO):
        assert len(load_annotations(listed)) == 2
    assert f"{url}: no span is read from begin_time" in caplog.text
    assert f"{url}: 1 empty caption is left out" in caplog.text
    assert "fastvtp-lists-" not in caplog.text
    assert "secret" not in caplog.text
