"""One tile per entry from cases that disagree: who wins, who is refused and why, what is written."""

import json
import time
from functools import partial

import pytest
import torch

from benchmarks.device import tune
from benchmarks.device.tune_table import (
    Candidate,
    Pair,
    Searched,
    Workbench,
    candidates,
    choose,
    entries_used,
    retime,
    snippet,
    table,
    write_table,
)
from benchmarks.harness.case import Case, Cost
from benchmarks.harness.timing import Timing
from fastvtp_kernels import tuning
from fastvtp_kernels.tuning import Tile

GATHER, SCALE = "gather single", "scale single"
CPU = torch.device("cpu")


class FakeTimer:
    """A call returns its seconds; the quantiles are `spread` of them apart."""

    def __init__(self, spread=0.002):
        self._spread = spread

    def time(self, variants, seconds):
        found = {name: function() for name, function in variants.items()}
        half = self._spread / 2
        return {name: Timing(value, value * (1 - half), value * (1 + half), value, 5) for name, value in found.items()}


def case(name, seconds, wrong=(), failing=()):
    """Its variant's "result" is its time, by BLOCK_M of the tile of gather; `wrong`: rows that break the law."""

    def variant():
        rows = tuning.tile("gather", torch.float32, CPU).blocks["BLOCK_M"]
        if rows in failing:
            raise RuntimeError("out of resource: shared memory\nand more")
        return seconds[rows]

    broken = {seconds[rows] for rows in wrong}
    return Case(
        *("gather_tubelets", name, "forward", {}, torch.float32, CPU, Cost(1, 1)),
        variants={"triton": variant, "reference": lambda: 0},
        baseline="reference",
        error=lambda time: float(time in broken),
        tolerance=1e-4,
    )


def rows(count):
    return Tile({"BLOCK_M": count, "BLOCK_P": 512}, 4, 2)


def searched(label, winner, seconds, wrong=(), spread=0.002):
    winners = {GATHER: rows(winner)} if winner else {}
    return Searched(label, {GATHER}, winners, lambda: Workbench(case(label, seconds, wrong), FakeTimer(spread), 0.0))


def must_not_run():
    raise AssertionError("a case was set up that had nothing to try")


def joined(*cases):
    found = candidates(cases)
    for here in cases:
        retime(found, here, time.monotonic() + 60)
    return found, {one.entry: one.tile.blocks["BLOCK_M"] for one in choose(found)}


def refusals(found):
    return {one.tile.blocks["BLOCK_M"]: one.refusal for one in found}


# Rows of the tile -> seconds; 8 is the tile that stands.
NEAR, FAR = {8: 4.0, 16: 3.0, 32: 2.0}, {8: 4.0, 16: 2.0, 32: 3.9}


def test_cases_that_disagree_get_the_best_geometric_mean():
    found, tiles = joined(searched("a", 32, NEAR), searched("b", 16, FAR))
    assert tiles == {GATHER: 16}
    assert {one.tile.blocks["BLOCK_M"]: one.speedup for one in found} == pytest.approx(
        {16: (4 / 3 * 4 / 2) ** 0.5, 32: (4 / 2 * 4 / 3.9) ** 0.5}
    )
    assert refusals(found) == {16: "", 32: ""}


def test_a_tile_that_loses_in_one_case_is_refused_however_much_it_gains():
    found, tiles = joined(searched("a", 32, {8: 4.0, 16: 3.9, 32: 0.4}), searched("b", 16, {8: 4, 16: 3, 32: 4.1}))
    assert tiles == {GATHER: 16}
    assert refusals(found)[32] == "loses in b: 0.976 times as fast"


def test_a_loss_within_the_spread_is_none():
    _, tiles = joined(searched("a", 32, {8: 4.0, 32: 2.0}), searched("b", None, {8: 4.0, 32: 4.1}, spread=0.05))
    assert tiles == {GATHER: 32}


def test_a_tile_must_be_right_in_every_case():
    found, tiles = joined(searched("a", 32, NEAR), searched("b", None, FAR, wrong=[32]))
    assert tiles == {}
    assert refusals(found)[32].startswith("wrong: error 1, ")
    assert refusals(found)[32].endswith(" allowed, in b")


def test_a_tile_must_win_again():
    found, tiles = joined(searched("a", 32, {8: 4.0, 32: 3.95}))
    assert tiles == {}
    assert refusals(found)[32] == "gains beyond the spread in no case, timed again"


def test_what_is_not_timed_again_is_named_and_not_chosen():
    found, tiles = joined(searched("a", 32, NEAR))
    assert tiles == {GATHER: 32}
    retime(found, Searched("late", {GATHER}, {}, must_not_run), time.monotonic() - 1)
    assert refusals(found)[32] == "not re-timed in late"
    assert choose(found) == []


def test_a_tile_that_is_out_and_a_case_of_other_entries_cost_no_time():
    found, _ = joined(searched("a", 32, {8: 4.0, 32: 5.0}), Searched("b", {GATHER}, {}, must_not_run))
    assert refusals(found)[32].startswith("loses in a")
    found, _ = joined(searched("a", 32, NEAR), Searched("b", {SCALE}, {}, must_not_run))
    assert refusals(found) == {32: ""}


def test_each_entry_gets_its_turn_and_the_most_frequent_winner_comes_first():
    scale = Tile({"BLOCK": 1024})
    winners = [{GATHER: rows(16)}, {GATHER: rows(32)}, {GATHER: rows(32), SCALE: scale}]
    found = candidates([Searched("", set(), each, must_not_run) for each in winners])
    assert [(one.entry, one.tile) for one in found] == [(GATHER, rows(32)), (SCALE, scale), (GATHER, rows(16))]


def test_entries_are_those_that_a_call_asks_for():
    def call():
        tuning.tile("embed", torch.bfloat16, CPU)
        tuning.tile("scale", torch.float32, CPU)

    assert set(entries_used(call)) == {"embed half", SCALE}


def test_table_says_what_was_found_where(tmp_path):
    def timed(now, then):
        return Pair(Timing(now, now, now, now, 5), Timing(then, then, then, then, 5))

    chosen = Candidate(GATHER, rows(32), {"a": timed(4.0, 2.0), "b": timed(4.0, 8 / 3)})
    out = Candidate(GATHER, rows(16), {"a": timed(1.0, 3.0)}, "loses in a")
    joint = table([chosen], "sm_90")
    expected = {
        "blocks": {"BLOCK_M": 32, "BLOCK_P": 512},
        "num_warps": 4,
        "num_stages": 2,
        "speedup": 1.7321,
        "speedups": {"a": 2.0, "b": 1.5},
    }
    assert joint == {"sm_90": {GATHER: expected}}
    write_table(tmp_path / "table.json", "tubelets", joint, [chosen, out], {"device": "one", "commit": "abc"})
    assert json.loads((tmp_path / "table.json").read_text()) == {
        "schema": 1,
        "environment": {"device": "one", "commit": "abc"},
        "op": "tubelets",
        "tiles": joint,
        "refused": [{"entry": GATHER, "tile": str(rows(16)), "why": "loses in a", "speedups": {"a": 0.3333}}],
    }
    assert snippet({GATHER: rows(32)}, "sm_90") == (
        '"gather": {"single": {"sm_90": Tile({\'BLOCK_M\': 32, \'BLOCK_P\': 512}, num_warps=4, num_stages=2)}}'
    )


def test_command_joins_what_the_searches_of_its_cases_found(tmp_path, capsys, monkeypatch):
    """Alone, one case would claim 32 rows and the other 16."""
    monkeypatch.setattr(tune, "WARPS", (4,))
    monkeypatch.setattr(tune, "STAGES", (2,))
    monkeypatch.setattr(tune, "LARGEST_BLOCK", 32)
    monkeypatch.setattr(tune, "timer_for", lambda device: FakeTimer())
    times = {"near": {4: 9.0, 64: 9.0, **NEAR}, "far": {4: 9.0, 64: 9.0, **FAR}}
    factories = [partial(case, name, seconds) for name, seconds in times.items()]
    monkeypatch.setattr(tune, "chosen", lambda module, options, name: factories)
    path = tmp_path / "table.json"
    tune.main(["tubelets", "--smoke", "--device", "cpu", "--table", str(path)])
    entry = json.loads(path.read_text())["tiles"]["cpu"][GATHER]
    assert entry["blocks"]["BLOCK_M"] == 16
    assert entry["speedups"] == {
        "gather_tubelets, near, forward": 1.3333,
        "gather_tubelets, far, forward": 2.0,
    }
    printed = capsys.readouterr().out
    assert printed.count('"gather": {"single":') == 1
    assert "'BLOCK_M': 16" in printed
