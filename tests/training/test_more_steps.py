"""A run that is given more steps when it is resumed."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from fastvtp.errors import ConfigError
from fastvtp.model_folder import RUN_CONFIG_NAME
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides, differing_settings, save_config
from fastvtp.training.loop import train


def configured(settings: list[str], *more: str):
    return apply_overrides(get_recipe("simvtp_demo"), [*settings, "data.test=none", *more])


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_more_steps_see_the_clips_that_a_run_of_so_many_sees(tiny_settings, tmp_path, caplog):
    """At one rate for all steps the schedule has no part in it: bit for bit the run that was never stopped."""
    rate = ["optimizer.learning_rate=1e-3", "optimizer.final_learning_rate=1e-3", "optimizer.warmup_steps=0"]
    settings = [*tiny_settings, *rate, "ema_decay=0.5"]
    train(configured(settings, "steps=3"), progress_bar=False)
    with caplog.at_level(logging.WARNING):
        longer = train(configured(settings, "steps=7"), resume=True, progress_bar=False)
    assert "steps is 7 where it was 3: from step 3 on the learning rate is that of a run of 7 steps" in caplog.text
    train(configured(settings, "steps=7", f"output_dir={tmp_path / 'whole'}"), progress_bar=False)
    assert longer.steps == 7
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    caplog.clear()
    train(configured(settings, "steps=7"), resume=True, progress_bar=False)
    assert "steps is" not in caplog.text


def test_the_schedule_is_that_of_the_new_number(tiny_settings, tmp_path):
    settings = [*tiny_settings, "optimizer.warmup_steps=2"]
    train(configured(settings, "steps=4"), progress_bar=False)
    train(configured(settings, "steps=9"), resume=True, progress_bar=False)
    train(configured(settings, "steps=9", f"output_dir={tmp_path / 'whole'}"), progress_bar=False)
    run, whole = ([record["learning_rate"] for record in lines(tmp_path / name)] for name in ("run", "whole"))
    assert run[4:] == whole[4:]
    assert run[3] < whole[3]


def test_fewer_steps_than_are_done_are_refused(tiny_settings, tmp_path):
    config = configured(tiny_settings)
    train(config, progress_bar=False)
    before = (tmp_path / "run" / RUN_CONFIG_NAME).read_bytes()
    with pytest.raises(ConfigError, match="steps=5, of which 6 are done already"):
        train(configured(tiny_settings, "steps=5"), resume=True, progress_bar=False)
    assert (tmp_path / "run" / RUN_CONFIG_NAME).read_bytes() == before
    for step in (5, 6):
        shutil.rmtree(tmp_path / f"run/checkpoints/step_{step:08d}", ignore_errors=True)
    assert train(configured(tiny_settings, "steps=5"), resume=True, progress_bar=False).steps == 5


def test_what_changes_numbers_is_refused_with_a_way_on(tiny_settings, tmp_path):
    train(configured(tiny_settings), progress_bar=False)
    with pytest.raises(ConfigError, match=r"learning_rate: was .*, is 1; set them .*init=.*run and another out"):
        train(configured(tiny_settings, "steps=9", "optimizer.learning_rate=1"), resume=True, progress_bar=False)


def test_settings_that_a_run_was_written_without_were_at_their_defaults(tmp_path):
    config, path = get_recipe("simvtp_tiny"), tmp_path / "c.json"
    save_config(config, path)
    saved = json.loads(path.read_text())
    del saved["micro_batch"], saved["parallel"], saved["optimizer"]["layer_decay"], saved["data"]["crop_scale"]
    path.write_text(json.dumps(saved))
    assert differing_settings(config, path) == {}
    changed = apply_overrides(
        config, ["micro_batch=2", "parallel.strategy=ddp", "optimizer.layer_decay=0.5", "data.crop_scale=0.3,0.4"]
    )
    names = {"micro_batch", "parallel.strategy", "optimizer.layer_decay", "data.crop_scale"}
    assert set(differing_settings(changed, path)) == names


def as_before(path: Path, accumulate: int) -> None:
    """Rewrite a run's settings as a version did whose `batch_size` was of a micro-batch."""
    saved = json.loads(path.read_text())
    assert saved["batch_size"] == accumulate * saved["micro_batch"]
    saved |= {"batch_size": saved["micro_batch"], "accumulate": accumulate}
    for name in ("micro_batch", "contrast_scope", "matching_scope", "recompute", "keep_best", "parallel"):
        del saved[name]
    path.write_text(json.dumps(saved))


def test_a_run_of_a_version_that_accumulated_goes_on(tiny_settings, tmp_path):
    """Bit for bit: its steps are of micro-batches whose clips are compared with each other alone."""
    more = [*tiny_settings, "batch_size=8", "micro_batch=4", "steps=4", "checkpoint_every=2", "keep_checkpoints=9"]
    narrow = [*more, "contrast_scope=micro_batch"]
    train(configured(narrow), progress_bar=False)
    whole = shutil.copytree(tmp_path / "run", tmp_path / "whole")
    for folder in ("model", "checkpoints/step_00000004"):
        shutil.rmtree(tmp_path / "run" / folder)
    as_before(tmp_path / "run" / RUN_CONFIG_NAME, 2)
    with pytest.raises(ConfigError, match=r"cannot resume .*: contrast_scope: was micro_batch, is none; set them back"):
        train(configured(more), resume=True, progress_bar=False)
    with pytest.raises(ConfigError, match=r"cannot resume .*: micro_batch: was 4, is 2; set them back"):
        train(configured([*narrow, "micro_batch=2"]), resume=True, progress_bar=False)
    train(configured(narrow), resume=True, progress_bar=False)
    for name in ("model/model.safetensors", "metrics.jsonl", RUN_CONFIG_NAME):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    ("recipe", "settings", "differing"),
    [
        ("videomae_pretrain_tiny", [], []),  # nothing is compared
        ("simvtp_demo", ["model.gather_negatives=false"], []),  # compared as before, by the model's own word
        ("simvtp_demo", ["contrast_scope=micro_batch", "matching_scope=micro_batch"], []),
        ("simvtp_demo", ["matching_scope=micro_batch"], ["contrast_scope", "matching_scope"]),
        ("simvtp_demo", ["contrast_scope=micro_batch", "matching_scope=global"], ["matching_scope"]),
    ],
)
def test_what_an_accumulating_run_compared_may_be_said_in_any_way(recipe, settings, differing, tmp_path):
    config = apply_overrides(get_recipe(recipe), ["batch_size=8", "micro_batch=4", *settings])
    save_config(config, tmp_path / "c.json")
    as_before(tmp_path / "c.json", 2)
    assert sorted(differing_settings(config, tmp_path / "c.json")) == differing
