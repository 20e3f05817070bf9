"""A prepared set stands wherever its list did: its kind, its classes and their numbers."""

import json

import pytest

from fastvtp.data.annotations import load_videos
from fastvtp.data.classes import load_classes, load_targets
from fastvtp.data.questions import load_questions
from fastvtp.errors import UserError
from tests.data.clips import write_clip, write_lines
from tests.preparation.sets import captioned, run


def test_classes_keep_the_numbers_of_a_published_list(tmp_path, caplog):
    """Something-Something V2 numbers its classes in labels.json, not by their alphabet; the list is one of captions."""
    caplog.set_level("INFO")
    (tmp_path / "in").mkdir()
    for number in (11, 12):
        write_clip(tmp_path / "in" / f"{number}.mp4", 8)
    templates = {"11": "Bending [something]", "12": "Zipping [something]"}
    rows = [{"id": name, "label": "bending a wire", "template": said} for name, said in templates.items()]
    source = tmp_path / "in" / "something-something-v2-train.json"
    source.write_text(json.dumps(rows))
    numbers = {"Zipping something": "0", "Not here": "1", "Bending something": "2"}
    (tmp_path / "in" / "labels.json").write_text(json.dumps(numbers))
    run(source, tmp_path / "out")
    before = load_classes(source)
    assert before.labels == (2, 0)
    for prepared in (tmp_path / "out", tmp_path / "out" / "captions.jsonl"):
        after = load_classes(prepared)
        assert (after.labels, after.class_names) == (before.labels, before.class_names)
        assert load_targets(prepared).labels == ((2,), (0,))
    assert "named by class_names.txt" in caplog.text


def test_classes_that_no_clip_is_left_of_keep_their_number(tmp_path):
    write_clip(tmp_path / "b.mp4", 8)
    (tmp_path / "a.mp4").write_bytes(b"")
    source = write_lines(tmp_path / "in.jsonl", {"video": "b.mp4", "label": "b"}, {"video": "a.mp4", "label": "a"})
    run(source, tmp_path / "out")
    assert load_classes(tmp_path / "out").class_names == ("a", "b")
    assert load_classes(tmp_path / "out").labels == (1,)


def test_numbers_and_several_classes(tmp_path):
    write_clip(tmp_path / "a.mp4", 8)
    run(write_lines(tmp_path / "in.jsonl", {"video": "a.mp4", "label": 3}), tmp_path / "numbers")
    assert not (tmp_path / "numbers" / "class_names.txt").exists()
    assert load_classes(tmp_path / "numbers").labels == (3,)
    run(write_lines(tmp_path / "in.jsonl", {"video": "a.mp4", "labels": ["b", "a"]}), tmp_path / "several")
    assert (tmp_path / "several" / "class_names.txt").read_text() == "a\nb\n"
    assert load_targets(tmp_path / "several").labels == ((1, 0),)


def test_questions_and_bare_videos_are_read_from_the_folder(tmp_path):
    write_clip(tmp_path / "a.mp4", 8)
    run(write_lines(tmp_path / "in.jsonl", {"video": "a.mp4", "question": "who?", "answer": "he"}), tmp_path / "out")
    questions = load_questions(tmp_path / "out")
    assert questions.answers == ("he",)
    assert questions.records[0].video == f"{tmp_path}/out/000000.tar::0000000000.mp4"
    run(write_lines(tmp_path / "in.jsonl", {"video": "a.mp4"}), tmp_path / "bare")
    assert [record.id for record in load_videos(tmp_path / "bare")] == ["a.mp4"]


def test_the_shards_do_not_lie_among_the_videos(tmp_path):
    captioned(tmp_path / "in", 1)
    (tmp_path / "in" / "train.jsonl").unlink()
    with pytest.raises(UserError, match=r"in/sub/out: lies in the folder that is prepared, .*in: choose another"):
        run(tmp_path / "in", tmp_path / "in" / "sub" / "out")
    assert not (tmp_path / "in" / "sub").exists()
    listed = captioned(tmp_path / "in", 1)
    run(listed, tmp_path / "in" / "out")
    assert (tmp_path / "in" / "out" / "dataset.json").is_file()


def test_tars_that_are_prepared_are_not_found_among_their_sources(tmp_path):
    run(captioned(tmp_path / "in", 1), tmp_path / "tars")
    (tmp_path / "tars" / "dataset.json").unlink()
    (tmp_path / "tars" / "captions.jsonl").unlink()
    with pytest.raises(UserError, match=r"tars/out: lies in the folder that is prepared"):
        run(tmp_path / "tars", tmp_path / "tars" / "out")


def test_the_report_says_what_was_read(tmp_path):
    source = captioned(tmp_path / "in", 2)
    write_lines(source, *source.read_text().splitlines(), {"video": "0.mp4", "caption": "once more", "label": "a"})
    report = run(source, tmp_path / "out")
    assert report is not None
    assert report["data"] == {
        "list": str(source), "format": "jsonl", "videos": 2, "lines": 3, "clips": 2, "classes": 1
    }  # fmt: skip


def test_shards_are_not_made_in_a_file(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(UserError, match=r"out: is a file, expected the folder of the shards"):
        run(captioned(tmp_path / "in", 1), tmp_path / "out")


def test_the_report_says_what_is_missing(tmp_path):
    write_clip(tmp_path / "11.mp4", 8)
    source = tmp_path / "something-something-v2-train.json"
    source.write_text(json.dumps([{"id": name, "label": "x", "template": "[x]"} for name in ("11", "12", "13")]))
    report = run(source, tmp_path / "out")
    assert report is not None
    assert report["data"]["missing"] == {"videos": 2, "of": 3, "first": ["12", "13"], "kept": False}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["data"] == report["data"]
