"""`fastvtp evaluate` and `fastvtp visualize`: where they write, and what they say of it."""

import logging

import pytest

from tests.cli.test_main import run


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("runs/mine", "mine"),
        ("runs/mine/", "mine"),
        ("runs/mine/model", "mine"),
        ("runs/mine/checkpoints/step_00000500", "mine_step_00000500"),
        ("model", "here"),
        (".", "here"),
        ("user/name", "name"),
    ],
)
def test_pictures_of_each_model_have_a_folder_of_their_own(
    capsys, monkeypatch, tmp_path, caplog, captioned_videos, model, folder
):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    asked = []

    def draw(opened, data, output, **_):
        asked.append(output)
        output.mkdir(parents=True, exist_ok=True)
        (output / "reconstruction.png").write_bytes(b"x")
        return [output / "reconstruction.png"]

    monkeypatch.setattr("fastvtp.runs.visualize", draw)
    monkeypatch.setattr("fastvtp.systems.catalogue.open_model", lambda *_: None)
    arguments = ("visualize", model, str(captioned_videos / "test.jsonl"))
    with caplog.at_level(logging.INFO, "fastvtp.cli.scoring"):
        status, out, err = run(capsys, monkeypatch, *arguments)
        assert (status, out) == (0, f"runs/pictures/{folder}/reconstruction.png\n"), err
        assert not caplog.records
        run(capsys, monkeypatch, *arguments)
    assert [record.message for record in caplog.records] == [
        f"runs/pictures/{folder}: 1 picture replaced: --output FOLDER keeps others apart"
    ]
