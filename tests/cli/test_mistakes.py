"""Mistakes of a newcomer: one line that names the thing, before any work is done."""

from pathlib import Path

import pytest

from tests.cli.test_main import run
from tests.data.clips import write_lines


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.pth").touch()
    write_lines(tmp_path / "list.jsonl", {"video": "a.mp4", "caption": "x"})
    return tmp_path


# what a command opens before it reads is a model that is not there: outputs are looked at before
OUTPUTS = [
    ("evaluate absent list.jsonl --output file", "--output file: is a file, expected a folder"),
    ("evaluate absent list.jsonl --output file/x", "{}/file is no folder"),
    ("visualize absent list.jsonl --output file", "--output file: is a file, expected a folder"),
    ("extract absent list.jsonl --output file", "--output file: is a file, expected a folder"),
    ("probe absent --train list.jsonl --test list.jsonl --output file", "--output file: is a file, expected a folder"),
    ("zeroshot absent list.jsonl --output file", "--output file: is a file, expected a folder"),
    ("caption absent list.jsonl --output folder", "--output folder: is a folder, expected the name of a file"),
    ("answer absent list.jsonl --output file/x.jsonl", "{}/file is no folder"),
    ("entities absent --output folder", "--output folder: is a folder, expected the name of a file"),
    ("data show absent.jsonl --output file/s.png", "--output file/s.png: {}/file is no folder"),
    ("data show absent.jsonl --json folder", "--json folder: is a folder, expected the name of a file"),
    ("plan absent --json folder", "--json folder: is a folder, expected the name of a file"),
    ("ablate simvtp --output file", "--output file: is a file, expected a folder"),
]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        *OUTPUTS,
        ("evaluate absent list.jsonl --views 0x3", "views: expected positive (segments, crops), got (0, 3)"),
        ("evaluate absent list.jsonl --views -1x3", "views: expected positive (segments, crops), got (-1, 3)"),
        ("plan simvtp_tiny data.test_views=0x3", "data.test_views: expected positive (segments, crops), got (0, 3)"),
        ("data check list.jsonl --column video", "--column video: expected FIELD=NAME, such as video=path"),
        ("data show list.jsonl --preset official", "--preset official is for recipes, list.jsonl is a data set"),
        ("convert empty.pth out", "empty.pth is empty: 0 bytes, expected weights"),
        (
            "pretrain simvtp_tiny data.train=list.jsonl data.test=none output_dir=file",
            "output_dir=file is a file; give",
        ),
    ],
)
def test_a_mistake_is_one_line(capsys, monkeypatch, here, arguments, complaint):
    status, out, err = run(capsys, monkeypatch, *arguments.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert complaint.format(here) in err


def test_an_error_of_the_system_names_the_path_and_no_number(capsys, monkeypatch, here):
    def fail(*_):
        raise PermissionError(13, "Permission denied", str(here / "models"))

    monkeypatch.setattr("fastvtp.systems.recipes.recipe_summaries", fail)
    assert run(capsys, monkeypatch, "recipes")[2] == f"fastvtp: {here}/models: Permission denied\n"


def test_a_negative_seed_of_pictures_is_refused(capsys, monkeypatch, here):
    status, _, err = run(capsys, monkeypatch, "visualize", "absent", "list.jsonl", "--seed", "-1")
    assert status == 2
    assert "'--seed'" in err


@pytest.mark.parametrize("option", ["--top-k", "--train-data"])
def test_an_option_of_other_models_is_refused(capsys, monkeypatch, here, option):
    class Opened:
        model = None

    monkeypatch.setattr("fastvtp.systems.catalogue.open_model", lambda *_: Opened)
    monkeypatch.setattr("fastvtp.architecture.architecture_of", lambda _: type("Known", (), {"scored_by": "retrieval"}))
    status, _, err = run(capsys, monkeypatch, "evaluate", "mine", "list.jsonl", option, "3")
    assert (status, err.count("\n")) == (2, 1)
    assert f"{option} 3: is for models that " in err
    assert err.endswith("mine is none\n")
