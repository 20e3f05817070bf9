"""Lists with malformed and repeated lines: all are told where a list is checked, elsewhere the first is refused."""

import json
import pickle

import pytest

from fastvtp.data.annotations import load_annotations
from fastvtp.data.classes import load_classes, load_targets
from fastvtp.data.formats.lists import ListColumns, VideoList
from fastvtp.data.questions import load_questions
from fastvtp.data.survey import read_any, survey
from fastvtp.errors import UserError
from tests.data.tars import write_tar

GOOD = {"video": "a.mp4", "caption": "a dog"}


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def told(path, **how) -> tuple[list[str], list[str]]:
    """What is wrong with the lines of a list, without its path, and the ids of what is left."""
    listed = read_any(VideoList(str(path), missing="keep", **how), forgiving=True)
    return [line.removeprefix(f"{path}, ") for line in listed.malformed], [record.id for record in listed.records]


def test_all_malformed_lines_of_a_list_are_told_and_the_first_is_refused(tmp_path):
    path = lines(
        tmp_path / "list.jsonl",
        GOOD,
        '{"video": "b.mp4", "caption": ',
        {"video": "c.mp4", "caption": 3},
        {"video": "d.mp4"},
        "[1]",
        {"video": "e.mp4", "caption": "e", "start": 7, "end": 3},
        {"video": "", "caption": "f"},
        {"video": "g.mp4", "caption": "g"},
    )
    wrong, ids = told(path)
    assert ids == ["a.mp4", "g.mp4"]
    assert [line.partition(":")[0] for line in wrong] == [f"line {number}" for number in range(2, 8)]
    assert wrong[0] == "line 2: not JSON: Expecting value at column 31"
    assert wrong[1] == "line 3: field 'caption': expected non-empty text, got 3"
    assert wrong[2].startswith("line 4: field 'caption': there is none among 'video'")
    assert wrong[3] == "line 5: expected an object, got list"
    assert wrong[4] == "line 6: field 'end': expected more than its start 7, got 3"
    assert wrong[5] == "line 7: field 'video': expected non-empty text, got ''"
    report = survey(read_any(path, forgiving=True))
    assert (report["records"], len(report["malformed"]), report["unusable"]) == (2, 6, 6 + 2)  # two videos
    with pytest.raises(UserError, match=r"line 2: not JSON: Expecting value at column 31$"):
        load_annotations(path)
    with pytest.raises(UserError, match="line 2: not JSON"):
        read_any(path)


def test_a_malformed_first_line_hides_no_other(tmp_path):
    wrong, ids = told(lines(tmp_path / "list.jsonl", "{", GOOD, "}", {"video": "b.mp4", "caption": "b"}))
    assert [line.partition(":")[0] for line in wrong] == ["line 1", "line 3"]
    assert ids == ["a.mp4", "b.mp4"]


def test_an_entry_of_several_rows_is_left_out_whole_and_takes_none_of_the_next(tmp_path):
    def said(*segments):
        parts = [{"segment": segment, "sentence": "x"} for segment in segments]
        return {"subset": "training", "annotations": parts}

    videos = {"a": said([0, 1]), "b": said([0, 1], [1, 2], "end"), "c": said([0, 1], [1, 2]), "d": said([5, 6])}
    (path := tmp_path / "youcookii_annotations_trainval.json").write_text(json.dumps({"database": videos}))
    wrong, ids = told(path)
    assert wrong == ["'b': field 'segment': expected a list of [start, end], got ['end']"]
    assert ids == ["a 0-1", "c 0-1", "c 1-2", "d 5-6"]


def test_all_malformed_lines_of_the_splits_of_a_folder_are_told(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        rows = ({"file_name": "a.mp4", "caption": "a"}, '{"file_name": ', {"file_name": "b.mp4", "caption": "b"}, "3")
        lines(tmp_path / split / "metadata.jsonl", *rows)
    wrong, ids = told(tmp_path, split="all")
    assert [line.removeprefix(f"{tmp_path}/").partition(":")[0] for line in wrong] == [
        f"{split}/metadata.jsonl, line {number}" for split in ("train", "validation") for number in (2, 4)
    ]
    assert ids == ["train/a.mp4", "train/b.mp4", "validation/a.mp4", "validation/b.mp4"]


def test_what_a_list_is_not_makes_none_of_its_lines_malformed(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        rows = ({"file_name": "a.mp4", "label": "x"}, {"file_name": "b.mp4", "label": "y"})
        lines(tmp_path / split / "metadata.jsonl", *rows)
    listed = read_any(VideoList(str(tmp_path), split="all", missing="keep"), forgiving=True)
    assert (listed.kind, len(listed.records), listed.malformed) == ("classes", 4, ())
    lines(tmp_path / "train" / "metadata.jsonl", "3", {"file_name": "b.mp4", "label": "y"})
    listed = read_any(VideoList(str(tmp_path), split="all", missing="keep"), forgiving=True)
    assert [line.partition(": ")[2] for line in listed.malformed] == ["expected an object, got int"]
    with pytest.raises(UserError, match=r"train/metadata\.jsonl, line 1: expected an object, got int$"):
        load_classes(VideoList(str(tmp_path), split="all", missing="keep"))


def test_all_malformed_descriptions_in_tars_are_told(tmp_path):
    members = [(f"{n}.mp4", b"") for n in range(4)] + [
        ("0.json", b'{"caption": "a"}'),
        ("1.json", b"{"),
        ("2.json", b"3"),
    ]
    path = write_tar(tmp_path / "00000.tar", sorted([*members, ("3.json", b'{"caption": "b"}')]))
    listed = read_any(path, forgiving=True)
    assert [line.partition(": ")[0] for line in listed.malformed] == [f"{path}::{n}.json" for n in (1, 2)]
    assert [record.captions for record in listed.records] == [("a",), ("b",)]
    with pytest.raises(UserError, match=r"1\.json: "):
        load_annotations(path)


def test_a_list_of_malformed_lines_alone_is_refused_with_their_number(tmp_path):
    path = lines(tmp_path / "list.jsonl", '{"a', "x", "[")
    with pytest.raises(UserError, match=rf"^{path}, line 1: not JSON: .*; 3 malformed lines, and no other$"):
        read_any(path, forgiving=True)


def test_a_table_goes_on_behind_rows_of_another_length_and_behind_wrong_fields(tmp_path):
    (path := tmp_path / "list.csv").write_text("path,title\na.mp4,a\nb.mp4\n,c\nd.mp4,d\ne.mp4,e,f\ng.mp4,g\n")
    wrong, ids = told(path, columns=ListColumns(caption="title"))
    assert wrong == [
        "line 3: field 'title': is missing, expected 2 columns, got 1",
        "line 4: field 'path': expected non-empty text, got ''",
        "line 6: field 'title': is not the last, expected 2 columns, got 3",
    ]
    assert ids == ["a.mp4", "d.mp4", "g.mp4"]


def test_pretty_printed_json_goes_on_until_it_is_none(tmp_path):
    rows = [GOOD, 3, {"video": "b.mp4", "caption": ["b", None]}, {"video": "c.mp4", "caption": "c"}]
    (path := tmp_path / "list.json").write_text(json.dumps(rows, indent=1).removesuffix("]") + ", {")
    wrong, ids = told(path)
    assert [line.split(":")[0] for line in wrong] == ["line 6, entry 2", "line 7, entry 3", "line 18"]
    assert ids == ["a.mp4", "c.mp4"]


def test_readers_of_published_lists_go_on_behind_entries_that_end_them(tmp_path):
    """Of one object, of rows, and of several lines that make one record."""
    sound = {"timestamps": [[0, 2]], "sentences": ["one"]}
    (path := tmp_path / "val_1.json").write_text(json.dumps({"v_a": sound, "v_b": 3, "v_c": {}, "v_d": sound}))
    wrong, ids = told(path, format="activitynet_moments")
    assert wrong == [
        "'v_b': expected an object, got int",
        "'v_c': field 'timestamps': expected a list of [start, end], got None",
    ]
    assert ids == ["v_a 0-2", "v_d 0-2"]

    path = lines(
        tmp_path / "didemo.json",
        json.dumps([
            {"video": "a", "description": "one.", "times": [[0, 0]]},
            {"video": "b", "description": 4, "times": [[0, 0]]},
            {"video": "a", "description": "two.", "times": [[0, 0]]},
            {"video": "", "description": "three", "times": [[0, 0]]},
        ]),
    )  # fmt: skip
    listed = read_any(VideoList(str(path), missing="keep"), forgiving=True)
    assert [record.captions for record in listed.records] == [("one. two.",)]
    assert [line.partition(", line 1, ")[2].partition(":")[0] for line in listed.malformed] == ["entry 2", "entry 4"]

    (path := tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({"a": [["x"]], "b": 3, "c": [["y"]]}))
    wrong, ids = told(path)
    assert wrong == ["'b': field 'captions': expected a list of them, each a list of words"]
    assert ids == ["a", "c"]


def test_of_very_many_entries_that_end_a_reader_some_are_told(tmp_path):
    rows = [{"clip_name": "a", "caption": "x"}, *({"clip_name": number} for number in range(80))]
    path = lines(tmp_path / "clipbert.jsonl", *rows)
    listed = read_any(VideoList(str(path), missing="keep"), forgiving=True)
    assert (len(listed.malformed), listed.more_malformed, len(listed.records)) == (50, True, 1)


def test_questions_and_classes_go_on(tmp_path):
    asked = {"video": "a.mp4", "question": "what?", "answer": "that"}
    wrong, ids = told(lines(tmp_path / "q.jsonl", asked, {**asked, "answer": 3}, {**asked, "options": ["no"]}, asked))
    assert [line.partition(": expected")[0] for line in wrong] == ["line 2: field 'answer'", "line 3: field 'options'"]
    assert ids == ["a.mp4", "a.mp4"]
    path = lines(tmp_path / "c.jsonl", {"video": "a.mp4", "label": 1}, {"video": "b.mp4", "label": "dog"})
    assert told(path)[0] == ["line 2: field 'label': expected a number as in other lines, got 'dog'"]
    several = lines(tmp_path / "s.jsonl", {"video": "a.mp4", "labels": ["x"]}, {"video": "b.mp4", "labels": "x"})
    assert told(several)[0] == ["line 2: field 'labels': expected a list of classes, got 'x'"]
    for load, broken in ((load_questions, "q"), (load_classes, "c"), (load_targets, "s")):
        with pytest.raises(UserError, match=r"line 2: field"):
            load(tmp_path / f"{broken}.jsonl")


def test_lines_that_say_the_same_of_the_same_video_and_span_are_counted(tmp_path):
    span = {**GOOD, "start": 1, "end": 2}
    path = lines(
        tmp_path / "list.jsonl",
        GOOD, span, {**GOOD, "caption": "another"}, {**GOOD, "video": "./a.mp4"}, {**span, "id": "x"}, GOOD,
        {**span, "end": 3},
    )  # fmt: skip
    listed = read_any(path, forgiving=True)
    assert (listed.repeated, listed.first_repeated) == (3, f"{path}, line 4")
    report = survey(listed)
    assert report["repeated_lines"] == {"count": 3, "first": f"{path}, line 4"}
    assert report["records"] == 3
    assert survey(read_any(lines(tmp_path / "once.jsonl", GOOD, span), forgiving=True))["repeated_lines"] is None
