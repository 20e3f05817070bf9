import json

import pytest
import torch

from fastvtp.data.classes import load_targets
from fastvtp.errors import UserError


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_class_each_is_what_load_classes_reads(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"video": "x.mp4", "label": "run"}, {"video": "y.mp4", "label": "jump"})
    made = load_targets(path)
    assert (made.labels, made.class_names, made.multi_label) == (((1,), (0,)), ("jump", "run"), False)
    assert made.indicators().tolist() == [[0, 1], [1, 0]]


def test_several_classes_or_none(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        {"video": "x.mp4", "labels": ["run", " turn left ", "run"]},
        {"video": "y.mp4", "labels": [], "id": "second"},
    )
    made = load_targets(path)
    assert made.class_names == ("run", "turn left")
    assert made.labels == ((0, 1), ())
    assert made.multi_label
    assert [record.captions for record in made.records] == [("run, turn left",), ("none",)]
    assert made.records[1].id == "second"
    assert not made.records[0].may_be_mirrored
    assert torch.equal(made.indicators(), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert load_targets(path, ["turn left", "sit", "run"]).labels == ((2, 0), ())


def test_labels_go_by_name_into_the_training_sets_numbers(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"video": "x.mp4", "label": "run"}, {"video": "y.mp4", "label": "jump"})
    made = load_targets(path).renumbered(("run", "sit", "jump"), "test")
    assert (made.labels, made.class_names) == (((0,), (2,)), ("run", "sit", "jump"))
    with pytest.raises(UserError, match="test: no class 'jump' among the 2 classes of the training set"):
        load_targets(path).renumbered(("run", "sit"), "test")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"video": "x", "labels": "run"}], r"line 1: field 'labels': expected a list of classes, got 'run'"),
        ([{"video": "x", "labels": ["a"]}, {"video": "x"}], r"line 2: field 'labels': expected a list .* got None"),
        ([{"video": "x", "labels": [3]}], r"line 1: field 'labels': expected non-empty text, got 3"),
        ([{"video": "x", "labels": []}], "no video shows a class"),
    ],
)
def test_malformed_lists_are_one_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        load_targets(write_lines(tmp_path / "a.jsonl", *rows))


def test_an_unknown_class_is_named(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"video": "x.mp4", "labels": ["run"]})
    with pytest.raises(UserError, match="line 1: no class 'run' among the 1 classes of the training set"):
        load_targets(path, ["sit"])
    (tmp_path / "names.txt").write_text("sit\nrun\n")
    assert load_targets(path, names_file=tmp_path / "names.txt").labels == ((1,),)
