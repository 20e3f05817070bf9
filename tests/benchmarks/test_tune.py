"""The search for better tiles: what it tries, what it refuses, what it proposes."""

import json
import time

import pytest
import torch

from benchmarks import tune
from benchmarks.harness import Case, Cost, Missing
from benchmarks.timing import Timing
from benchmarks.tune import Search, entries_used, neighbours, occupancy, snippet
from fastvtp_kernels import tuning
from fastvtp_kernels.tuning import Tile

ENTRY = "gather single"


class FakeTimer:
    """Times by the rows of the tile that a function asks for."""

    def __init__(self, seconds):
        self._seconds = seconds

    def time(self, variants, seconds):
        found = {name: self._seconds[function()] for name, function in variants.items()}
        return {name: Timing(value, value * 0.999, value * 1.001, value, 5) for name, value in found.items()}


def search_over(seconds, wrong=(), failing=()):
    """A variant whose "result" is BLOCK_M of its tile."""

    def variant():
        rows = tuning.tile("gather", torch.float32, torch.device("cpu")).blocks["BLOCK_M"]
        if rows in failing:
            raise RuntimeError("out of resource: shared memory\nand more")
        return rows

    case = Case(
        "gather_tubelets", "c", "forward", {}, torch.float32, torch.device("cpu"), Cost(1, 1),
        {"triton": variant, "reference": lambda: 0}, "reference", lambda rows: 1.0 if rows in wrong else 1e-9, 1e-4,
    )  # fmt: skip
    return Search(case, FakeTimer(seconds), 0.0, time.monotonic() + 60)


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
    assert {entry: tile.blocks["BLOCK_M"] for entry, tile in better.items()} == {ENTRY: 32}
    assert [trial.outcome for trial in search.trials if "BLOCK_M=64" in trial.tile] == ["no better"]
    assert snippet(better, "sm_90") == (
        '"gather": {"single": {"sm_90": Tile({\'BLOCK_M\': 32, \'BLOCK_P\': 512}, num_warps=4, num_stages=2)}}'
    )


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
    case = search.case
    case.variants["triton"] = Missing("no GPU")
    with pytest.raises(ValueError, match="must both run"):
        Search(case, FakeTimer({}), 0.0, 0.0)


def test_entries_are_those_that_a_call_asks_for():
    def call():
        tuning.tile("embed", torch.bfloat16, torch.device("cpu"))
        tuning.tile("scale", torch.float32, torch.device("cpu"))

    assert set(entries_used(call)) == {"embed half", "scale single"}


def test_neighbours_change_one_thing(monkeypatch):
    monkeypatch.setattr(tune, "WARPS", (2, 4, 8))
    monkeypatch.setattr(tune, "STAGES", (1, 2, 3))
    tile = Tile({"BLOCK_M": 64, "BLOCK_N": 16}, 4, 3)
    found = [(near.blocks["BLOCK_M"], near.blocks["BLOCK_N"], near.num_warps, near.num_stages)
             for near in neighbours(tile)]  # fmt: skip
    assert found == [(32, 16, 4, 3), (128, 16, 4, 3), (64, 32, 4, 3), (64, 16, 2, 3), (64, 16, 8, 3), (64, 16, 4, 2)]


@pytest.mark.parametrize(
    ("resources", "blocks"),
    [((255, 0, 8), 1), ((128, 0, 4), 4), ((32, 0, 4), 16), ((64, 100_000, 4), 2), ((16, 0, 1), 32)],
)
def test_occupancy(resources, blocks):
    assert occupancy(*resources, shared_limit=232_448) == blocks


def test_smoke_run_searches_with_the_interpreter(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tune, "WARPS", (4, 8))
    path = tmp_path / "tuning.json"
    tune.main(["masking", "--smoke", "--device", "cpu", "--budget", "8", "--json", str(path)])
    assert "tiles tried" in capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    assert {row["entry"] for row in rows} <= {"tube_mask single"}


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
