"""What all lists have in common: how they are written, what is said of them, what is left out, and what is refused."""

import io
import json
import logging
import os
import tarfile

import pytest

from fastvtp.data.annotations import VideoRecord, annotations_digest, load_annotations, load_videos
from fastvtp.data.classes import load_classes
from fastvtp.data.formats.listing import describe_list
from fastvtp.data.formats.lists import ListColumns, VideoList
from fastvtp.data.questions import lists_questions, load_questions
from fastvtp.errors import UserError
from tests.data.clips import write_lines
from tests.data.miniatures import MINIATURES

ROWS = [{"video": f"{n}.mp4", "caption": f"caption {n}"} for n in range(3)]
PLAIN = "".join(json.dumps(row) + "\n" for row in ROWS)
LAYOUTS = {
    "a mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "UTF-16": PLAIN.encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "\\r\\n": PLAIN.replace("\n", "\r\n").encode(),
    "\\r": PLAIN.replace("\n", "\r").encode(),
    "an array": json.dumps(ROWS).encode(),
    "an array, printed": json.dumps(ROWS, indent=2).encode(),
    "objects, printed": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
}


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_json_is_read_in_any_layout(tmp_path, layout, suffix):
    path = tmp_path / f"list{suffix}"
    path.write_bytes(LAYOUTS[layout])
    assert [(record.id, record.captions) for record in load_annotations(path)] == [
        (f"{n}.mp4", (f"caption {n}",)) for n in range(3)
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'[{"video": "a.mp4", "caption": "x"}\n, {"video": "b.mp4"', ", line 2: not JSON: Expecting ',' delimiter"),
        (b'[{"video": "a.mp4", "caption": "x"}\n{"video": "b.mp4", "caption": "y"}]', ", line 2: not JSON: Expecting"),
        (b'[{"video": "a.mp4", "caption": "x"}', ", line 1: not JSON: Expecting ',' or ']'"),
        (b'[{"video": "a.mp4", "caption": "x"},', ", line 1: not JSON: Expecting ']'"),
        (b'[{"video": "a.mp4", "caption": "x"}] 7', ", line 1: not JSON: Extra data"),
        (b'[{"video": "a.mp4", "caption": "x"},\n"b.mp4"]', ", line 2, entry 2: expected an object, got str"),
    ],
)
def test_broken_json_is_named_by_its_line(tmp_path, content, complaint):
    path = tmp_path / "list.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_annotations(path)
    assert str(caught.value).startswith(f"{path}{complaint}")


def test_json_that_cannot_be_recognised_for_being_none_is_called_so(tmp_path):
    (tmp_path / "MSRVTT_data.json").write_text('{"videos": [')
    with pytest.raises(UserError, match=r"MSRVTT_data\.json: expected a \.jsonl file .*; it is not JSON: Expecting"):
        load_annotations(tmp_path / "MSRVTT_data.json")
    (tmp_path / "wide.csv").write_bytes("video,caption\na.mp4,x\n".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"wide\.csv: expected a \.jsonl file"):
        load_annotations(tmp_path / "wide.csv")


@pytest.mark.parametrize("written", ["'a b.mp4'", '"a b.mp4"', "a b.mp4", "file://{folder}/a%20b.mp4", "~/a b.mp4"])
def test_paths_are_read_as_people_write_them(tmp_path, monkeypatch, written):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_lines(tmp_path / "list.jsonl", {"video": written.format(folder=tmp_path), "caption": "x"})
    assert load_annotations(path)[0].video == str(tmp_path / "a b.mp4")
    assert load_videos(path)[0].video == str(tmp_path / "a b.mp4")


def test_urls_and_members_of_archives_stay_as_they_are(tmp_path):
    written = ["s3://bucket/a//b.mp4", "https://x.org/b.mp4?c=1", f"{tmp_path}/0.tar::a.mp4"]
    path = write_lines(tmp_path / "list.jsonl", *({"video": video, "caption": "x"} for video in written))
    assert [record.video for record in load_annotations(path)] == written
    assert [record.video for record in load_videos(path)] == written


def test_the_digest_of_urls_does_not_change_with_the_bucket():
    def digest(*videos):
        return annotations_digest([VideoRecord("a", video, ("x",)) for video in videos])

    for folder in ("s3://other", "https://x.org/deep/er", "/local/disk"):
        assert digest("s3://bucket/all/a.mp4", "s3://bucket/b.mp4") == digest(f"{folder}/all/a.mp4", f"{folder}/b.mp4")
    assert digest("s3://bucket/a.mp4", "s3://other/b.mp4") != digest("s3://bucket/a.mp4", "s3://bucket/b.mp4")
    assert digest("s3://bucket/a.mp4", "/local/b.mp4") != digest("s3://bucket/a.mp4", "/other/b.mp4")


def test_paths_start_from_the_folder_or_url_of_the_videos(tmp_path):
    path = write_lines(tmp_path / "list.jsonl", *ROWS)
    (tmp_path / "videos").mkdir()
    where = {
        str(tmp_path / "videos"): f"{tmp_path}/videos/0.mp4",
        "s3://bucket/all/": "s3://bucket/all/0.mp4",
    }
    for videos, expected in where.items():
        records = load_annotations(VideoList(str(path), videos=videos))
        assert (records[0].id, records[0].video) == ("0.mp4", expected)
    with pytest.raises(UserError, match=r"videos=nowhere: no such folder"):
        load_annotations(VideoList(str(path), videos="nowhere"))
    ids = MINIATURES["vatex"][0].write(tmp_path)
    records = load_annotations(VideoList(str(ids), videos="https://x.org/all"))
    assert [record.video for record in records] == [f"https://x.org/all/a_b-{n}_000001_000011.mp4" for n in range(2)]


def test_videos_are_found_under_the_url_of_a_store(tmp_path, caplog):
    memory = pytest.importorskip("fsspec").filesystem("memory")
    for name in ("a_b-0_000001_000011.webm", "deep/er/a_b-1.mkv", "deep/notes.txt"):
        memory.pipe_file(f"/lists/{name}", b"0")
    path = MINIATURES["vatex"][0].write(tmp_path)
    records = load_annotations(VideoList(str(path), videos="memory://lists"))
    assert [(record.video, record.start) for record in records] == [
        ("memory://lists/a_b-0_000001_000011.webm", None),
        ("memory://lists/deep/er/a_b-1.mkv", 1.0),
    ]
    memory.rm_file("/lists/deep/er/a_b-1.mkv")
    with caplog.at_level(logging.WARNING):
        assert len(load_annotations(VideoList(str(path), videos="memory://lists"))) == 1
    assert "50.0 % missing, 1 of 2 videos are not in memory://lists" in caplog.text


def test_empty_captions_are_left_out_and_counted_in_one_warning(tmp_path, caplog):
    path = write_lines(
        tmp_path / "list.jsonl",
        {"video": "a.mp4", "caption": ""},
        {"video": "b.mp4", "caption": ["x", " ", "y"]},
        {"video": "c.mp4", "caption": None},
        {"video": "d.mp4", "caption": []},
    )
    with caplog.at_level(logging.WARNING):
        assert [(record.id, record.captions) for record in load_annotations(path)] == [("b.mp4", ("x", "y"))]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == f"{path}: 4 empty captions are left out"
    write_lines(path, {"video": "a.mp4", "caption": " "})
    with pytest.raises(UserError, match="all captions are empty"):
        load_annotations(path)


def test_half_of_a_surrogate_pair_is_one_line(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text(PLAIN + '{"video": "a.mp4", "caption": "bad \\ud800 half"}\n')
    with pytest.raises(UserError) as caught:
        load_annotations(path)
    assert str(caught.value).startswith(f"{path}, line 4: field 'caption': expected text, got half of a surrogate pair")
    str(caught.value).encode()
    path.write_text('{"video": "a.mp4", "caption": "whole \\ud83c\\udfac pair"}\n')
    assert load_annotations(path)[0].captions == ("whole \U0001f3ac pair",)


def test_what_was_read_is_said_in_one_line(tmp_path, caplog):
    miniature = MINIATURES["msrvtt"][0]
    path = miniature.write(tmp_path)
    with caplog.at_level(logging.INFO):
        load_annotations(VideoList(str(path), split="train"))
    assert caplog.messages == ["MSRVTT_data.json: MSR-VTT, split 'train', 1 video, 2 captions"]
    assert describe_list(VideoList(str(path), split="train")) == {
        "list": str(path),
        "format": "msrvtt",
        "split": "train",
        "videos": 1,
        "captions": 2,
    }


def test_a_list_of_several_splits_asks_for_one(tmp_path):
    path = MINIATURES["msrvtt"][0].write(tmp_path)
    with pytest.raises(
        UserError, match=r"holds the splits 'train', 'val' and 'test': say which with data.split=NAME or --split NAME"
    ):
        load_annotations(path)
    assert len(load_annotations(VideoList(str(path), split="all"))) == 3
    for name in ("val", "validate", "Validation"):
        assert [record.id for record in load_annotations(VideoList(str(path), split=name))] == ["video1"]
    with pytest.raises(UserError, match=r"no split 'dev'; it has 'train', 'val', 'test'"):
        load_annotations(VideoList(str(path), split="dev"))
    with pytest.raises(UserError, match=r"the split '1k-A' needs MSRVTT_JSFUSION_test\.csv beside the list"):
        load_annotations(VideoList(str(path), split="1k-A"))


def test_columns_are_named_where_they_are_unusual_or_several(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("clip id,file name,said,class\n7,a.mp4,one,run\n8,b.mp4,two,sit\n")
    with pytest.raises(UserError, match=r"list\.csv: expected a \.jsonl file"):
        load_annotations(path)
    columns = ListColumns(video="file name", caption="said", id="clip id", label="class")
    records = load_annotations(VideoList(str(path), columns=columns))
    assert [(record.id, record.video, record.captions) for record in records] == [
        ("7", str(tmp_path / "a.mp4"), ("one",)),
        ("8", str(tmp_path / "b.mp4"), ("two",)),
    ]
    assert load_classes(VideoList(str(path), columns=columns)).class_names == ("run", "sit")
    with pytest.raises(UserError, match=r"no column 'words' \(columns\.caption\) among 'clip id', 'file name'"):
        load_annotations(VideoList(str(path), columns=ListColumns(video="file name", caption="words")))
    path.write_text("path,text,title\na.mp4,one,two\n")
    with pytest.raises(UserError, match="the caption may be in the column 'text' or 'title': say"):
        load_annotations(path)
    assert load_annotations(VideoList(str(path), columns=ListColumns(caption="title")))[0].captions == ("two",)


def test_columns_of_another_list_are_not_of_a_published_one(tmp_path, caplog):
    path = MINIATURES["msrvtt"][0].write(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert load_annotations(VideoList(str(path), split="val", columns=ListColumns(video="my file")))
    assert f"{path}: columns.video=my file is not looked at: MSR-VTT has its own" in caplog.messages
    path = MINIATURES["vatex"][0].write(tmp_path)
    path.write_text(path.read_text().replace('"chCap": []', '"chCap": ["y"]'))
    records = load_annotations(VideoList(str(path), columns=ListColumns(caption="chCap")))
    assert [(record.captions, record.start) for record in records] == [(("y",), None), (("y",), 1.0)]


def test_classes_of_a_table_that_are_numbers_are_numbers(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\na.mp4,10\nb.mp4,2\n")
    made = load_classes(tmp_path / "list.csv")
    assert (made.labels, len(made.class_names)) == ((10, 2), 11)


def test_classes_that_pandas_wrote_as_fractions_are_numbers(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\na.mp4,1.0\nb.mp4,0.0\n")
    assert load_classes(tmp_path / "list.csv").labels == (1, 0)


def test_a_list_that_may_be_several_is_refused_with_their_names(tmp_path):
    path = write_lines(tmp_path / "list.jsonl", {"clip_name": "a", "file_name": "a.mp4", "caption": "x"})
    with pytest.raises(UserError) as caught:
        load_annotations(path)
    assert str(caught.value).startswith(f"{path}: may be ")
    assert "(format=huggingface)" in str(caught.value)
    assert "(format=clipbert)" in str(caught.value)
    assert load_annotations(VideoList(str(path), format="huggingface"))[0].id == "a.mp4"
    with pytest.raises(UserError, match="no list format 'hugingface'; did you mean 'huggingface'"):
        load_annotations(VideoList(str(path), format="hugingface"))


def test_a_list_that_says_something_else_is_refused_by_what_it_says(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("a.mp4 1\n")
    with pytest.raises(UserError, match=r"tells a class each; expected a \.jsonl file or a folder of videos"):
        load_annotations(path)
    with pytest.raises(UserError, match=r"tells a class each; expected a \.jsonl file of questions"):
        load_questions(path)
    assert [record.id for record in load_videos(path)] == ["a.mp4"]


def test_names_without_a_suffix_are_found_and_paths_that_exist_are_kept(tmp_path, caplog):
    touch(tmp_path, "v/a.MP4", "v/exact", "v/exact.mp4", "w/b.mkv")
    path = tmp_path / "list.csv"
    path.write_text("video_id,desc\na,one\nv/exact,two\nb.mp4,three\nw/b,four\ngone,five\n")
    with caplog.at_level(logging.WARNING):
        records = load_annotations(path)
    expected = ["v/a.MP4", "v/exact", "b.mp4", "w/b.mkv", "gone"]
    assert [os.path.relpath(record.video, tmp_path) for record in records] == expected
    assert "25.0 % missing, 1 of 4 videos are not in" in caplog.text
    assert "they are kept, and are bad files when they are met" in caplog.text
    with caplog.at_level(logging.WARNING):
        records = load_annotations(VideoList(str(path), missing="drop"))
    assert [os.path.relpath(record.video, tmp_path) for record in records] == ["v/a.MP4", "v/exact", "w/b.mkv"]


def test_a_name_of_several_files_takes_the_first_and_says_so(tmp_path, caplog):
    touch(tmp_path, "b/video7.mp4", "a/video7.webm")
    path = write_lines(tmp_path / "train.jsonl", {"clip_name": "video7", "caption": "x"})
    with caplog.at_level(logging.WARNING):
        assert load_annotations(path)[0].video == str(tmp_path / "a/video7.webm")
    assert "several files bear the name of 1 video, the first by path is taken: video7" in caplog.text


def test_files_that_come_later_are_found(tmp_path):
    path = write_lines(tmp_path / "train.jsonl", *({"clip_name": name, "caption": "x"} for name in ("a", "b")))
    touch(tmp_path, "a.mp4")
    assert [record.id for record in load_annotations(path)] == ["a"]
    touch(tmp_path, "b.mp4")
    assert [record.id for record in load_annotations(path)] == ["a", "b"]


def test_captions_of_tabbed_lists_may_hold_quotes_that_do_not_end(tmp_path):
    (tmp_path / "train.tsv").write_text('"a man says\thttp://x/0.jpg\nanother "one"\thttps://x/1.jpg?w=2\n')
    touch(tmp_path, "3201020692", "1500174011")
    assert [record.captions for record in load_annotations(tmp_path / "train.tsv")] == [
        ('"a man says',),
        ('another "one"',),
    ]


def test_questions_are_told_from_other_lists(tmp_path):
    for name in ("msrvtt_qa", "nextqa", "clipbert_qa"):
        assert lists_questions(MINIATURES[name][0].write(tmp_path / name))
    for name in ("kinetics", "msrvtt_jsfusion", "folder", "class_folders"):
        assert not lists_questions(MINIATURES[name][0].write(tmp_path / name))
    assert not lists_questions(tmp_path / "nowhere.jsonl")


def test_a_published_question_whose_answer_stands_twice_is_left_out(tmp_path, caplog):
    miniature = MINIATURES["nextqa"][0]
    path = miniature.write(tmp_path)
    path.write_text(path.read_text() + "40,900,640,480,who,1,3,CH,a,b,b,d,e\n")
    with caplog.at_level(logging.WARNING):
        assert load_questions(path).answers == ("d",)
    assert "1 question has the right answer twice among the options: left out" in caplog.text


def test_a_span_that_ends_where_it_begins_is_left_out_of_a_published_list(tmp_path, caplog):
    path = MINIATURES["activitynet_moments"][0].write(tmp_path)
    with caplog.at_level(logging.WARNING):
        load_annotations(VideoList(str(path), format="activitynet_moments"))
    assert f"{path}: 1 span is left out for an end that is its beginning or before" in caplog.text


def test_classes_are_numbered_as_their_publication_numbers_them(tmp_path):
    made = load_classes(MINIATURES["ssv2"][0].write(tmp_path))
    assert made.class_names == ("Pushing something left", "Holding something next to something")
    assert made.labels == (1, 0)
    assert [record.may_be_mirrored for record in made.records] == [True, False]


def write_tar(path, **members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content.encode()))


def test_tars_are_lists_of_their_samples(tmp_path):
    for shard, clips in enumerate((("a", "b"), ("a",))):
        members = {}
        for clip in clips:
            members |= {f"{clip}.mp4": "0", f"{clip}.txt": f"clip {clip} of {shard}", f"{clip}.cls": str(shard)}
            members |= {f"{clip}.json": json.dumps({"question": "which?", "answer": clip, "start": 1, "end": 2.5})}
        write_tar(tmp_path / f"shards/{shard:05d}.tar", **members)
    one, two = tmp_path / "shards/00000.tar", tmp_path / "shards/00001.tar"
    sources = [tmp_path / "shards", f"{tmp_path}/shards/{{00000..00001}}.tar", f"{tmp_path}/shards/*.tar"]
    for source in sources:
        records = load_annotations(source)
        assert [(record.id, record.video, record.captions, record.start, record.end) for record in records] == [
            ("a", f"{one}::a.mp4", ("clip a of 0",), 1.0, 2.5),
            ("b", f"{one}::b.mp4", ("clip b of 0",), 1.0, 2.5),
            ("00001/a", f"{two}::a.mp4", ("clip a of 1",), 1.0, 2.5),
        ]
        assert [record.video for record in load_videos(source)] == [record.video for record in records]
        assert load_classes(source).labels == (0, 0, 1)
        assert load_questions(source).answers == ("a", "b", "a")
    with pytest.raises(UserError, match=r"no split 'val': no line of it says a split; leave split=val out"):
        load_annotations(VideoList(str(one), split="val"))
    with pytest.raises(FileNotFoundError):
        load_annotations(tmp_path / "gone.tar")
    with pytest.raises(
        UserError, match=r"s3://bucket/list\.parquet: expected tars, or a list \(\.jsonl, .*others are read from"
    ):
        load_annotations("s3://bucket/list.parquet")
