"""The search for better tiles: what it tries, what it refuses, what it proposes."""

import json
import time

import pytest

from benchmarks.device import tune
from benchmarks.device.tune import Search, neighbours, shares
from benchmarks.harness import timing
from benchmarks.harness.case import Missing
from benchmarks.harness.timing import Timing
from fastvtp_kernels.tuning import Tile
from tests.benchmarks.device.test_tune_table import GATHER, FakeTimer, case


def search_over(seconds, wrong=(), failing=()):
    return Search(case("c", seconds, wrong, failing), FakeTimer(), 0.0, time.monotonic() + 60)


def rows_tried(search):
    return {trial.tile: trial.outcome for trial in search.trials if "BLOCK_P=512 warps=4 stages=2" in trial.tile}


@pytest.fixture(autouse=True)
def only_rows_vary(monkeypatch):
    monkeypatch.setattr(tune, "WARPS", (4,))
    monkeypatch.setattr(tune, "STAGES", (2,))
    monkeypatch.setattr(tune, "LARGEST_BLOCK", 128)


def test_walks_on_from_every_improvement_and_stops_at_the_best():
    search = search_over({8: 4.0, 16: 3.0, 32: 2.0, 64: 2.5, 4: 9.0})
    better = search.run()
    assert {entry: tile.blocks["BLOCK_M"] for entry, tile in better.items()} == {GATHER: 32}
    assert [trial.outcome for trial in search.trials if "BLOCK_M=64" in trial.tile] == ["no better"]


def test_a_gain_within_the_spread_is_none():
    assert search_over({8: 4.0, 16: 3.95, 4: 4.0}).run() == {}


def test_wrong_and_failing_tiles_are_results_without_a_time():
    search = search_over({8: 4.0, 16: 1.0, 4: 1.0}, wrong=(16,), failing=(4,))
    assert search.run() == {}
    outcomes = rows_tried(search)
    assert next(text for tile, text in outcomes.items() if "BLOCK_M=16 " in tile).startswith("wrong: error 1")
    assert next(text for tile, text in outcomes.items() if "BLOCK_M=4 " in tile) == (
        "fails: RuntimeError: out of resource: shared memory"
    )
    assert all(trial.seconds is None for trial in search.trials)


def test_the_time_ends_the_search():
    search = search_over({8: 4.0, 16: 3.0, 4: 1.0})
    search._deadline = time.monotonic() - 1
    assert search.run() == {}
    assert search.trials == []


def test_needs_both_variants():
    search = search_over({8: 1.0})
    search.case.variants["triton"] = Missing("no GPU")
    with pytest.raises(ValueError, match="must both run"):
        Search(search.case, FakeTimer(), 0.0, 0.0)


def test_neighbours_change_one_thing(monkeypatch):
    monkeypatch.setattr(tune, "WARPS", (2, 4, 8))
    monkeypatch.setattr(tune, "STAGES", (1, 2, 3))
    tile = Tile({"BLOCK_M": 64, "BLOCK_N": 16}, 4, 3)
    found = [
        (near.blocks["BLOCK_M"], near.blocks["BLOCK_N"], near.num_warps, near.num_stages) for near in neighbours(tile)
    ]
    assert found == [(32, 16, 4, 3), (128, 16, 4, 3), (64, 32, 4, 3), (64, 16, 2, 3), (64, 16, 8, 3), (64, 16, 4, 2)]


def test_unused_time_goes_to_those_that_are_left(monkeypatch):
    clock = iter([0.0, 10.0, 80.0])
    monkeypatch.setattr(tune.time, "monotonic", lambda: next(clock))
    assert list(shares("abc", 90.0)) == [("a", 30.0), ("b", 50.0), ("c", 90.0)]


class EverySecondTimer:
    """Calls the variants, and tells what nobody could measure: the later is twice as fast."""

    def time(self, variants, seconds):
        for function in variants.values():
            function()
        return {name: Timing(value, value, value, value, 5) for name, value in zip(variants, (2.0, 1.0), strict=True)}


@pytest.mark.parametrize("truthful", [True, False], ids=["the clock's times", "each tile better than the last"])
def test_smoke_run_goes_all_the_way_with_the_interpreter(truthful, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tune, "WARPS", (4, 8))
    monkeypatch.setattr(tune, "LARGEST_BLOCK", 32)
    monkeypatch.setattr(timing, "MIN_ROUNDS", 2)
    if not truthful:
        monkeypatch.setattr(tune, "timer_for", lambda device: EverySecondTimer())
    trials, table = tmp_path / "trials.json", tmp_path / "new" / "table.json"
    tune.main(["masking", "--smoke", "--device", "cpu", "--budget", "60", "--json", str(trials), "--table", str(table)])
    printed, written = capsys.readouterr().out, json.loads(table.read_text())
    assert "tube_mask, smoke, forward: " in printed
    assert {row["entry"] for row in json.loads(trials.read_text())["rows"]} == {"tube_mask single"}
    assert written["op"] == "masking"
    assert written["environment"]["smoke"] is True
    # Something was timed again: it is in the table, or among those refused.
    assert bool(written["tiles"]["cpu"]) or bool(written["refused"])
    if not truthful:
        assert written["tiles"]["cpu"]["tube_mask single"]["speedups"] == {"tube_mask, smoke, forward": 2.0}
        assert '"tube_mask": {"single": {"cpu": Tile(' in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["masking", "--device", "cpu"], "tiles are timed on a GPU"),
        (["masking", "--smoke", "--case", "nothing"], "no case of masking contains 'nothing'"),
        (["masking", "--offline", "sm_90", "--kernel", "none"], "'none' is no line of the table"),
    ],
)
def test_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit):
        tune.main(arguments)
    assert message in capsys.readouterr().err
