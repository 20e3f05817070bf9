"""Classes that a list gives by number, and a file that names them."""

import dataclasses
from pathlib import Path

import pytest

from fastvtp import runs
from fastvtp.errors import ConfigError
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.task import build_task
from tests.training.labelled import (
    classes,
    rows_of,
    settings,
    write_rows,
)


def configure(data: Path, output_dir: Path, *more: str) -> TrainConfig:
    return apply_overrides(get_recipe("classification_finetune_tiny"), settings(data, output_dir, *more))


def numbered(root: Path, split: str) -> Path:
    """As `classes`, by numbers."""
    rows = rows_of(classes(root, split))
    return write_rows(
        root / f"{split}_numbers.jsonl", [{**row, "label": ["cold", "warm"].index(row["label"])} for row in rows]
    )


def test_names_decide_what_numbered_classes_allow_to_mirror(captioned_videos, tmp_path, caplog):
    data, names = numbered(captioned_videos, "train"), tmp_path / "names.txt"
    names.write_text("moving left\nmoving right\nnever seen\n")
    for more, warned, mirrorable in (
        ((), 1, True), (("data.flip=false",), 0, True), ((f"data.class_names={names}",), 0, False)
    ):  # fmt: skip
        caplog.clear()
        task = build_task(configure(data, tmp_path / "run", *more))
        assert caplog.text.count("classes are bare numbers, and clips are mirrored even where") == warned
        assert {record.may_be_mirrored for record in task.records} == {mirrorable}
    assert task.class_names == ("moving left", "moving right", "never seen")


def test_class_names_of_a_file_reach_the_scores(captioned_videos, tmp_path):
    (tmp_path / "labels.json").write_text('{"warm": "1", "cold": "0", "other": "2"}')
    test = numbered(captioned_videos, "test")
    rows = rows_of(test)
    write_rows(test, [{**rows[0], "label": 2}, *rows[1:]])
    config = configure(
        numbered(captioned_videos, "train"), tmp_path / "run", "steps=1",
        f"data.test={test}", f"data.class_names={tmp_path / 'labels.json'}",
    )  # fmt: skip
    report = runs.pretrain(config, progress_bar=False)
    assert set(report["classification"]["per_class"]) == {"cold", "warm", "other"}
    assert report["classification"]["chance"] == pytest.approx(100 / 3)
    with pytest.raises(ConfigError, match=r"data\.class_names is for finetune_classification"):
        dataclasses.replace(get_recipe("qa_finetune_tiny"), data=config.data)
