"""`fastvtp plan`."""

import json
from dataclasses import fields

from typer.testing import CliRunner

from fastvtp.cli import main as cli
from fastvtp.cli.planning import DataOptions, MachineOptions
from fastvtp.training.plan import Assumptions


def test_the_options_are_the_assumptions():
    options = {entry.name: entry.default for bundle in (MachineOptions, DataOptions) for entry in fields(bundle)}
    assert options == {**{entry.name: entry.default for entry in fields(Assumptions)}, "gpus": None}


def test_the_tables_have_what_the_file_has(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    path = tmp_path / "plan.json"
    arguments = ["plan", "simvtp_base", "batch_size=4096", "micro_batch=4", "--gpus", "1024", "--clips", "618000000"]
    result = CliRunner().invoke(cli.app, [*arguments, "--step-seconds", "0.6", "--json", str(path)])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert text.startswith("All figures are models, of the configuration and of the assumptions below. Nothing is mea")
    found = json.loads(path.read_text())
    assert (found["recipe"], found["run"]["processes"]) == ("simvtp_base", 1024)
    for shown in (
        "parameters │ 141,914,301, of which 141,914,301 are trained",
        f"{found['strategies']['hsdp']['memory']['total'] / 2**30:.2f} GiB",
        "memory of a process ┃ ddp ┃ fsdp2 ┃ hsdp ┃",
        f"{found['reading']['clips_a_second']:,.0f} a second",
        "stored │ 618.00 TB",
        "between two failures │ 5.7 hours",
    ):
        assert shown in text
    for assumption in found["assumptions"].values():
        assert f"{assumption['what']} │" in text
        assert f"│ {assumption['option']} │" in text


def test_what_needs_a_time_asks_for_one():
    result = CliRunner().invoke(cli.app, ["plan", "videoprism_stage1", "micro_batch=8", "--gpus", "16"])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.replace("│", " ").split())
    assert "steps take give --step-seconds or --clips-per-second-per-gpu" in text
    assert "frames decoded in a step give --decoded-frames" in text
    assert "strategy ddp: adafactor needs whole matrices" in text


def test_the_model_that_does_not_tell_is_said_not_to():
    result = CliRunner().invoke(cli.app, ["plan", "videoprism_captioning_tiny", "--gpus", "1"])
    assert result.exit_code == 0, result.output
    assert "not told" in result.output


def test_the_default_is_a_number_of_gpus_that_can_share_a_step():
    for settings, gpus in (([], 1), (["batch_size=60", "micro_batch=5"], 6), (["batch_size=64", "micro_batch=2"], 8)):
        result = CliRunner().invoke(cli.app, ["plan", "simvtp_tiny", *settings])
        assert result.exit_code == 0, result.output
        assert f"{gpus}, on 1 machine" in result.output
