"""The step on several processes: what is made of the measurements, and that every line runs."""

import json
import statistics

import pytest
import torch

from benchmarks.harness.case import Options
from benchmarks.harness.record import NOT_REACHED
from benchmarks.steps import scaling
from benchmarks.steps.scaling import enter, measured, rows_of
from benchmarks.steps.scaling_steps import ALONE, CASES, PLAIN, Work, measure
from fastvtp import processes

CPU = torch.device("cpu")
SMOKE = Options(CPU, torch.float32, smoke=True)


def found(median: float, loss: float = 2.0, **others: float) -> dict:
    """What processes measured of videomae_base; `others` are medians of variants, or their losses behind "loss "."""
    entry = {"loss": loss, "peak_bytes": 7, "state_bytes": 3_000_000_000}
    names = [*CASES["videomae_base"].variants, PLAIN, ALONE]
    times = {name: others.get(name.split(", ")[-1].replace(" ", "_"), median) for name in names}
    return {name: {**entry, "times": [time - 0.1, time, time + 0.1]} for name, time in times.items()}


def test_rows_say_speed_beside_the_plain_loop_the_ideal_and_what_is_not_hidden():
    first: dict[str, float] = {}
    alone = rows_of("videomae_base", 1, 4, SMOKE)
    enter(alone, found(2.0), first, 1e-4)
    assert first == {"fastvtp, ddp": 2.0, "fastvtp, fsdp2": 2.0, PLAIN: 2.0}
    assert alone["fastvtp, ddp"].note == "0% not hidden; state 3.00 GB"
    four = rows_of("videomae_base", 4, 4, SMOKE)
    enter(four, found(0.0, ddp=2.5, fsdp2=4.0, plain_ddp=3.0, alone=2.0), first, 1e-4)
    ddp, fsdp2, plain = (four[name] for name in ("fastvtp, ddp", "fastvtp, fsdp2", PLAIN))
    assert (ddp.median_s, ddp.calls, ddp.peak_bytes) == (2.5, 3, 7)
    assert (ddp.speedup, fsdp2.speedup, plain.speedup) == pytest.approx((1.2, 0.75, 1.0))
    assert ddp.note == "0.80 of the ideal 4-fold; 20% not hidden; state 3.00 GB"
    assert fsdp2.note == "0.50 of the ideal 4-fold; 50% not hidden; state 3.00 GB"
    assert (ddp.case, ddp.shape) == ("videomae_base, 4 processes", {"processes": 4, "clips": 4})


def test_another_loss_than_the_plain_loop_s_gets_no_time():
    rows = rows_of("videomae_base", 1, 4, SMOKE)
    results = found(2.0)
    results["fastvtp, fsdp2"]["loss"] = 2.2
    enter(rows, results, {}, 1e-4)
    row = rows["fastvtp, fsdp2"]
    assert (row.median_s, row.note) == (None, "wrong: error 0.1, at most 0.0001 allowed")
    assert rows["fastvtp, ddp"].median_s == 2.0


def test_a_machine_measures_as_many_as_it_has_and_a_failure_leaves_the_others(monkeypatch):
    started = []

    def start(count, cases, options, clips, seconds, threads):
        started.append((count, threads))
        return ({}, "failed: out of memory") if count == 2 else ({"videomae_base": found(2.0)}, "")

    monkeypatch.setattr(scaling, "start", start)
    monkeypatch.setattr(scaling, "cores", lambda: 16)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    options = Options(torch.device("cuda"), torch.bfloat16)
    steps = [
        [(row.variant, row.shape["processes"], row.note) for row in rows if row.variant == PLAIN]
        for rows in measured((1, 2, 4), ["videomae_base"], options, 32, 1.0)
    ]
    assert started == [(1, 4), (2, 4)]
    assert steps[0] == [
        (PLAIN, 1, "0% not hidden; state 3.00 GB"),
        (PLAIN, 2, NOT_REACHED),
        (PLAIN, 4, NOT_REACHED),
    ]
    assert [note for _, _, note in steps[2][1:]] == ["failed: out of memory", "missing: 2 GPU(s) here"]


@pytest.mark.parametrize("case", CASES)
def test_all_variants_give_the_loss_of_the_plain_loop(case):
    """In one process: FSDP2 then shards over a group of one."""
    with processes.process_group(CPU, alone=True):
        results = measure(case, CPU, Work(clips=2, smoke=True), seconds=0.0)
    plain = results[PLAIN]
    assert set(results) == {*CASES[case].variants, PLAIN, ALONE}
    for name, own in results.items():
        assert own["loss"] == pytest.approx(plain["loss"], rel=1e-5), name
        assert len(own["times"]) == 3
        assert own["state_bytes"] == pytest.approx(plain["state_bytes"], rel=0.01)  # weights and AdamW's two moments
        assert own["peak_bytes"] > 0


def test_there_is_no_speed_on_a_cpu(monkeypatch, tmp_path, capsys):
    given = []
    monkeypatch.setattr(scaling, "start", lambda *arguments: given.append(arguments) or ({}, "failed: not started"))
    path = tmp_path / "scaling.json"
    scaling.main(["--device", "cpu", "--processes", "1", "2", "--json", str(path)])
    assert [(count, options.smoke, seconds) for count, _, options, _, seconds, _ in given] == [
        (1, True, 0),
        (2, True, 0),
    ]
    content = json.loads(path.read_text())
    assert content["environment"]["smoke"] is True
    assert {row["note"] for row in content["rows"]} == {"failed: not started"}
    assert ", smoke" in capsys.readouterr().out


@pytest.mark.long
def test_the_processes_are_started_and_measured():
    rows = list(measured((1, 2), ["videomae_base"], SMOKE, 2, 0.0))[-1]
    assert [row.calls for row in rows] == [3] * len(rows), [row.note for row in rows]
    two = [row for row in rows if row.shape["processes"] == 2]
    assert all("of the ideal 2-fold" in row.note for row in two)
    assert statistics.median(row.error for row in rows if row.error is not None) < 1e-5
