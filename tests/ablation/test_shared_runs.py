"""An ablation whose runs two processes (gloo, CPU) share, against one of one process."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from fastvtp import processes
from fastvtp.ablation import runner
from fastvtp.ablation.queue import Queue
from fastvtp.ablation.studies import Run
from fastvtp.systems.recipes import find_study
from tests.ablation.test_runner import SCALE, settings
from tests.ranks import run_ranks

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
CLOCKS = {"date", "train_seconds"}


def ablate(_: int, folder: str, *, study: Any = None) -> tuple[list[str], str]:
    """The runs that this process trains, and what the report says of the claims."""
    names, train = [], runner.train

    def watched(config: Any, **options: Any) -> Any:
        assert not processes.has_group()
        names.append(Path(config.output_dir).name)
        return train(config, **options)

    runner.train = watched
    try:
        known = study or find_study("simvtp", [])
        report = runner.ablate(known, settings(Path(folder)), SCALE, study="data", progress_bar=False)
    finally:
        runner.train = train
    return names, str(report.claims())


def state_of(folder: Path) -> dict[str, Any]:
    """ablation.json without what the clock says."""
    state = json.loads((folder / "ablation.json").read_text())
    runs = state["runs"].items()
    del state["about"]["date"]
    return state | {"runs": {name: {k: v for k, v in run.items() if k not in CLOCKS} for name, run in runs}}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, list[str], str]:
    folder = tmp_path_factory.mktemp("alone") / "ablation"
    return folder, *ablate(0, str(folder))


def test_runs_shared_by_two_processes_have_the_scores_of_one(alone, tmp_path):
    folder, names, claims = alone
    ranks = run_ranks(ablate, tmp_path, str(tmp_path / "ablation"), processes=2)
    assert sorted(name for trained, _ in ranks for name in trained) == sorted(names)
    assert [said for _, said in ranks] == [claims, claims]
    expected = state_of(folder)
    assert state_of(tmp_path / "ablation") == expected
    assert list(state_of(tmp_path / "ablation")["runs"]) == list(expected["runs"])
    files = {path.name for path in folder.iterdir()}
    assert {path.name for path in (tmp_path / "ablation").iterdir()} == files
    assert "queue" not in files
    assert not [*(tmp_path / "ablation").glob("runs/*/model")]


def failing(rank: int, folder: str) -> tuple[str, list[str]]:
    """What is raised where the second process cannot score its first run, and what it logs."""
    known, lines = find_study("simvtp", []), []

    def score(*arguments: Any) -> dict[str, float]:
        if rank == 1:
            raise ValueError("no such score")
        return known.score(*arguments)

    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger(runner.__name__).addHandler(handler)
    try:
        ablate(rank, folder, study=replace(known, score=score))
    except Exception as error:
        return f"{type(error).__name__}: {error}", lines
    return "nothing", lines


def test_a_process_that_fails_ends_all_and_what_is_done_is_kept(alone, tmp_path):
    """The other records the run that it is at, and takes no more than it has begun."""
    folder = tmp_path / "ablation"
    (said, quiet), (raised, lines) = run_ranks(failing, tmp_path, str(folder), processes=2)
    assert (said, quiet) == ("FailedElsewhereError: process 1: no such score", [])
    assert raised == "ValueError: no such score"
    assert len(lines) == 1
    assert lines[0].endswith(": no such score; the other processes end the runs that they are at")
    done = set(Queue(folder / "queue").results())
    assert len(done) < len(alone[1])
    names, _ = ablate(0, str(folder))
    assert len(names) == len(alone[1]) - len(done)
    assert state_of(folder)["runs"] == state_of(alone[0])["runs"]


def test_each_run_is_taken_once(tmp_path):
    runs = [Run("a"), Run("b, seed +1"), Run("25 % of c")]
    first, second = (Queue(tmp_path / "queue").take(runs) for _ in range(2))
    assert [next(first).name, next(second).name, next(first).name] == ["a", "b, seed +1", "25 % of c"]
    assert next(second, None) is None
    queue = Queue(tmp_path / "queue")
    queue.put(runs[2], {"scores": {"x": 1.0}})
    assert queue.results() == {"25 % of c": {"scores": {"x": 1.0}}}
    queue.clear()
    assert queue.results() == {}
    assert [run.name for run in queue.take(runs)] == [run.name for run in runs]
