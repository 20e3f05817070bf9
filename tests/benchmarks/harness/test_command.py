"""The command line of a benchmark: what it writes and prints, what it refuses, its defaults."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks.harness import command
from benchmarks.harness.case import CaseFactory, Options
from tests.benchmarks.harness.made import CASE


def two_cases(options: Options) -> list[CaseFactory]:
    return [lambda: CASE, lambda: replace(CASE, name="two", variants={"usual": lambda: 0.0})]


def test_command_line_writes_table_and_json(tmp_path, capsys):
    path = tmp_path / "rows.json"
    command.main(two_cases, "about", ["--smoke", "--device", "cpu", "--json", str(path)])
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    assert content["environment"]["smoke"] is True
    assert set(content["environment"]["ceilings"]) == {"bytes_per_s", "flops_per_s"}
    assert [row["case"] for row in content["rows"]] == ["one"] * 8 + ["two"]
    assert capsys.readouterr().out.count("missing: not installed") == 1


def test_an_unknown_variant_is_named_after_the_others_have_run(capsys):
    with pytest.raises(SystemExit):
        command.main(two_cases, None, ["--smoke", "--device", "cpu", "--only", "usual", "unusual"])
    output = capsys.readouterr()
    assert output.out.count("usual") == 2
    assert "no variant 'unusual'; there are absent, failing" in output.err


def test_progress_without_tqdm(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    command.main(two_cases, None, ["--smoke", "--device", "cpu", "--only", "usual"])
    assert "case 2 of 2" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "message"), [("toaster", "'toaster' is no device"), ("cuda", "sees no CUDA device")])
def test_a_device_that_is_not_there(name, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        command.main(two_cases, None, ["--smoke", "--device", name])
    assert message in capsys.readouterr().err


def test_one_default_for_each_device():
    seen = []

    def cases(options: Options) -> list[CaseFactory]:
        seen.append(options)
        return []

    command.main(cases, None, ["--device", "cpu", "--smoke", "--dtype", "bfloat16"])
    command.main(cases, None, ["--device", "cpu", "--smoke"])
    assert [options.dtype for options in seen] == [torch.bfloat16, torch.float32]
