"""What a run's settings say of its lists."""

import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from fastvtp import runs
from fastvtp.data.formats.lists import ListColumns, VideoList
from fastvtp.errors import ConfigError, UserError
from fastvtp.settings import from_json, to_json
from fastvtp.systems.recipes import get_recipe
from fastvtp.training import loop
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.task import build_task
from tests.data.miniatures import MINIATURES
from tests.training.labelled import choices, classes, settings
from tests.training.tiny_runs import RUNS


def data(*overrides, recipe="simvtp_tiny"):
    return apply_overrides(get_recipe(recipe), list(overrides)).data


def test_settings_of_lists_reach_the_lists():
    made = data(
        "data.train=a.json",
        "data.split=train",
        "data.videos=/videos",
        "data.missing=refuse",
        "data.columns.video=file",
        "data.test=b.csv",
        "data.test_split=val",
        "data.test_format=auto",
    )
    columns = ListColumns(video="file")
    assert made.train_list == VideoList("a.json", None, "train", "/videos", "refuse", columns)
    assert made.test_list == VideoList("b.csv", "auto", "val", "/videos", "refuse", columns)
    moments = data("data.format=didemo_moments", "data.test=b.json").test_list
    assert moments == VideoList("b.json", "didemo_moments")
    assert data("data.test=none").test_list is None
    assert data("data.test=b.csv", "data.test_columns.label=class").test_list == VideoList(
        "b.csv", columns=ListColumns(label="class")
    )


def test_settings_of_further_lists_reach_them():
    def further(*overrides):
        return data("data.more=c.csv,d.json", *overrides, recipe="videoprism_stage2_tiny").more_lists

    assert further("data.split=train", "data.missing=keep") == (
        VideoList("c.csv", missing="keep"),
        VideoList("d.json", missing="keep"),
    )
    assert further("data.more_format=table,vatex", "data.more_split=,9k", "data.more_videos=/videos") == (
        VideoList("c.csv", "table", None, "/videos"),
        VideoList("d.json", "vatex", "9k", "/videos"),
    )
    images = ("data.images=e.tsv", "data.images_format=cc3m", "data.images_split=val", "data.images_videos=/pictures")
    assert data(*images, recipe="alpro_pretrain_tiny").images_list == VideoList("e.tsv", "cc3m", "val", "/pictures")
    with pytest.raises(ConfigError, match=r"data\.more_split must be one for each of the 2 lists of more"):
        further("data.more_split=a,b,c")
    with pytest.raises(ConfigError, match=r"data\.more_videos must be one for each of the 0 lists of more"):
        data("data.more_videos=/videos")


def test_settings_of_lists_survive_json():
    made = data("data.split=train", "data.columns.caption=title")
    saved = json.loads(json.dumps(to_json(made)))
    assert saved["columns"]["caption"] == "title"
    assert from_json(type(made), saved) == made
    del saved["columns"], saved["split"], saved["missing"]  # as an earlier version wrote it
    assert from_json(type(made), saved).lists.columns == ListColumns()


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("data.format=vatx", "no list format 'vatx'; did you mean 'vatex'"),
        ("data.test_format=vatx", "no list format 'vatx'; did you mean 'vatex'"),
        ("data.images_format=vatx", "no list format 'vatx'; did you mean 'vatex'"),
        ("data.missing=no", "missing must be one of drop, keep, refuse, or none, got 'no'"),
        ("data.columns.words=x", "no setting 'data.columns.words'"),
    ],
)
def test_wrong_settings_of_lists_are_refused(override, complaint):
    with pytest.raises(UserError, match=complaint):
        data(override)


def test_a_task_reads_published_lists(tmp_path, caplog):
    path = MINIATURES["msrvtt"][0].write(tmp_path)
    config = RUNS["simvtp"].config(tmp_path, tmp_path / "run", f"data.train={path}", "data.split=train")
    with caplog.at_level(logging.INFO, logger="fastvtp.data"):
        task = build_task(config)
    assert [record.id for record in task.records] == ["video0"]
    assert "MSRVTT_data.json: MSR-VTT, split 'train', 1 video, 2 captions" in caplog.messages
    assert isinstance(config, TrainConfig)
    with pytest.raises(UserError, match=r"say which with data\.split=NAME"):
        build_task(RUNS["simvtp"].config(tmp_path, tmp_path / "run", f"data.train={path}"))


def test_a_run_says_before_its_first_step_that_all_videos_are_missing(tmp_path):
    listed = MINIATURES["kinetics"][0]
    path = listed.write(tmp_path)
    for video in listed.videos:
        (tmp_path / video).unlink()
    config = RUNS["simvtp"].config(tmp_path, tmp_path / "run", f"data.train={path}", "data.test=none")
    with pytest.raises(UserError, match=r"Kinetics tells a class each; expected a \.jsonl file"):
        runs.pretrain(config, progress_bar=False)
    with pytest.raises(ConfigError, match=r"data\.train=.*nowhere\.json does not exist"):
        runs.pretrain(apply_overrides(config, [f"data.train={tmp_path}/nowhere.json"]), progress_bar=False)


def test_a_run_whose_list_is_gone_at_its_end_has_its_report(tmp_path, captioned_videos, monkeypatch):
    path = tmp_path / "train.jsonl"
    rows = (json.loads(line) for line in (captioned_videos / "train.jsonl").read_text().splitlines())
    path.write_text("".join(json.dumps({**row, "video": str(captioned_videos / row["video"])}) + "\n" for row in rows))
    train = runs.train

    def train_and_lose_the_list(*arguments, **options):
        result = train(*arguments, **options)
        path.unlink()
        return result

    monkeypatch.setattr(runs, "train", train_and_lose_the_list)
    config = RUNS["simvtp"].config(tmp_path, tmp_path / "run", f"data.train={path}", "steps=1")
    report = runs.pretrain(config, progress_bar=False)
    assert report["train_data"] == {"list": str(path), "format": "jsonl", "videos": 20, "captions": 20}


@pytest.mark.parametrize(
    ("recipe", "listed"),
    [("classification_finetune_tiny", classes), ("qa_finetune_tiny", choices), ("retrieval_finetune_tiny", None)],
)
def test_each_list_is_opened_once_before_the_first_step(tmp_path, captioned_videos, monkeypatch, recipe, listed):
    class BegunError(Exception):
        pass

    opened, opens = Counter(), Path.open

    def noted(path, mode="r", *args, **kwargs):
        opened[str(path)] += "r" in mode
        return opens(path, mode, *args, **kwargs)

    def begin(*args, **kwargs):
        raise BegunError

    train, test = (
        captioned_videos / f"{split}.jsonl" if listed is None else listed(captioned_videos, split)
        for split in ("train", "test")
    )
    given = settings(train, tmp_path / "run", f"data.test={test}")
    monkeypatch.setattr(loop, "_train", begin)
    monkeypatch.setattr(Path, "open", noted)
    with pytest.raises(BegunError):
        runs.pretrain(apply_overrides(get_recipe(recipe), given), progress_bar=False)
    assert (opened[str(train)], opened[str(test)]) == (1, 1)
    assert not (tmp_path / "run").exists()


def test_a_test_list_without_the_classes_of_training_ends_a_run_before_it_writes(tmp_path, captioned_videos):
    train, test = (classes(captioned_videos, split) for split in ("train", "test"))
    test.write_text(test.read_text().replace('"warm"', '"hot"'))
    given = settings(train, tmp_path / "run", f"data.test={test}")
    with pytest.raises(UserError, match="no class 'hot' among the 2 classes of the training set"):
        runs.pretrain(apply_overrides(get_recipe("classification_finetune_tiny"), given), progress_bar=False)
    assert not (tmp_path / "run").exists()
