"""The loader's benchmark: order, limits, and what a failure leaves."""

import os
from types import SimpleNamespace

import pytest
import torch

from benchmarks.harness.record import NOT_REACHED
from benchmarks.steps import data_loading
from benchmarks.steps.data_loading import BATCHES, LEAST_BATCHES, WARM_UP, measured, seconds_per_batch, worker_counts

CPU = torch.device("cpu")


class Loader:
    """Batches that take a second each by the benchmark's clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 0.0
        monkeypatch.setattr(data_loading.time, "perf_counter", lambda: self.now)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self):
        while True:
            self.now += 1
            yield "batch"


@pytest.mark.parametrize(("seconds", "batches"), [(100, BATCHES), (WARM_UP + 7.5, 8), (0, LEAST_BATCHES)])
def test_a_slow_loader_ends_early_but_not_without_a_time(seconds, batches, monkeypatch):
    assert seconds_per_batch(Loader(monkeypatch), CPU, BATCHES, seconds) == [1.0] * batches


def test_workers_are_as_many_as_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5, 6}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert worker_counts(smoke=False) == [3, 1], "a single worker is slow, and last"
    assert worker_counts(smoke=True) == [0]


@pytest.mark.parametrize(
    ("failure", "note"),
    [
        (RuntimeError("disk full\nand more"), "failed: RuntimeError: disk full, before any loader"),
        (ImportError("No module named 'av'"), "missing: No module named 'av'"),
    ],
)
def test_without_clips_every_loader_says_why(failure, note, monkeypatch, tmp_path):
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(data_loading, "_loader_maker", fail)
    *_, rows = measured(tmp_path, CPU, smoke=True)
    assert [(row.variant, row.note) for row in rows] == [("dali", note), ("pyav, 0 workers", note)]


def test_a_loader_that_fails_leaves_the_others(monkeypatch, tmp_path):
    def make(decoder: str, workers: int) -> object:
        return SimpleNamespace() if workers == 3 else Loader(monkeypatch)

    monkeypatch.setattr(data_loading, "_loader_maker", lambda *_: make)
    monkeypatch.setattr(data_loading, "_why_no_dali", lambda device: "missing: no GPU")
    monkeypatch.setattr(data_loading, "cores", lambda: 3)
    found = [[(row.variant, row.note, row.median_s) for row in rows] for rows in measured(tmp_path, CPU, smoke=False)]
    assert found[0] == [
        ("dali", "missing: no GPU", None),
        ("pyav, 3 workers", NOT_REACHED, None),
        ("pyav, 1 workers", NOT_REACHED, None),
    ]
    assert found[-1][1][1].startswith("failed: TypeError")
    assert found[-1][2] == ("pyav, 1 workers", "8 clips/s", 1.0)
