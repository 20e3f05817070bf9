"""Plans that are made ahead."""

import threading
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvtp.training import ahead
from fastvtp.training.ahead import with_plans
from fastvtp.training.gradients import Gradients
from fastvtp.training.loop import train
from tests.training.test_many_processes import records_of
from tests.training.tiny_runs import RUNS, prepare


@dataclass(frozen=True)
class Batch:
    number: int
    plan: Any = None


def numbered(count: int, taken: list[int]) -> Any:
    for number in range(count):
        taken.append(number)
        yield Batch(number)


def test_a_batch_is_taken_and_planned_while_the_one_before_it_is_in_use():
    taken, begun = [], threading.Event()

    def plan(batch: Any) -> tuple[int, int]:
        if batch.number == 1:
            begun.set()
        return batch.number, threading.get_ident()

    stream = with_plans(numbered(4, taken), plan, most=4)
    first = next(stream)
    assert taken == [0, 1]
    assert begun.wait(10)  # without anything being asked for
    rest = list(stream)
    assert [batch.plan[0] for batch in (first, *rest)] == [0, 1, 2, 3]
    assert {batch.plan[1] for batch in (first, *rest)} != {threading.get_ident()}


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_batch_is_taken_that_will_not_be_used(most):
    taken = []
    stream = with_plans(numbered(9, taken), lambda batch: batch.number, most=most)
    assert [next(stream).plan for _ in range(most)] == list(range(most))
    assert taken == list(range(most))


def test_what_goes_wrong_is_raised_where_its_batch_would_come():
    def plan(batch: Any) -> int:
        if batch.number == 2:
            raise ValueError("a text has 99 tokens")
        return batch.number

    stream = with_plans(numbered(4, []), plan, most=4)
    assert [next(stream).plan for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="a text has 99 tokens"):
        next(stream)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if is_dataclass(one):
        return all(same(getattr(one, entry.name), getattr(other, entry.name)) for entry in fields(one))
    return one == other


@pytest.mark.parametrize(
    "name", ["simvtp", "alpro-retrieval", "prism-2", pytest.param("videomae", marks=pytest.mark.long)]
)
def test_runs_use_the_plans_of_the_model_and_compute_what_they_do_without(
    name, captioned_videos, tmp_path, monkeypatch
):
    data = prepare(captioned_videos)
    threads, compared = set(), []
    of_step = Gradients.of_step

    def checked(self: Gradients, batches: Any, step: int) -> Any:
        def look() -> Any:
            for batch in batches:
                task, model = self._task, self._parallel.model
                anew = task.plan(model, batch, own_pairs=not self._wanted.pairs)
                compared.append(same(batch.plan, anew))
                yield batch

        return of_step(self, look(), step)

    planned = ahead._planned
    monkeypatch.setattr(Gradients, "of_step", checked)
    monkeypatch.setattr(ahead, "_planned", lambda *args: threads.add(threading.get_ident()) or planned(*args))
    train(RUNS[name].config(data, tmp_path / "ahead", "steps=3"), progress_bar=False)
    assert compared == [True] * 12
    assert threads == {threading.get_ident()}
    monkeypatch.setattr(Gradients, "of_step", of_step)
    monkeypatch.setattr(Gradients, "planned", lambda self, batches, number: batches)
    train(RUNS[name].config(data, tmp_path / "within", "steps=3"), progress_bar=False)
    assert records_of(tmp_path / "ahead") == records_of(tmp_path / "within")
