import json
import logging
import sys

import pytest

from fastvtp.ablation import presets
from fastvtp.cli import main as cli
from fastvtp.data.synthetic import SyntheticConfig


def test_as_many_steps_as_fit_the_time(monkeypatch):
    from fastvtp.systems.recipes import get_recipe

    first, other = (get_recipe("simvtp_demo", name) for name in ("fastvtp", "official"))
    seconds = {first.model: [0.5, 0.6, 9.0], other.model: [0.3, 0.2, 0.4]}
    monkeypatch.setattr(presets, "step_seconds", lambda config: seconds[config.model])
    assert presets.steps_in_equal_time(first, other) == 600 * 2


def test_step_seconds_leave_the_warm_up_out(captioned_videos, tiny_settings, tmp_path):
    from fastvtp.systems.recipes import get_recipe
    from fastvtp.training.config import apply_overrides

    config = apply_overrides(get_recipe("simvtp_demo"), tiny_settings)
    seconds = presets.step_seconds(config)
    assert len(seconds) == presets.PROBE_STEPS // 2
    assert all(0 < value < 60 for value in seconds)
    assert not (tmp_path / "run").exists()


def test_demo_compares_presets(capsys, monkeypatch, tiny_settings, tmp_path):
    preset, other = "fastvtp", "official"
    monkeypatch.setattr(
        "fastvtp.data.synthetic.SyntheticConfig",
        lambda seed: SyntheticConfig(num_train=12, num_test=6, num_frames=8, height=64, width=64, seed=seed),
    )
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(presets, "steps_in_equal_time", lambda *_: next(steps))
    settings = [s for s in tiny_settings if not s.startswith(("data.train", "data.test"))]
    command = ["fastvtp", "demo", "--compare-presets", "--quiet", "--preset", preset, *settings]
    monkeypatch.setattr(sys, "argv", command)
    steps = iter([4])  # a second call would find no more: an interrupted comparison keeps its number
    for _ in range(2):
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        assert not stopped.value.code, err
    lines = [line.split() for line in out.splitlines()[-2:]]
    assert [line[:2] for line in lines] == [[preset, "6"], [other, "4"]]
    report = json.loads((tmp_path / "run/report.json").read_text())
    found = report["presets"]
    assert found[preset] == {name: report[name] for name in ("steps", "train_seconds", "retrieval")}
    assert found[other]["steps"] == 4
    assert (
        json.loads((tmp_path / "run/presets" / other / "report.json").read_text())["retrieval"]
        == (found[other]["retrieval"])
    )
    settings = json.loads((tmp_path / "run/presets" / other / "train_config.json").read_text())
    assert settings["model"]["matching_negatives"] == "random"
    assert settings["steps"] == 4
