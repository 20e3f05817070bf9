import logging
import sys

import pytest

from fastvtp.cli import main as cli


@pytest.fixture
def run(capsys, monkeypatch):
    """Exit status, stdout and stderr of `fastvtp ARGUMENTS`."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastvtp", *arguments])
        monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call


def test_a_quick_study(run, tmp_path):
    folder = tmp_path / "study"
    status, out, err = run(
        "ablate", "simvtp", "steps=1", "device=cpu", "--quick", "--study", "data", "--output", str(folder), "--quiet"
    )
    assert status == 0, err
    lines = out.splitlines()
    assert len(lines) == 5
    assert [line.split()[0] for line in lines[:3]] == ["not"] * 3  # measured: other studies' affair
    assert "fastvtp ablate simvtp steps=1 device=cpu --quick" in (folder / "ablation.md").read_text()


def test_alpro_has_one_study(run, tmp_path):
    folder = tmp_path / "study"
    arguments = ["ablate", "alpro", "steps=1", "device=cpu", "--quick", "--study", "objectives", "--quiet", "--output"]
    status, out, err = run(*arguments, str(folder))
    assert status == 0, err
    assert len(out.splitlines()) == 3
    assert "VTC" in out
    assert "PEM" in out
    assert (folder / "ablation.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("simvpt",), "did you mean 'simvtp'"),
        (("simvtp", "--study", "mask"), "did you mean 'masks'"),
        (("alpro", "--study", "objective"), "did you mean 'objectives'"),
        (("alpro", "prompter=mine"), "the ablation makes its own videos, tokenizer and prompter"),
        (("simvtp", "data.train=mine.jsonl"), "the ablation makes its own videos, tokenizer and prompter"),
        (("simvtp", "output_dir=here"), "choose its folder by --output"),
        (("simvtp", "model.widht=3"), "did you mean 'model.width'"),
        (("simvtp", "--preset", "oficial"), "did you mean 'official'"),
    ],
)
def test_user_errors_are_one_line_and_leave_no_folder(run, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = run("ablate", *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
