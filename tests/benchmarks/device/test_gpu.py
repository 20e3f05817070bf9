"""The command that measures everything: parts, slices, failures, what is withheld, the summary."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from benchmarks.device import gpu
from benchmarks.device.device_tests import FAMILIES, SMOKE_FAMILIES, SMOKE_TESTS
from benchmarks.device.gpu import Part, run, run_part
from benchmarks.device.gpu_results import STEPS, Outcome, distrusted, pack, summary, withhold, write_outcomes
from benchmarks.harness.record import Row, write_json, write_json_rows

WITHOUT_A_TEST = ("ceilings", "tests", "data_loading", "decoding")
CEILINGS = {"bytes_per_s": 1e12, "flops_per_s": 1e15}
FAKE = """
import argparse, pathlib, subprocess, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--json", type=pathlib.Path)
parser.add_argument("--smoke", action="store_true")
parser.add_argument("--seconds")
parser.parse_args().json.write_text('{"schema": 1, "environment": {}, "rows": []}')
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Modules of one line each in place of the benchmarks."""
    (tmp_path / "benchmarks" / "ops").mkdir(parents=True)
    endings = {
        "good": "print('fine')",
        "broken": "sys.exit('no such device')",
        "hanging": "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)",
        "stubborn": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
    }
    for name, ending in endings.items():
        (tmp_path / "benchmarks" / "ops" / f"{name}.py").write_text(FAKE + ending)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "GRACE_S", 0.3)
    return tmp_path / "out"


def test_a_part_that_fails_or_hangs_leaves_the_others_intact(parts):
    names = ("good", "broken", "hanging", "stubborn")
    started = time.monotonic()
    # The first two end at once and leave their time to the others.
    outcomes = run([Part(name, 1) for name in names], parts, budget=12, smoke=True)
    assert time.monotonic() - started < 20
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "out of time", "out of time"]
    assert outcomes[1].note == "no such device"
    for name in names:
        assert json.loads((parts / f"{name}.json").read_text())["rows"] == []
    assert [row["part"] for row in json.loads((parts / "parts.json").read_text())["rows"]] == list(names)
    with tarfile.open(parts.with_suffix(".tar.gz")) as archive:
        packed = set(archive.getnames())
    assert {f"out/{name}.json" for name in names} | {"out/summary.txt", "out/logs/broken.txt"} <= packed


def test_an_earlier_run_is_not_taken_for_this_one(parts):
    parts.mkdir()
    (parts / "absent.json").write_text("old")
    (outcome,) = run([Part("absent", 1)], parts, budget=20, smoke=True)
    assert outcome.status == "failed"
    assert "No module named" in outcome.note
    assert json.loads((parts / "absent.json").read_text())["rows"] == []


def row(op, variant, seconds, case="c"):
    return {
        "op": op,
        "case": case,
        "direction": "forward",
        "variant": variant,
        "median_s": seconds,
        "p20_s": seconds,
        "p80_s": seconds,
        "wall_s": seconds,
        "fraction_of_floor": 0.5,
        "speedup": 1.0,
        "note": "",
    }


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": 1, "environment": {}, "rows": rows}))


def counts(family, failed=0, passed=5, finished=True):
    return {"op": family, "passed": passed, "failed": failed, "skipped": 1, "left_out": 2, "finished": finished}


ALL = [counts(family) for family in FAMILIES]


def with_row(*rows):
    """All families fine but these."""
    replaced = {row["op"]: row for row in rows}
    return [replaced.get(row["op"], row) for row in ALL]


def test_no_speed_without_passing_tests(tmp_path):
    write(tmp_path / "tests.json", with_row(counts("attention", failed=2)))
    reasons = distrusted(tmp_path)
    assert set(reasons) == {*FAMILIES["attention"], *STEPS}
    path = tmp_path / "attention.json"
    write(path, [row("varlen_attention", "triton", 1.0), row("varlen_attention", "flash_attn", 2.0)])
    before = json.loads(path.read_text())
    withhold(path, reasons)
    ours, peer = json.loads(path.read_text())["rows"]
    assert ours["median_s"] is ours["speedup"] is ours["fraction_of_floor"] is None
    assert ours["note"] == "no speed: 2 of its tests failed in this run"
    assert peer["median_s"] == 2.0
    assert json.loads((tmp_path / "withheld" / "attention.json").read_text()) == before
    write(tmp_path / "tests.json", ALL)
    assert distrusted(tmp_path) == {}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (counts("masking", passed=0), "its tests did not run"),
        (counts("masking", finished=False), "its tests did not run to their end"),
        (counts("masking", failed=1, passed=0, finished=False), "1 of its tests failed in this run"),
    ],
)
def test_no_speed_where_tests_did_not_run(bad, why, tmp_path):
    write(tmp_path / "tests.json", with_row(bad))
    ops = dict.fromkeys(FAMILIES["masking"], f"no speed: {why}")
    assert distrusted(tmp_path) == {**ops, **dict.fromkeys(STEPS, f"no speed: masking: {why}")}


def test_no_speed_at_all_without_counts(tmp_path):
    everything = {op for ops in FAMILIES.values() for op in ops} | {*STEPS}
    assert set(distrusted(tmp_path)) == everything
    (tmp_path / "tests.json").write_text("{")
    assert set(distrusted(tmp_path)) == everything


@pytest.mark.parametrize("names", [("good",), ("tests", "good")])
def test_counts_of_an_earlier_run_do_not_count(names, parts):
    """Without the tests nothing is withheld; with them, what they say now: here nothing, for they crash."""
    benchmarks = parts.parent / "benchmarks"
    (benchmarks / "device").mkdir()
    (benchmarks / "device" / "device_tests.py").write_text("raise SystemExit(3)")
    (benchmarks / "ops" / "good.py").write_text(
        FAKE.replace('"rows": []', f'"rows": [{json.dumps(row("tube_mask", "triton", 1.0))}]')
    )
    write(parts / "tests.json", ALL if "tests" in names else [counts("masking", failed=1)])
    run([Part(name, 1) for name in names], parts, budget=20, smoke=True)
    (found,) = json.loads((parts / "good.json").read_text())["rows"]
    assert found["median_s"] == (None if "tests" in names else 1.0)
    assert ("no part of this run" in (parts / "summary.txt").read_text()) == ("tests" not in names)


def test_the_list_of_parts_grows_and_renews(tmp_path):
    path = tmp_path / "parts.json"
    write_outcomes(path, [Outcome("b", "done", 1.0), Outcome("new", "done", 1.0)], ["a", "b"], {})
    write_outcomes(path, [Outcome("a", "failed", 2.0), Outcome("b", "failed", 3.0)], ["a", "b"], {"commit": "c"})
    content = json.loads(path.read_text())
    assert [(row["part"], row["status"]) for row in content["rows"]] == [
        ("a", "failed"),
        ("b", "failed"),
        ("new", "done"),
    ]
    assert content["environment"] == {"commit": "c"}


def test_an_archive_leaves_unfinished_files_out(tmp_path):
    folder = tmp_path / "device"
    folder.mkdir()
    (folder / "a.json").touch()
    (folder / ".b.json.1.tmp").touch()
    with tarfile.open(pack(folder)) as archive:
        assert archive.getnames() == ["device", "device/a.json"]


def test_an_interrupted_run_leaves_an_archive(tmp_path):
    """Told to end while its second part runs."""
    command = [sys.executable, "-m", "benchmarks.device.gpu", "--out", str(tmp_path), "--smoke", "--only", "ceilings"]
    search_path = os.pathsep.join([str(gpu.ROOT), str(gpu.ROOT / "kernels")])
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": search_path}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("ceilings: up to")
    process.send_signal(signal.SIGTERM)
    assert "interrupted; what was measured is in " in process.communicate()[1]
    assert process.returncode == 130
    assert len(list(tmp_path.glob("*.tar.gz"))) == 1


def test_smoke_that_does_not_end_in_time_is_a_failure(parts, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PARTS", (Part("hanging", 1),))
    assert gpu.main(["--out", str(parts), "--smoke", "--budget", "1"]) == 1
    assert "out of time" in capsys.readouterr().out
    assert gpu.main(["--out", str(parts), "--budget", "1"]) == 0


def test_what_a_part_is_told(parts):
    """Sizes are for a real run, the selection for either; a smoke run sees no GPU."""
    said = "import os; print(sys.argv[3:], os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ.get('TRITON_INTERPRET'))"
    (parts.parent / "benchmarks" / "ops" / "fine.py").write_text(f"import sys\n{said}")
    part = Part("fine_compiled", 1, ("--lengths", "8"), ("--with", "compiled"), ("--lengths", "4"))
    told = []
    for smoke in (True, False):
        run_part(part, parts, limit=20, smoke=smoke)
        told.append((parts / "logs" / "fine_compiled.txt").read_text().strip())
    assert told[0] == "['--smoke', '--lengths', '4', '--with', 'compiled']  1"
    assert told[1].startswith("['--lengths', '8', '--with', 'compiled'] ")


def test_summary_tells_how_parts_ended_and_what_came_out(tmp_path):
    folder = tmp_path / "device"
    about = {"device": "Fast", "device_type": "cuda", "date": "2026-01-01", "ceilings": CEILINGS}
    rows = [
        Row("tube_mask", "c", name, {}, "int32", "forward", 1, 1, 1e-3, "usual", median_s=seconds)
        for name, seconds in (("usual", 4e-3), ("better", 3e-3), ("triton", 1e-3))
    ]
    write_json(folder / "masking.json", rows, about | {"cases": 3, "cases_done": 1})
    write_json_rows(folder / "tests.json", [counts("masking", 0)], about)
    outcomes = [Outcome("masking", "done", 3.0), Outcome("tests", "done", 1.0), Outcome("lost", "failed", 1.0, "why")]
    text = summary(folder, outcomes)
    masking, _, lost, *_ = text.splitlines()
    assert masking.split() == ["masking", "done", "3", "s", "1", "of", "3", "cases"]
    assert lost.split() == ["lost", "failed", "1", "s", "why"]
    assert "tests of masking         5 passed, 0 failed, 1 skipped, 2 left out" in text
    assert "| `tube_mask` | c, forward, int32 | 1.00 ms | better: 3.00 ms | 3.00×" in text
    assert "| `contrastive_loss` |  | not measured yet |" in text
    (folder / "broken.json").write_text("{")
    assert "no table: " in summary(folder, outcomes)


def test_list_names_the_parts_and_fills_the_budget(capsys):
    assert gpu.main(["--list", "--budget", "300"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for name, *_ in lines] == [part.name for part in gpu.PARTS]
    assert sum(int(seconds) for _, seconds, _ in lines) == pytest.approx(300, abs=len(lines))


def test_needs_a_folder(capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--out DIR is needed" in capsys.readouterr().err


@pytest.mark.parametrize("part", [part for part in gpu.PARTS if part.name in WITHOUT_A_TEST])
def test_parts_without_a_test_of_their_own_run_in_smoke(part, tmp_path):
    outcome = run_part(part, tmp_path, limit=180, smoke=True)
    assert outcome.status == "done", (tmp_path / "logs" / f"{part.name}.txt").read_text()
    content = json.loads((tmp_path / f"{part.name}.json").read_text())
    assert content["environment"]["python"] == sys.version.split()[0]
    if part.name == "tests":
        assert {(found["op"], found["passed"], found["failed"], found["finished"]) for found in content["rows"]} == {
            (family, SMOKE_TESTS, 0, True) for family in SMOKE_FAMILIES
        }
    if part.name == "data_loading":
        missing, timed = content["rows"]
        assert timed["note"].endswith("clips/s")
        assert missing["note"].startswith("missing: ")
    if part.name == "decoding":
        failed = [found for found in content["rows"] if found["note"].startswith("failed")]
        assert failed == []
        colours = [found for found in content["rows"] if found["variant"] == "loader"]
        assert len(colours) == 7
        assert max(found["error"] for found in colours) <= 4
        assert content["rows"][-1]["note"].endswith("waiting for data")
