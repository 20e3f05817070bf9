"""Settings that name what is not there: the setting, what to give, and which command makes it."""

import logging
from pathlib import Path

import pytest

from fastvtp import runs
from fastvtp.errors import ConfigError
from fastvtp.systems.recipes import get_recipe, recipe_config
from fastvtp.training.config import apply_overrides
from fastvtp.training.loop import train

LIST = "a .jsonl file or a folder of videos"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A folder without runs/, as a user has it who has not run the demo."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("recipe", "settings", "expected"),
    [
        ("alpro_prompter_tiny", ["data.images=none.jsonl"],
         "data.images=none.jsonl does not exist; give a .jsonl file of pictures, or data.images=none"),
        ("videoprism_stage1_tiny", ['data.more=["a.jsonl", "tests"]'],
         f"data.more=a.jsonl does not exist; give {LIST}, or data.more=[]"),
        ("simvtp_tiny", ["data.tokenizer=vocab.txt"],
         "data.tokenizer=vocab.txt does not exist; give a tokenizer's file or folder, or data.tokenizer=none"),
        ("classification_finetune_tiny", ["data.class_names=n.txt"],
         "data.class_names=n.txt does not exist; give a file of class names, or data.class_names=none"),
        ("videoprism_captioning_tiny", ["data.features=f"], "data.features=f does not exist; give a folder of"),
        ("videoprism_captioning_tiny", [], "model.backbone=runs/demo does not exist; give a run or model folder, or "
         "model.backbone=none (`fastvtp demo` makes it)"),
        ("videoprism_captioning_tiny", [], "model.language_model=runs/captioning_toy/language_model does not exist"),
        ("qa_finetune_tiny", [], "init=runs/demo does not exist; give a checkpoint file or folder, or init=none "
         "(`fastvtp demo` makes it)"),
        ("videoprism_stage2_tiny", [], "teacher=runs/videoprism_stage1_tiny does not exist; give a checkpoint file or "
         "folder, or teacher=none (`fastvtp pretrain videoprism_stage1_tiny` makes it)"),
    ],
)  # fmt: skip
def test_a_missing_path_names_its_setting(recipe, settings, expected, captioned_videos):
    data = f"data.train={captioned_videos / 'train.jsonl'}"
    with pytest.raises(ConfigError) as raised:
        recipe_config(recipe, "fastvtp", [data, *settings])
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"does not exist; give"):
        runs.pretrain(apply_overrides(get_recipe(recipe), [data, *settings]), progress_bar=False)


def test_everything_that_is_missing_is_said_at_once():
    with pytest.raises(ConfigError) as raised:
        recipe_config("retrieval_finetune_tiny", "fastvtp", [])
    assert str(raised.value) == (
        "data.train=runs/demo/data/train.jsonl does not exist; give data.train=FILE.jsonl or a folder (`fastvtp demo` "
        "makes it). init=runs/demo does not exist; give a checkpoint file or folder, or init=none (`fastvtp demo` "
        "makes it)"
    )


@pytest.mark.parametrize("recipe", ["retrieval_finetune_tiny", "qa_finetune_tiny", "videoprism_stage1_tiny"])
def test_test_data_of_the_demo_are_named_before_the_training(recipe, captioned_videos, tmp_path):
    train_data = captioned_videos / ("train_questions.jsonl" if recipe.startswith("qa") else "train.jsonl")
    config = recipe_config(recipe, "fastvtp", [f"data.train={train_data}", "init=none", "output_dir=run"])
    test = config.data.test
    with pytest.raises(ConfigError) as raised:
        runs.pretrain(config, progress_bar=False)
    assert str(raised.value) == (
        f"data.test={test} does not exist; give a list or folder as for data.train, or data.test=none (`fastvtp demo` "
        "makes it)"
    )
    assert not (tmp_path / "run").exists()


NARROW = ["data.test=none", "steps=1", "micro_batch=5", "batch_size=15"]
MATCHING = ["contrast_scope=global", "matching_scope=micro_batch"]


@pytest.mark.parametrize(
    ("recipe", "settings", "expected"),
    [
        ("simvtp_demo", ["contrast_scope=micro_batch"], "contrast_scope=micro_batch: a step is of 15 clips, but "
         "contrast and matching compare a clip with the others of its micro-batch of 5 alone"),
        ("simvtp_demo", ["model.gather_negatives=false"], "contrast_scope=micro_batch: a step is of 15 clips, but "
         "contrast and matching compare a clip with the others of its micro-batch of 5 alone"),
        ("simvtp_demo", MATCHING, "matching_scope=micro_batch: a step is of 15 clips, but matching compares a clip "
         "with the others of its micro-batch of 5 alone"),
    ],
)  # fmt: skip
def test_a_step_whose_micro_batches_are_compared_apart_says_so(recipe, settings, expected, tiny_settings, caplog):
    with caplog.at_level(logging.WARNING):
        train(apply_overrides(get_recipe(recipe), [*tiny_settings, *NARROW, *settings]), progress_bar=False)
    assert [record.getMessage() for record in caplog.records if "micro" in record.getMessage()] == [expected]


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("simvtp_demo", []),
        ("simvtp_demo", ["contrast_scope=micro_batch", "batch_size=5"]),
        ("videomae_pretrain_tiny", ["contrast_scope=micro_batch"]),
    ],
)
def test_where_nothing_is_compared_apart_nothing_is_said(recipe, settings, tiny_settings, caplog):
    config = apply_overrides(get_recipe(recipe), [*tiny_settings, *NARROW, *settings])
    with caplog.at_level(logging.WARNING):
        train(config, progress_bar=False)
    assert "micro" not in caplog.text
