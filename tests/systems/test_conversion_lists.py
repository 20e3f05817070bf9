"""What `fastvtp convert` writes beside the weights: answers, entities, classes, and how clips were read."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fastvtp import runs
from fastvtp.cli import main as cli
from fastvtp.data.classes import write_class_names
from fastvtp.data.entities import write_entities
from fastvtp.data.questions import read_answers
from fastvtp.data.wordpiece import SPECIAL_TOKENS
from fastvtp.errors import CheckpointError, UserError
from fastvtp.model_folder import read_framing, write_model_folder, write_reading
from fastvtp.systems.conversion import convert
from tests.checkpoints.names import tiny_model
from tests.systems.alpro.weight_names import (
    UNSEEN,
    official,
    tiny_alpro,
)

SETTINGS = [f"{name}={value}" for name, value in UNSEEN.items()]
ANSWERS = ["two", "a red ball", "zwölf", "no"]
ENTITIES = ["star", "ball", "cat", "dog", "tree", "sun", "4k"]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Released checkpoints of a question answerer, a pretraining and a retrieval, with lists and a vocabulary."""
    for architecture in ("alpro_qa", "alpro", "alpro_retrieval"):
        torch.save({"model": official(tiny_alpro(architecture, 1).state_dict())}, tmp_path / f"{architecture}.pt")
    (tmp_path / "answers.txt").write_text("\n".join(ANSWERS) + "\n", encoding="utf-8")
    write_entities(tmp_path / "nouns.txt", ENTITIES)
    words = [f"word{number}" for number in range(110 - len(SPECIAL_TOKENS))]
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *words]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(monkeypatch, capsys, *arguments: str, settings: Sequence[str] = SETTINGS) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["fastvtp", "convert", *arguments, *settings])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def opened(folder: Path | str) -> runs.OpenedModel:
    return runs.open_model(folder, torch.device("cpu"))


def test_the_command_writes_the_lists_that_runs_have(place, monkeypatch, capsys):
    status, out, error = command(monkeypatch, capsys, "alpro_qa.pt", "qa", "--answers", "answers.txt")
    assert status == 0, error
    assert "answers 4 of answers.txt\n" in out
    found = opened("qa").answers
    assert found is not None
    assert found.answers == tuple(ANSWERS)

    status, out, error = command(monkeypatch, capsys, "alpro.pt", "all", "--entities", "nouns.txt")
    assert status == 0, error
    assert "entities 7 of nouns.txt\n" in out
    assert opened("all").entities == ENTITIES


def test_without_a_list_it_is_said(place, monkeypatch, capsys):
    _, out, _ = command(monkeypatch, capsys, "alpro_qa.pt", "qa")
    assert "answers none in alpro_qa.pt: give a list, one a line (--answers)\n" in out
    with pytest.raises(UserError, match=r"qa has no answers\.json"):
        opened("qa")
    _, out, _ = command(monkeypatch, capsys, "alpro_retrieval.pt", "retrieval")
    assert "answers" not in out
    assert "entities" not in out


def test_a_folder_passes_on_what_it_has(place):
    convert("alpro_qa.pt", "qa", overrides=SETTINGS, lists={"answers": "answers.txt"})
    convert("qa", "again")
    found = opened("again").answers
    assert found is not None
    assert found.answers == tuple(ANSWERS)
    (place / "other.txt").write_text("a\nb\nc\nd")
    assert convert("qa", "renamed", lists={"answers": "other.txt"}).lists == {"answers": "4 of other.txt"}
    assert opened("renamed").answers == read_answers("other.txt")
    convert("alpro.pt", "all", overrides=SETTINGS, lists={"entities": "nouns.txt"})
    assert convert("all", "retrieval", architecture="alpro_retrieval").lists == {}
    assert not (place / "retrieval/entities.txt").exists()


def test_a_classifier_keeps_the_names_of_its_classes(place, monkeypatch, capsys):
    write_model_folder(place / "own", tiny_model("video_classifier"), "video_classifier")
    _, out, _ = command(monkeypatch, capsys, "own", "unnamed", settings=())
    assert "classes none in own: they go by their numbers, unless you give a list, one a line (--classes)\n" in out
    count = len(opened("unnamed").class_names)
    names = ["größer", *(f"class {number}" for number in range(1, count))]
    write_class_names(place / "own/classes.json", names)
    _, out, _ = command(monkeypatch, capsys, "own", "named", settings=())
    assert f"classes {count} of own/classes.json\n" in out
    assert list(opened("named").class_names) == names
    (place / "names.txt").write_text("\n".join(reversed(names)), encoding="utf-8")
    _, out, _ = command(monkeypatch, capsys, "own", "renamed", "--classes", "names.txt", settings=())
    assert f"classes {count} of names.txt\n" in out
    assert list(opened("renamed").class_names) == names[::-1]
    write_class_names(place / "own/classes.json", names[1:])
    with pytest.raises(UserError, match=f"classes.json has {count - 1} classes, expected the model's {count}"):
        convert("own", "fewer")
    with pytest.raises(CheckpointError, match=f"own/classes.json has {count - 1} classes, the model {count}"):
        opened("own")
    (place / "own/classes.json").write_text("{")
    with pytest.raises(UserError, match=r"own/classes\.json: expected names of classes"):
        opened("own")


def test_how_clips_were_read_goes_along(place):
    """ALPRO's release squashed them; of other weights a folder may say so."""
    convert("alpro_qa.pt", "qa", overrides=SETTINGS, lists={"answers": "answers.txt"})
    assert opened("qa").framing == "squash"
    write_model_folder(place / "own", tiny_alpro("alpro_retrieval"), "alpro_retrieval")
    convert("own", "unsaid")
    assert not (place / "unsaid/reading.json").exists()
    for framing in ("crop", "squash"):
        write_reading(place / "own", framing)
        convert("own", framing)
        assert read_framing(place / framing) == framing


def test_a_record_of_reading_that_says_nothing_leaves_no_folder(place):
    write_model_folder(place / "own", tiny_alpro("alpro_retrieval"), "alpro_retrieval")
    (place / "own/reading.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"own/reading\.json: not JSON"):
        convert("own", "half")
    assert not (place / "half").exists()


def test_answers_may_be_a_table_of_classes(place):
    (place / "ans2label.json").write_text(json.dumps({"b": 1, "a": 0}))
    assert read_answers("ans2label.json").answers == ("a", "b")
    assert read_answers("answers.txt").answers == tuple(ANSWERS)


@pytest.mark.parametrize(
    ("source", "option", "content", "message"),
    [
        ("alpro_qa", "answers", "yes\nno\n", "list.txt has 2 answers, expected the model's 4"),
        ("alpro_qa", "answers", "a\n\nb\nc\n", "list.txt, line 2: expected an answer, got an empty line"),
        ("alpro_qa", "answers", "a\nb\nc\na\n", "list.txt: lists 'a' more than once"),
        ("alpro_qa", "answers", "", "list.txt: lists no answers"),
        ("alpro_qa", "answers", None, "list.txt: no such file"),
        ("alpro_qa", "answers", b"\xff", "list.txt, line 1: expected UTF-8 text"),
        ("alpro_qa", "entities", "a\nb\nc\nd\n", "this alpro_qa has no outputs for entities: leave out list.txt"),
        ("alpro_qa", "classes", "a\nb\nc\nd\n", "this alpro_qa has no outputs for classes: leave out list.txt"),
        ("alpro", "answers", "a\nb\nc\nd\n", "this alpro has no outputs for answers: leave out list.txt"),
        ("alpro", "entities", "star\n", "list.txt has 1 entities, expected the model's 7"),
        ("alpro", "entities", None, "list.txt: no such file"),
    ],
)
def test_lists_that_do_not_fit_are_one_line(place, monkeypatch, capsys, source, option, content, message):
    if content is not None:
        (place / "list.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    status, _, error = command(monkeypatch, capsys, f"{source}.pt", "out", f"--{option}", "list.txt")
    assert status == 2
    assert error.startswith(f"fastvtp: {message}")
    assert error.count("\n") == 1
    assert not (place / "out").exists()
