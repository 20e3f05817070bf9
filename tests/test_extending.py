"""The page on systems of one's own names what there is: files, modules, and lines of the toy."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text()
NAMES = {
    "fastvtp.architecture": ("Architecture", "NamedModel", "Runs", "System", "model_config"),
    "fastvtp.checkpoints.kinds": ("Kind", "Transfer", "own_kinds"),
    "fastvtp.checkpoints.names": ("NameMap",),
    "fastvtp.training.config": ("TrainConfig", "DataConfig", "a_path"),
    "fastvtp.training.task": ("CaptionedTask", "Task"),
    "fastvtp.training.question_task": ("QuestionTask",),
}


@pytest.mark.parametrize("module", NAMES)
def test_what_the_page_speaks_of_exists(module):
    for name in NAMES[module]:
        assert re.search(rf"\b{name}\b", PAGE), name
        assert hasattr(importlib.import_module(module), name)


def test_files_of_the_page_exist():
    files = set(re.findall(r"`((?:fastvtp|tests)/[\w/.]+)`", PAGE))
    assert len(files) > 4
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_its_lines_on_names_and_settings_are_the_toys():
    """Whole lines of the blocks, where they are not cut short, stand in the toy's files."""
    toy = "".join((ROOT / "tests/toy_system" / name).read_text() for name in ("model.py", "system.py"))
    for line in (
        'name = "pretrain_toy"',
        "model_config = ToyConfig",
        "contrasts = True",
        'sources={"toy": Transfer()}',
    ):
        assert line in PAGE
        assert line in toy
    rules = re.search(r"_NAMES = NameMap\(.*\)", PAGE)
    assert rules
    assert rules[0] in toy
