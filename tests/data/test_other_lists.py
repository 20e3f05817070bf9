"""What is said of a list that is another than is asked for: of other things, of several splits, packed, broken."""

import json
import logging

import pytest

from fastvtp.data.annotations import load_annotations, load_videos
from fastvtp.data.classes import load_classes
from fastvtp.data.formats.lists import ListColumns, VideoList
from fastvtp.data.locations import is_pattern
from fastvtp.data.questions import load_questions
from fastvtp.data.storage.shard_names import energon_fields, tars_of
from fastvtp.errors import UserError, counted
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.paths import check_paths
from tests.data.clips import write_lines
from tests.data.miniatures import MINIATURES
from tests.data.tars import write_tar

QUESTION = {"video": "0.mp4", "question": "who?", "answer": "she"}
CAPTION = {"video": "0.mp4", "caption": "a cat"}
LABEL = {"video": "0.mp4", "label": "run"}


def message_of(read, path):
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- A list of other things


@pytest.mark.parametrize(
    ("load", "row", "field", "told"),
    [
        (
            load_annotations,
            QUESTION,
            "caption",
            "questions, for `fastvtp finetune` with a recipe of question answer",
        ),
        (load_annotations, LABEL, "caption", "a class each, for `fastvtp finetune` with a recipe of classification"),
        (load_questions, CAPTION, "question", "captions, for pretraining"),
        (load_classes, QUESTION, "label", "questions, for `fastvtp finetune`"),
        (
            load_classes,
            {"video": "0.mp4", "labels": ["run"]},
            "label",
            "any number of classes each, for `fastvtp probe`",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_list_of_other_things_is_called_what_it_is_and_the_option_is_named(tmp_path, load, row, field, told, suffix):
    path = tmp_path / f"list{suffix}"
    path.write_text(json.dumps([row] if suffix == ".json" else row))
    said = message_of(load, path)
    place = "line 1, entry 1" if suffix == ".json" else "line 1"
    among = ", ".join(map(repr, row))
    assert said.startswith(f"{path}, {place}: field '{field}': there is none among {among}; it tells {told}")
    assert said.endswith(f"is given by data.columns.{field}=NAME or --column {field}=NAME")


def test_the_option_that_is_named_reads_the_list(tmp_path):
    path = write_lines(tmp_path / "list.jsonl", {"video": "0.mp4", "says": "a cat"})
    said = message_of(load_annotations, path)
    assert said.startswith(
        f"{path}, line 1: field 'caption': there is none among 'video', 'says'; a field of another name"
    )
    columns = ListColumns(caption="says")
    assert load_annotations(VideoList(str(path), columns=columns))[0].captions == ("a cat",)


def test_all_columns_of_a_table_are_named(tmp_path):
    (tmp_path / "list.csv").write_text("path,says,rating\n0.mp4,a cat,3\n")
    said = message_of(load_annotations, tmp_path / "list.csv")
    assert ", line 2: field 'caption': there is none among 'path', 'says', 'rating'; a field" in said


# --- Several splits


def test_all_splits_are_named_whatever_comes_between(tmp_path):
    splits = ("train", "validation", "train", "test", "extra")
    rows = [{**CAPTION, "video": f"{n}.mp4", "split": split} for n, split in enumerate(splits)]
    said = message_of(load_annotations, write_lines(tmp_path / "list.jsonl", *rows))
    assert f"{tmp_path}/list.jsonl: holds the splits 'train', 'val', 'test' and 'extra': say which" in said


def test_splits_before_a_line_that_cannot_be_read_are_named(tmp_path):
    rows = [json.dumps({**CAPTION, "video": f"{n}.mp4", "split": split}) for n, split in enumerate("abc")]
    (tmp_path / "list.jsonl").write_text("\n".join([*rows, "{broken"]))
    assert "holds the splits 'a', 'b' and 'c': say which" in message_of(load_annotations, tmp_path / "list.jsonl")


def test_of_many_splits_some_are_named(tmp_path):
    rows = [{**CAPTION, "video": f"{n}.mp4", "split": f"part{n}"} for n in range(200)]
    said = message_of(load_annotations, write_lines(tmp_path / "list.jsonl", *rows))
    named = ", ".join(f"'part{n}'" for n in range(12))
    assert f"holds the splits {named} and 188 more: say which" in said


# --- Broken JSON


def test_broken_json_is_named_by_line_and_column(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text(json.dumps(CAPTION) + '\n{"video": "1.mp4", "caption" "x"}\n')
    assert message_of(load_annotations, path) == f"{path}, line 2: not JSON: Expecting ':' delimiter at column 30"
    path.write_text('{"video": "1.mp4", "caption": "a\tb"}')
    assert message_of(load_annotations, path) == f"{path}, line 1: not JSON: Invalid control character at column 33"
    path = tmp_path / "list.json"
    path.write_text(f'[{json.dumps(CAPTION)},\n {{"video": "1.mp4",}}]')
    said = message_of(load_annotations, path)
    assert said.startswith(f"{path}, line 2: not JSON: ")
    assert "at column " in said
    path = tmp_path / "MSRVTT_data.json"
    path.write_text('{"videos": [],\n "sentences": [}')
    assert message_of(load_annotations, path).endswith("; it is not JSON: Expecting value at line 2, column 16")


def test_a_table_whose_quotes_do_not_end_is_named_by_its_line(tmp_path):
    path = MINIATURES["webvid"][0].write(tmp_path)
    text = path.read_text()
    path.write_text(text[: text.rindex('"')])
    assert message_of(load_annotations, path).startswith(f"{path}, line 3: no row of a table: unexpected end of data")


def test_text_of_another_encoding_is_named_by_its_line(tmp_path):
    for name in ("list.csv", "list.jsonl"):
        rows = ["path,caption", "0.mp4,a", "1.mp4,gr\xf6\xdfer"]
        if name == "list.jsonl":
            rows = [f'{{"video": "{n}.mp4", "caption": "gr{letter}"}}' for n, letter in enumerate("aa\xf6")]
        (tmp_path / name).write_bytes("\n".join(rows).encode("latin-1"))
        assert message_of(load_annotations, tmp_path / name).startswith(
            f"{tmp_path / name}, line 3: expected UTF-8 text"
        )


def test_nul_bytes_are_named_by_line_and_field(tmp_path):
    (tmp_path / "list.csv").write_text("path,caption\n0.mp4,a\n1.\0mp4,b\n")
    said = message_of(load_annotations, tmp_path / "list.csv")
    assert said.startswith(f"{tmp_path}/list.csv, line 3: ")
    assert "NUL" in said


# --- What is packed


@pytest.mark.parametrize("name", ["films.tar.gz", "films.TGZ", "films.zip", "list.jsonl.gz", "films.tar.zst"])
def test_what_is_packed_is_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b\x08\x00")
    how = "unpack it into a folder, or make a plain .tar of it"
    for load in (load_annotations, load_videos, load_classes, load_questions):
        said = message_of(load, tmp_path / name)
        assert said.startswith(f"{tmp_path / name}: what is compressed")
        assert said.endswith(how)
    assert message_of(load_videos, f"https://host/{name}?key=1").endswith(how)
    assert message_of(load_videos, f"{tmp_path}/*{name[5:]}").endswith(how)
    assert message_of(tars_of, str(tmp_path / name)).endswith(how)
    listed = write_lines(tmp_path / "list.jsonl", CAPTION)
    said = message_of(load_videos, VideoList(str(listed), videos=str(tmp_path / name)))
    assert said.startswith(f"videos={tmp_path / name}: what is compressed")
    with pytest.raises(FileNotFoundError):
        load_videos(tmp_path / f"gone{name}")


def test_a_folder_of_packed_files_says_so(tmp_path):
    (tmp_path / "0.tar.gz").touch()
    said = message_of(load_videos, tmp_path)
    assert said.startswith(
        f"{tmp_path}: lists no videos; it holds files of other suffixes: .gz (1); what is compressed"
    )


# --- Patterns


def test_one_rule_tells_patterns(tmp_path, monkeypatch):
    for text in ("a/*.tar", "a/?.tar", "a/[0-9].tar", "a/{0..9}.tar", "s3://b/{0..9}.tar?k"):
        assert is_pattern(text)
    for text in ("a/0.tar", "https://host/0.tar?key=[1]", "a/0].tar"):
        assert not is_pattern(text)
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", [("a.mp4", b""), ("a.txt", "a cat")])
    pattern = f"{tmp_path}/[01].tar"
    assert [record.video for record in load_annotations(pattern)] == [f"{tmp_path}/{n}.tar::a.mp4" for n in (0, 1)]


def test_the_check_of_paths_takes_every_pattern_that_is_read(tmp_path):
    for pattern in ("[0-9].tar", "*.tar", "{0..1}.tar"):
        given = [f"data.train={tmp_path}/{pattern}", "data.test=none"]
        check_paths(apply_overrides(get_recipe("simvtp_tiny"), given))


def test_a_name_that_looks_like_a_pattern_is_a_name_where_it_is_there(tmp_path):
    for name in ("0[1].tar", "set[a]/0.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, [("a.mp4", b""), ("a.txt", "a cat")])
        assert [record.video for record in load_annotations(tmp_path / name)] == [f"{tmp_path}/{name}::a.mp4"]
    assert tars_of(str(tmp_path / "set[a]")) == [f"{tmp_path}/set[a]/0.tar"]
    (tmp_path / "set[a]/.nv-meta").mkdir()
    (tmp_path / "set[a]/.nv-meta/dataset.yaml").write_text("field_map:\n  video: mp4\n")
    assert energon_fields(str(tmp_path / "set[a]")) == {"video": "mp4"}


# --- Numbers


def test_one_is_one():
    assert [counted(n, "class") for n in (0, 1, 2)] == ["0 classes", "1 class", "2 classes"]
    assert [counted(n, "video", "are") for n in (1, 2)] == ["1 video is", "2 videos are"]
    assert [counted(n, "question", "have") for n in (1, 2)] == ["1 question has", "2 questions have"]


def test_one_of_each_is_said_as_one(tmp_path, caplog):
    path = write_lines(tmp_path / "list.jsonl", QUESTION)
    with caplog.at_level(logging.INFO):
        load_questions(path)
    assert caplog.messages == ["list.jsonl: captions, questions or classes, one a line, 1 video, 1 question"]


def test_a_parquet_row_without_a_path_is_no_row_of_bytes(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"video": "0.mp4", "caption": "a"}, {"video": None, "caption": "b"}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "0.parquet")
    said = message_of(load_annotations, tmp_path / "0.parquet")
    assert said == f"{tmp_path}/0.parquet, row 1: field 'video': expected non-empty text, got ''"
