"""Folders as they are found."""

import logging
import os

import pytest

from fastvtp.data.annotations import load_annotations, load_videos
from fastvtp.data.classes import load_classes
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.video_files import content_of, videos_under
from fastvtp.errors import UserError
from tests.data.test_lists import touch


def test_hidden_files_and_folders_are_no_videos_and_no_classes(tmp_path, caplog):
    touch(
        tmp_path,
        "archery/a.mp4",
        "archery/._a.mp4",
        "archery/.DS_Store",
        ".ipynb_checkpoints/a-checkpoint.mp4",
        "bowling/b.mp4",
    )
    (tmp_path / "bowling/dir.mp4").mkdir()
    with caplog.at_level(logging.WARNING):
        made = load_classes(tmp_path)
    hidden = "hidden, and passed over: .ipynb_checkpoints, archery/._a.mp4"
    assert caplog.messages == [f"{tmp_path}: 2 names are {hidden}"]
    assert made.class_names == ("archery", "bowling")
    assert [record.id for record in made.records] == ["archery/a", "bowling/b"]
    assert [record.id for record in load_videos(tmp_path)] == ["archery/a", "bowling/b"]
    assert content_of(tmp_path).hidden == [".ipynb_checkpoints", "archery/._a.mp4"]


def test_a_folder_that_is_hidden_itself_is_read(tmp_path):
    touch(tmp_path, ".data/a.mp4")
    assert [record.id for record in load_videos(tmp_path / ".data")] == ["a"]


def test_linked_folders_are_followed_but_not_into_themselves(tmp_path):
    touch(tmp_path, "disk/cricket/d.mp4", "videos/e.mp4")
    os.symlink(tmp_path / "disk/cricket", tmp_path / "videos/cricket")
    os.symlink(tmp_path / "videos", tmp_path / "videos/again")
    os.symlink(tmp_path / "nowhere.mp4", tmp_path / "videos/gone.mp4")
    found = [path.relative_to(tmp_path / "videos").as_posix() for path in videos_under(tmp_path / "videos")]
    assert found == ["cricket/d.mp4", "e.mp4", "gone.mp4"]


def test_all_kinds_of_video_files_count(tmp_path):
    names = [
        "3gp",
        "avi",
        "flv",
        "gif",
        "m2ts",
        "m4v",
        "mkv",
        "mov",
        "mp4",
        "mpeg",
        "mpg",
        "mts",
        "ogv",
        "ts",
        "vob",
        "webm",
        "wmv",
    ]
    touch(tmp_path, *(f"v.{name}" for name in names), "v.txt", "v.mp3", "v.MP4")
    assert sorted(path.suffix for path in videos_under(tmp_path)) == sorted([*(f".{name}" for name in names), ".MP4"])


def test_a_folder_without_videos_says_what_it_holds_instead(tmp_path):
    touch(tmp_path, "a.rmvb", "b.rmvb", "notes.md")
    with pytest.raises(UserError, match=r"lists no videos; it holds files of other suffixes: \.rmvb \(2\), \.md \(1\)"):
        load_videos(tmp_path)


def test_folders_of_frames_are_videos_where_there_are_no_others(tmp_path):
    frames = [f"run/{clip}/{n:05d}.jpg" for clip in ("a", "b") for n in (1, 2)]
    touch(tmp_path, *frames, "sit/c/frame_1.png", "sit/c/frame_2.png", "sit/c/notes.txt", "sit/cover.jpg")
    made = load_classes(tmp_path)
    assert [(record.video, record.captions) for record in made.records] == [
        (str(tmp_path / "run/a"), ("run",)),
        (str(tmp_path / "run/b"), ("run",)),
        (str(tmp_path / "sit/c"), ("sit",)),
    ]
    (tmp_path / "run/a.txt").write_text("someone runs")
    assert [record.id for record in load_annotations(tmp_path)] == ["run/a"]
    (tmp_path / "list.csv").write_text("path,label\nrun/b,1\nc,0\n")
    made = load_classes(VideoList(str(tmp_path / "list.csv")))
    assert [record.video for record in made.records] == [str(tmp_path / "run/b"), str(tmp_path / "sit/c")]
    touch(tmp_path, "run/d.mp4")  # thumbnails beside videos are none
    assert [record.video for record in load_classes(tmp_path).records] == [str(tmp_path / "run/d.mp4")]
