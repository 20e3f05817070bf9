"""What of a list is not read, and what is said of one that cannot be."""

import json
import logging

import pytest

from fastvtp.data.annotations import load_annotations, load_videos
from fastvtp.data.classes import load_classes
from fastvtp.data.questions import load_questions
from fastvtp.errors import UserError
from tests.data.clips import write_lines


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"a;b\n1;2\n", "; its first line is 'a;b': is ';' the delimiter? Tabs and commas are"),
        (b"a|b\n1|2\n", "; its first line is 'a|b': is '|' the delimiter? Tabs and commas are"),
        (
            b"some,thing\n",
            "; its first line is 'some,thing'; a column of your own is named by data.columns.video=NAME or "
            "--column video=NAME",
        ),
        (b"", "; it is empty"),
        ("video,caption\n".encode("utf-16-le"), "; it holds NUL bytes: is it UTF-16 without a byte-order mark?"),
    ],
)
def test_a_list_that_fits_no_format_is_refused_with_what_is_in_it(tmp_path, content, seen):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_annotations(tmp_path / "list.csv")
    assert str(caught.value).startswith(f"{tmp_path}/list.csv: expected a .jsonl file")
    assert str(caught.value).endswith(seen)


def test_columns_that_are_not_read_are_said(tmp_path, caplog):
    (tmp_path / "list.csv").write_text("path,text,start_sec,end_sec\na.mp4,x,1,2\n")
    own = write_lines(tmp_path / "own.jsonl", {"video": "a.mp4", "caption": "x", "clip_start": 1, "weekend": 2})
    with caplog.at_level(logging.INFO):
        load_annotations(tmp_path / "list.csv")
        load_annotations(own)
    expected = "expected start, end, start_frame or end_frame"
    assert f"{tmp_path}/list.csv: no span is read from start_sec, end_sec: {expected}" in caplog.messages
    assert "list.csv: video=path, caption=text; not read: start_sec, end_sec" in caplog.messages
    assert f"{own}: no span is read from clip_start: {expected}" in caplog.messages


@pytest.mark.parametrize("video", ["video", "path"])
def test_fields_of_any_line_that_look_like_spans_are_said(tmp_path, caplog, video):
    rows = [{video: f"{n}.mp4", "caption": "x"} for n in range(4)]
    rows[1] |= {"begin": 1, "stop": 2}
    rows[3] |= {"beginTime": 1}
    path = write_lines(tmp_path / "list.jsonl", *rows)
    load_annotations(path)
    expected = "expected start, end, start_frame or end_frame"
    assert caplog.messages == [f"{path}: no span is read from begin, stop, beginTime: {expected}"]


def test_fields_that_no_reader_knows_are_said_of_our_own_lists(tmp_path, caplog):
    rows = [{"video": "a.mp4", "captoin": "x"}, {"video": "b.mp4", "captoin": "y", "who": 1}]
    asked = {"video": "a.mp4", "question": "who?", "answer": "x", "question_id": 3}
    (tmp_path / "own.json").write_text(json.dumps([{**asked, "whom": 1}]))
    with caplog.at_level(logging.INFO):
        load_videos(write_lines(tmp_path / "own.jsonl", *rows))
        load_questions(tmp_path / "own.json")
        load_questions(write_lines(tmp_path / "known.jsonl", {"video": "a.mp4", "question": "who?", "answer": "x"}))
    said = [message for message in caplog.messages if "not read" in message]
    assert said == ["own.jsonl: not read: captoin, who", "own.json: not read: whom"]


def test_ids_of_several_records_are_said_once(tmp_path, caplog):
    captions = write_lines(
        tmp_path / "own.jsonl", *({"video": f"{n}.mp4", "caption": "x", "id": "same"} for n in range(3))
    )
    classes = write_lines(tmp_path / "c.jsonl", *({"video": f"{n}.mp4", "label": "x", "id": "same"} for n in range(3)))
    row = {"video": "a.mp4", "question": "who?", "answer": "x"}
    questions = write_lines(tmp_path / "q.jsonl", row, row, {**row, "id": "same"}, {**row, "id": "same"})
    for load, path in ((load_annotations, captions), (load_videos, captions), (load_classes, classes)):
        caplog.clear()
        load(path)
        assert caplog.messages == [f"{path}: 1 id is of several records: same"]
    caplog.clear()
    load_questions(questions)
    assert caplog.messages == [f"{questions}: 1 id is of several records: same"]


def test_files_of_a_folder_that_are_not_read_are_counted(tmp_path, caplog):
    for name in ("run/0.mp4", "run/1.rm", "sit/2.rm", "top.mp4", "run/0.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    load_classes(tmp_path)
    assert caplog.messages == [
        f"{tmp_path}: files of other suffixes than videos are passed over: .rm (2)",
        f"{tmp_path}: 1 video is in no folder of a class and passed over: top.mp4",
    ]
