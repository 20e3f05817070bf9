"""The command that measures everything: parts, slices, failures, what is withheld, the summary."""

import json
import sys
import time

import pytest

from benchmarks import gpu
from benchmarks.device_tests import FAMILIES, TESTS, family_of
from benchmarks.gpu import Outcome, Part, distrusted, run_part, run_parts, summary, withhold
from benchmarks.record import Row, write_json, write_json_rows

CEILINGS = {"bytes_per_s": 1e12, "flops_per_s": 1e15}
FAKE = """
import argparse, pathlib, subprocess, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--json", type=pathlib.Path)
parser.add_argument("--smoke", action="store_true")
parser.parse_args().json.write_text('{"schema": 1, "environment": {}, "rows": []}')
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Modules of one line each in place of the benchmarks."""
    (tmp_path / "benchmarks").mkdir()
    endings = {
        "good": "print('fine')",
        "broken": "sys.exit('no such device')",
        "hanging": "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)",
        "stubborn": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
    }
    for name, ending in endings.items():
        (tmp_path / "benchmarks" / f"{name}.py").write_text(FAKE + ending)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "GRACE_S", 0.3)
    return tmp_path / "out"


def test_a_part_that_fails_or_hangs_leaves_the_others_intact(parts):
    names = ("good", "broken", "hanging", "stubborn")
    started = time.monotonic()
    # The first two end at once and leave their time to the others.
    outcomes = run_parts([Part(name, 1) for name in names], parts, budget=12, smoke=True)
    assert time.monotonic() - started < 20
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "out of time", "out of time"]
    assert outcomes[1].note == "no such device"
    for name in names:
        assert json.loads((parts / f"{name}.json").read_text())["rows"] == []
    assert [row["part"] for row in json.loads((parts / "parts.json").read_text())["rows"]] == list(names)


def test_an_earlier_run_is_not_taken_for_this_one(parts):
    parts.mkdir()
    (parts / "absent.json").write_text("old")
    (outcome,) = run_parts([Part("absent", 1)], parts, budget=20, smoke=True)
    assert outcome.status == "failed"
    assert "No module named" in outcome.note
    assert not (parts / "absent.json").exists()


def row(op, variant, seconds, case="c"):
    return {
        "op": op, "case": case, "direction": "forward", "variant": variant, "median_s": seconds, "p20_s": seconds,
        "p80_s": seconds, "wall_s": seconds, "fraction_of_floor": 0.5, "speedup": 1.0, "note": "",
    }  # fmt: skip


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": 1, "environment": {}, "rows": rows}))


def counts(family, failed):
    return {"op": family, "passed": 5, "failed": failed, "skipped": 1, "finished": True}


def test_no_speed_without_passing_tests(tmp_path):
    write(tmp_path / "tests.json", [counts("attention", 2), counts("masking", 0)])
    reasons = distrusted(tmp_path)
    assert set(reasons) == {*FAMILIES["attention"], "train_step"}
    path = tmp_path / "attention.json"
    write(path, [row("varlen_attention", "triton", 1.0), row("varlen_attention", "flash_attn", 2.0)])
    withhold(path, reasons)
    ours, peer = json.loads(path.read_text())["rows"]
    assert ours["median_s"] is ours["speedup"] is ours["fraction_of_floor"] is None
    assert ours["note"] == "no speed: 2 of its tests failed in this run"
    assert peer["median_s"] == 2.0

    write(tmp_path / "tests.json", [counts("common", 1)])
    assert set(distrusted(tmp_path)) == {op for ops in FAMILIES.values() for op in ops} | {"train_step"}
    write(tmp_path / "tests.json", [counts("attention", 0)])
    assert distrusted(tmp_path) == {}
    assert distrusted(tmp_path / "nowhere") == {}


def test_every_test_file_belongs_to_a_family():
    families = {path.name: family_of(path.name) for path in TESTS.glob("test_triton_*.py")}
    assert "common" not in families.values()
    assert set(families.values()) == set(FAMILIES)
    assert family_of("test_cuda_kernels.py::test_captures_into_a_graph[attention tiny]") == "attention"
    assert family_of("test_cuda_kernels.py::test_captures_into_a_graph[masked_pixel_loss]") == "pixel_loss"


def test_summary_tells_how_parts_ended_and_what_came_out(tmp_path):
    folder = tmp_path / "device"
    about = {"device": "Fast", "device_type": "cuda", "date": "2026-01-01", "ceilings": CEILINGS}
    rows = [Row("tube_mask", "c", name, {}, "int32", "forward", 1, 1, 1e-3, "usual", median_s=seconds)
            for name, seconds in (("usual", 4e-3), ("better", 3e-3), ("triton", 1e-3))]  # fmt: skip
    write_json(folder / "masking.json", rows, about)
    write_json_rows(folder / "tests.json", [counts("masking", 0)], about)
    text = summary(folder, [Outcome("masking", "done", 3.0), Outcome("lost", "failed", 1.0, "why")])
    assert "lost            failed            1 s  why" in text
    assert "tests of masking         5 passed, 0 failed, 1 skipped" in text
    assert "| `tube_mask` | c, forward, int32 | 1.00 ms | better: 3.00 ms | 3.00×" in text
    assert "| `contrastive_loss` |  | not measured yet |" in text


def test_list_names_the_parts_and_fills_the_budget(capsys):
    assert gpu.main(["--list", "--budget", "300"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for name, *_ in lines] == [part.name for part in gpu.PARTS]
    assert sum(int(seconds) for _, seconds, _ in lines) == pytest.approx(300, abs=len(lines))


def test_needs_a_folder(capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--out DIR is needed" in capsys.readouterr().err


@pytest.mark.parametrize("part", [part for part in gpu.PARTS if part.name in ("ceilings", "tests", "data_loading")])
def test_parts_without_a_test_of_their_own_run_in_smoke(part, tmp_path):
    outcome = run_part(part, tmp_path, limit=180, smoke=True)
    assert outcome.status == "done", (tmp_path / "logs" / f"{part.name}.txt").read_text()
    content = json.loads((tmp_path / f"{part.name}.json").read_text())
    assert content["environment"]["python"] == sys.version.split()[0]
    if part.name == "tests":
        assert [(found["op"], found["failed"]) for found in content["rows"]] == [("token_assembly", 0)]
    if part.name == "data_loading":
        timed, missing = content["rows"]
        assert timed["note"].endswith("clips/s")
        assert missing["note"].startswith("missing: ")
