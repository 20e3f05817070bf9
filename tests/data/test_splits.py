"""Which of its splits is read of a list that has several."""

import json
import logging

import pytest

from fastvtp.data.annotations import load_annotations, load_videos
from fastvtp.data.classes import load_classes, load_targets
from fastvtp.data.formats.listing import describe_list
from fastvtp.data.formats.lists import VideoList
from fastvtp.data.questions import load_questions
from fastvtp.errors import UserError
from tests.data.clips import write_lines
from tests.data.miniatures import MINIATURES

SPLITS = ("train", "test", "train")
SAID = {
    load_annotations: {"caption": "x"},
    load_questions: {"question": "which?", "answer": "x"},
    load_classes: {"label": "x"},
    load_targets: {"labels": ["x"]},
    load_videos: {},
}


def names_of(made):
    return [record.id for record in getattr(made, "records", made)]


@pytest.mark.parametrize("load", SAID)
@pytest.mark.parametrize("name", ["own.jsonl", "own.json"])
def test_our_own_list_of_several_splits_asks_for_one(tmp_path, load, name):
    rows = [{"video": f"{n}.mp4", "split": split, **SAID[load]} for n, split in enumerate(SPLITS)]
    path = write_lines(tmp_path / name, *rows)
    if name == "own.json":
        path.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"holds the splits 'train' and 'test': say which with data.split=NAME"):
        load(path)
    assert names_of(load(VideoList(str(path), split="training"))) == ["0.mp4", "2.mp4"]
    assert names_of(load(VideoList(str(path), split="test"))) == ["1.mp4"]
    assert len(names_of(load(VideoList(str(path), split="all")))) == 3


def test_lines_of_no_split_are_of_every_list_that_is_not_asked_for_one(tmp_path):
    row = {"video": "0.mp4", "caption": "x"}
    path = write_lines(tmp_path / "own.jsonl", row, {**row, "video": "1.mp4", "split": "train"})
    assert len(load_annotations(path)) == 2
    with pytest.raises(UserError, match="line 1: field 'split': expected a split such as 'train', got None"):
        load_annotations(VideoList(str(path), split="train"))


@pytest.mark.parametrize("name", ["own.jsonl", "list.csv"])
def test_a_list_without_splits_says_that_none_is_to_be_asked_for(tmp_path, name):
    path = tmp_path / name
    said = '{"video": "0.mp4", "caption": "x"}' if name == "own.jsonl" else "path,caption\n0.mp4,x"
    path.write_text(f"{said}\n")
    with pytest.raises(UserError) as caught:
        load_annotations(VideoList(str(path), split="val"))
    assert str(caught.value) == f"{path}: no split 'val': no line of it says a split; leave split=val out"


def test_the_only_split_of_a_list_is_in_its_description(tmp_path):
    path = MINIATURES["kinetics"][0].write(tmp_path)
    load_classes(path)
    assert describe_list(path)["split"] == "train"


def test_the_full_split_of_msrvtt_is_said_to_be_all(tmp_path, caplog):
    path = MINIATURES["msrvtt"][0].write(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert len(load_annotations(VideoList(str(path), split="full"))) == 3
    assert f"{path}: split 'full' is all of train, val and test, each of which has its own name" in caplog.messages


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_class_folders_within_folders_of_splits_are_of_these_splits(tmp_path):
    touch(tmp_path, "train/run/0.mp4", "train/sit/1.mp4", "validation/run/2.mp4")
    with pytest.raises(UserError, match="holds the splits 'train' and 'val': say which"):
        load_classes(tmp_path)
    made = load_classes(VideoList(str(tmp_path), split="train"))
    assert (names_of(made), made.class_names, made.labels) == (["train/run/0", "train/sit/1"], ("run", "sit"), (0, 1))
    assert names_of(load_videos(VideoList(str(tmp_path), split="val"))) == ["validation/run/2"]
    touch(tmp_path, "other/run/3.mp4")  # then they are classes
    assert load_classes(tmp_path).class_names == ("other", "train", "validation")


def test_videos_within_folders_of_splits_are_of_these_splits(tmp_path):
    touch(tmp_path, "train/0.mp4", "test/1.mp4")
    for name in ("train/0.txt", "test/1.txt"):
        (tmp_path / name).write_text("x\n")
    for load in (load_annotations, load_videos):
        with pytest.raises(UserError, match="holds the splits 'test' and 'train': say which"):
            load(tmp_path)
        assert names_of(load(VideoList(str(tmp_path), split="train"))) == ["train/0"]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("under", ["", "data/"])
def test_folders_of_metadata_are_splits(tmp_path, under, name):
    for split, video in (("train", "0.mp4"), ("test", "deep/1.mp4")):
        touch(tmp_path, f"{under}{split}/{video}")
        row = {"file_name": video, "text": "x"}
        text = f"file_name,text\n{video},x\n" if name.endswith("csv") else json.dumps(row) + "\n"
        (tmp_path / under / split / name).write_text(text)
    with pytest.raises(UserError, match="holds the splits 'test' and 'train': say which"):
        load_annotations(tmp_path)
    (record,) = load_annotations(VideoList(str(tmp_path), split="test"))
    assert (record.id, record.video) == (f"{under}test/deep/1.mp4", str(tmp_path / under / "test/deep/1.mp4"))
