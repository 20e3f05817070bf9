"""Passwords and signatures of URLs show nowhere: not in errors, logs and reports, nor in what pickles of errors say."""

import json
import logging
import pickle
from pathlib import Path

import pytest

from fastvtp.data.annotations import VideoRecord, load_annotations
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.source import NoDecodableClipError
from fastvtp.data.storage.finding import UnreadableError, find_file
from fastvtp.data.storage.shard_names import energon_fields
from fastvtp.data.storage.tar_index import index_tar
from fastvtp.data.survey import read_any, survey
from fastvtp.data.video.decoding import Video, VideoDecodeError
from fastvtp.errors import UserError
from fastvtp.evaluation.report import bad_file_report, write_report
from tests.data.clips import write_clip
from tests.data.loaders import make_loader
from tests.data.tars import write_tar

pytest.importorskip("aiohttp")

SECRETS = ("pass-word", "abc123")
SHAPE = {"num_frames": 2, "image_size": 24, "batch_size": 1, "num_workers": 0, "decoder": "pyav"}


def secret(store, path: str) -> str:
    return f"{store.url.replace('http://', 'http://me:pass-word@')}/bucket/{path}?X-Amz-Signature=abc123"


def tells(text: str) -> list[str]:
    return [word for word in SECRETS if word in text]


def test_a_training_that_finds_no_clip_tells_no_secret(store, caplog):
    records = [VideoRecord(f"{i}", secret(store, f"{i}.mp4"), ("a clip",)) for i in range(2)]
    with make_loader(records, None, train=True, **SHAPE) as loader, pytest.raises(NoDecodableClipError) as caught:
        next(iter(loader))
    assert "/bucket/0.mp4: no such object (404)" in str(caught.value)
    assert not tells(f"{caught.value} {caught.value!r} {caplog.text}")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.failures) == (str(caught.value), caught.value.failures)


def test_a_report_tells_no_secret_and_names_every_file(store, tmp_path, caplog, ten_clips):
    store.put("bucket/good.mp4", ten_clips[0].read_bytes())
    records = [VideoRecord(name, secret(store, f"{name}.mp4"), ("a clip",)) for name in ("good", "no", "gone")]
    records += [VideoRecord("span", secret(store, "good.mp4"), ("late",), start=50.0, end=60.0)]
    with make_loader(records, None, train=False, **SHAPE) as loader:
        assert [number for batch in loader for number in batch.sample_ids.tolist()] == [0]
        bad = loader.bad_files
    write_report(tmp_path / "report.json", {"bad_files": bad_file_report(bad)})
    said = (tmp_path / "report.json").read_text()
    assert not tells(said + caplog.text)
    report = json.loads(said)["bad_files"]
    assert report["count"] == len(report["files"]) == 3
    names = [f"{store.url}/bucket/{name}" for name in ("gone.mp4", "good.mp4 50-60 s", "no.mp4")]
    assert list(report["files"]) == names


def test_videos_of_one_name_and_several_signatures_are_all_counted():
    bad = {f"https://h/a.mp4?sig={i}": "lost" for i in range(2)}
    assert bad_file_report(bad) == {"count": 2, "files": {"https://h/a.mp4": "lost"}}


@pytest.mark.parametrize("kind", [UnreadableError, VideoDecodeError])
def test_errors_tell_no_secret_in_any_form(kind):
    location = "http://me:pass-word@h/a.mp4?sig=abc123"
    error = kind(location, "lost")
    assert not tells(f"{error} {error!r} {error.args}")
    again = pickle.loads(pickle.dumps(error))
    assert (vars(again), str(again)) == (vars(error), "http://h/a.mp4: lost")


def test_damage_and_wrong_indices_tell_no_secret(store, caplog, ten_clips):
    store.put("bucket/a.mp4", ten_clips[0].read_bytes())
    with Video(secret(store, "a.mp4")) as opened:
        for wrong in (lambda: opened.read([99]), lambda: list(opened.stream(range(90, 99)))):
            with pytest.raises(IndexError) as caught:
                wrong()
            assert not tells(str(caught.value))
    whole = write_clip(store.folder / "bucket" / "cut.mkv", 30, 32, 48).read_bytes()
    store.put("bucket/cut.mkv", whole[: len(whole) * 2 // 3])
    with Video(secret(store, "cut.mkv"), damaged="keep") as cut:
        assert 0 < cut.num_frames < 30
    assert "cut.mkv: broke off" in caplog.text
    assert not tells(caplog.text)


def test_lists_and_tars_tell_no_secret(store, caplog):
    caplog.set_level(logging.INFO)
    write_tar(store.folder / "bucket" / "0.tar", [("a.mp4", b"one"), ("a.mp4", b"two")])
    tar = secret(store, "0.tar")
    index_tar(tar, beside=True)
    assert "no index can be written beside the tars (the URL is signed for one object)" in caplog.text
    assert find_file(f"{tar}::a.mp4").size == 3
    (store.folder / "bucket" / ".nv-meta").mkdir()
    (store.folder / "bucket" / ".nv-meta" / "dataset.yaml").write_text("sample_loader: sample_loader.py:run\n")
    energon_fields(f"{store.url.replace('http://', 'http://me:pass-word@')}/bucket")
    assert "its sample_loader is a program" in caplog.text
    assert not tells(caplog.text)
    with pytest.raises(UserError) as caught:
        VideoRecord("a", secret(store, "a.mp4"), ("a",), start=9.0, end=3.0)
    assert not tells(str(caught.value))


def test_lists_that_cannot_be_read_tell_no_secret(store):
    store.put("bucket/list.jsonl", b'{"video": "a.mp4"}\n')
    for name, said in {
        "films.tar.gz": "unpack it into a folder",
        "films.parquet": "expected tars, or a list",
        "gone.jsonl": "no such object",
        "list.jsonl": "field 'caption': there is none",
    }.items():
        with pytest.raises(UserError, match=said) as caught:
            load_annotations(secret(store, name))
        assert not tells(str(caught.value))


def test_a_list_behind_a_url_tells_no_secret(store, caplog):
    caplog.set_level(logging.INFO)
    named = store.put("bucket/names.jsonl", b'{"clip_name": "a", "caption": "x"}\n')
    for videos in (None, secret(store, "films").partition("?")[0]):
        found = load_annotations(VideoList(secret(store, "names.jsonl"), videos=videos))
        assert [record.video.rpartition("@")[2].partition("/")[2] for record in found] == [
            "bucket/a.mp4" if videos is None else "bucket/films/a.mp4"
        ]
    assert "is not listed: names become" in caplog.text
    assert not tells(caplog.text)
    shown = read_any(secret(store, "names.jsonl"))
    assert shown.path == named
    assert not tells(json.dumps(survey(shown)["data"]))


def test_local_names_stay_as_they_are(tmp_path: Path):
    assert bad_file_report({"/a/b?c#d@e.mp4": "lost"}) == {"count": 1, "files": {"/a/b?c#d@e.mp4": "lost"}}
