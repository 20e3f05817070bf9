import json
import logging
from dataclasses import replace

import pytest

from fastvtp.data.annotations import VideoRecord, annotations_digest, load_annotations
from fastvtp.data.records import mentions_direction
from fastvtp.errors import UserError


def write_lines(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_jsonl_paths_start_from_its_folder_and_captions_become_a_tuple(tmp_path):
    path = write_lines(
        tmp_path / "list.jsonl",
        {"video": "videos/a.mp4", "caption": "a cat", "scene": {"ignored": 1}},
        "",
        {"video": "/elsewhere/b.mp4", "caption": ["a dog", " two dogs "], "id": "b"},
    )
    assert load_annotations(path) == [
        VideoRecord("videos/a.mp4", str(tmp_path / "videos/a.mp4"), ("a cat",)),
        VideoRecord("b", "/elsewhere/b.mp4", ("a dog", "two dogs")),
    ]


def test_relative_list_path_gives_absolute_video_paths(tmp_path, monkeypatch):
    write_lines(tmp_path / "list.jsonl", {"video": "a.mp4", "caption": "x"})
    monkeypatch.chdir(tmp_path)
    assert load_annotations("list.jsonl")[0].video == str(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{not json", "line 2: not JSON"),
        ("[1]", "line 2: expected an object, got list"),
        ({"caption": "x"}, "line 2: field 'video': there is none among 'caption'; a field of another name is given by"),
        ({"video": "a.mp4"}, "line 2: field 'caption': there is none among 'video'"),
        ({"video": "a.mp4", "caption": 7}, "line 2: field 'caption': expected non-empty text, got 7"),
        ({"video": "a.mp4", "caption": ["x", 7]}, "line 2: field 'caption': expected non-empty text, got 7"),
        ({"video": "a.mp4", "caption": "x", "id": 7}, "line 2: field 'id': expected non-empty text, got 7"),
    ],
)
def test_a_malformed_line_is_named_by_file_line_and_field(tmp_path, line, complaint):
    path = write_lines(tmp_path / "list.jsonl", {"video": "a.mp4", "caption": "x"}, line)
    with pytest.raises(UserError) as caught:
        load_annotations(path)
    assert str(caught.value).startswith(f"{path}, {complaint}")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_bytes(b'{"video": "a.mp4", "caption": "\xff"}\n')
    with pytest.raises(UserError, match="line 1: expected UTF-8 text"):
        load_annotations(path)


def test_folder_prefers_a_list_over_sidecars(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_text("from the sidecar")
    write_lines(tmp_path / "train.jsonl", {"video": "a.mp4", "caption": "from train"})
    assert load_annotations(tmp_path)[0].captions == ("from train",)
    write_lines(tmp_path / "captions.jsonl", {"video": "a.mp4", "caption": "from captions"})
    assert load_annotations(tmp_path)[0].captions == ("from captions",)


def test_folder_of_videos_with_sidecars_is_read_in_sorted_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, text in [("b.webm", "two\n\nlines\n"), ("a.MP4", "one"), ("sub/c.avi", "three")]:
        (tmp_path / name).touch()
        (tmp_path / name).with_suffix(".txt").write_text(text)
    assert load_annotations(tmp_path) == [
        VideoRecord("a", str(tmp_path / "a.MP4"), ("one",)),
        VideoRecord("b", str(tmp_path / "b.webm"), ("two", "lines")),
        VideoRecord("sub/c", str(tmp_path / "sub/c.avi"), ("three",)),
    ]


def test_lines_of_one_video_make_one_record(tmp_path):
    path = write_lines(
        tmp_path / "list.jsonl",
        {"video": "a.mp4", "caption": ["one", "two"], "id": "first"},
        {"video": "b.mp4", "caption": "other"},
        {"video": "./a.mp4", "caption": "three", "id": "second"},
        {"video": str(tmp_path / "a.mp4"), "caption": ["two", "four", "one"]},
    )
    assert load_annotations(path) == [
        VideoRecord("first", str(tmp_path / "a.mp4"), ("one", "two", "three", "four")),
        VideoRecord("b.mp4", str(tmp_path / "b.mp4"), ("other",)),
    ]


def test_videos_without_a_caption_are_left_out_with_one_warning(tmp_path, caplog):
    names = [f"{i}.mp4" for i in range(8)]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "0.txt").write_text(" \n")
    (tmp_path / "6.txt").write_text("a cat")
    assert [record.id for record in load_annotations(tmp_path)] == ["6"]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == (
        f"{tmp_path}: no caption file beside 6 of 8 videos: 1.mp4 (expected 1.txt), 2.mp4, 3.mp4, 4.mp4, 5.mp4, "
        "and 1 more; "
        "1 caption file without a text: 0.txt; left out"
    )


def test_a_folder_whose_videos_all_lack_a_caption_is_refused(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    (tmp_path / "b.txt").touch()
    with pytest.raises(UserError) as caught:
        load_annotations(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: no caption file beside 1 of 2 videos: a.mp4 (expected a.txt); 1 caption file without a text: "
        "b.txt; no video has a caption"
    )


def test_the_digest_changes_with_the_annotations_and_not_with_their_place():
    records = [VideoRecord("a", "/data/x/a.mp4", ("one", "two")), VideoRecord("b", "/data/b.mp4", ("three",))]
    digest = annotations_digest(records)
    assert digest == "163d77459c675c4e"  # pinned: runs are resumed with the digests of earlier versions
    assert digest == annotations_digest([replace(r, video=r.video.replace("/data", "/mnt/disk")) for r in records])
    assert digest == annotations_digest([replace(r, video=r.video.replace("/data", "")) for r in records])
    a, b = records
    changed = [
        [b, a],
        [a],
        [replace(a, id="c"), b],
        [replace(a, video="/data/y/a.mp4"), b],
        [replace(a, captions=("two", "one")), b],
        [replace(a, captions=("one two",)), b],
        [],
    ]
    assert len({digest, *map(annotations_digest, changed)}) == len(changed) + 1


def test_nothing_to_read_is_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_annotations(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="lists no videos"):
        load_annotations(tmp_path)
    (tmp_path / "list.csv").touch()
    with pytest.raises(UserError, match=r"list\.csv: expected a \.jsonl file"):
        load_annotations(tmp_path / "list.csv")


@pytest.mark.parametrize(
    "caption",
    [
        "A ball moves left.",
        "it drifts RIGHTWARDS",
        "the left-hand door",
        "the rightmost car",
        "turning clockwise",
        "a wheel spins anticlockwise",
        "counter-clockwise orbit",
        "counterclockwise orbit",
    ],
)
def test_directions_are_found(caption):
    assert mentions_direction(caption)


@pytest.mark.parametrize(
    "caption", ["a bright light", "standing upright", "human rights", "cleft rock", "wise clock", ""]
)
def test_look_alikes_are_not_directions(caption):
    assert not mentions_direction(caption)
