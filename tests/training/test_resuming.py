"""What is said before a run goes on, or does not."""

import logging
from pathlib import Path

import pytest

from fastvtp.errors import ConfigError
from fastvtp.model_folder import RUN_CONFIG_NAME
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import TrainConfig, apply_overrides, save_config
from fastvtp.training.resuming import check_resumable, say_where_none
from tests.cli.test_main import run


def configured(run_dir: Path, *settings: str) -> TrainConfig:
    return apply_overrides(get_recipe("simvtp_tiny"), [f"output_dir={run_dir}", *settings])


def make_run(run_dir: Path, *settings: str) -> None:
    (run_dir / "checkpoints" / "step_00000002").mkdir(parents=True)
    save_config(configured(run_dir, *settings), run_dir / RUN_CONFIG_NAME)


def test_a_run_that_is_not_there_is_said_to_begin_anew(tmp_path, caplog):
    make_run(tmp_path / "mine")
    (tmp_path / "first_").mkdir()  # holds no run
    with caplog.at_level(logging.INFO):
        say_where_none(tmp_path / "first")
        say_where_none(tmp_path / "nowhere" / "first")
    assert [record.message for record in caplog.records] == [
        f"no run in {folder}: starting anew" for folder in (tmp_path / "first", tmp_path / "nowhere" / "first")
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        say_where_none(tmp_path / "mine")
    assert not caplog.records


def test_a_mistyped_folder_is_answered_with_the_run_beside_it(tmp_path, caplog, monkeypatch):
    make_run(tmp_path / "mine")
    with caplog.at_level(logging.INFO):
        say_where_none(tmp_path / "mien")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message == (
        f"no run in {tmp_path}/mien: starting anew; {tmp_path}/mine holds one, is output_dir={tmp_path}/mine meant?"
    )
    monkeypatch.chdir(tmp_path)
    say_where_none(Path("mein"))
    assert "is output_dir=mine meant?" in caplog.text


def test_the_command_says_that_it_starts_anew(tmp_path, caplog, capsys, monkeypatch, tiny_settings):
    make_run(tmp_path / "runs")
    monkeypatch.setattr("fastvtp.runs.pretrain", lambda config, **_: {"steps": 1, "bad_files": {"count": 0}})
    arguments = ("pretrain", "simvtp_demo", *tiny_settings)
    with caplog.at_level(logging.INFO, "fastvtp.training.resuming"):
        assert run(capsys, monkeypatch, *arguments)[0] == 0
        assert not caplog.records
        assert run(capsys, monkeypatch, *arguments, "--resume")[0] == 0
    assert f"no run in {tmp_path}/run: starting anew; {tmp_path}/runs holds one" in caplog.text


def test_a_refusal_says_what_each_setting_was_and_is(tmp_path):
    make_run(tmp_path / "mine")
    changed = configured(tmp_path / "mine", "data.fps=8", "batch_size=6", "data.flip=false", "steps=9")
    with pytest.raises(ConfigError) as refused:
        check_resumable(changed, resume=True)
    message = str(refused.value)
    size = configured(tmp_path / "mine").batch_size
    assert f": batch_size: was {size}, is 6; data.flip: was true, is false; data.fps: was none, is 8;" in message
    assert "steps" not in message.partition("set them back")[0].split(": ", 1)[1]
    assert f"init={tmp_path}/mine and another output_dir" in message
    assert "\n" not in message


def test_a_refusal_of_many_settings_is_bounded(tmp_path):
    make_run(tmp_path / "mine")
    names = ["width=96", "depth=2", "num_heads=4", "decoder_width=48", "decoder_depth=2", "decoder_num_heads=3"]
    more = ["seed=3", "batch_size=6", "data.flip=false", "precision=bfloat16"]
    with pytest.raises(ConfigError, match="; precision: was float32, is bfloat16; and 1 more; set") as refused:
        check_resumable(configured(tmp_path / "mine", *(f"model.{name}" for name in names), *more), resume=True)
    assert str(refused.value).count(": was ") == 8


def test_a_run_without_a_checkpoint_is_said_to_begin_anew(tmp_path, caplog):
    save_config(configured(tmp_path), tmp_path / RUN_CONFIG_NAME)
    assert not check_resumable(configured(tmp_path, "steps=9"), resume=True)
    assert caplog.messages == [f"{tmp_path} has no checkpoint: starts anew"]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    caplog.clear()
    assert not check_resumable(configured(tmp_path), resume=True)
    assert caplog.messages == [f"{tmp_path} has no checkpoint: starts anew, without the 1 step on record"]


def test_a_run_without_a_checkpoint_is_not_mixed_with_one_of_other_settings(tmp_path):
    save_config(configured(tmp_path), tmp_path / RUN_CONFIG_NAME)
    with pytest.raises(ConfigError, match=": seed: was 0, is 3; set them back, or choose another output_dir: it"):
        check_resumable(configured(tmp_path, "seed=3"), resume=True)
