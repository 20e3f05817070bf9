"""Compiled runs: the losses of eager ones, as whole graphs, and compiled in their first steps alone."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastvtp.training.config import apply_overrides
from fastvtp.training.gradients import Gradients
from fastvtp.training.loop import train
from tests.training.test_many_processes import records_of
from tests.training.tiny_runs import RUNS, prepare

_DRAWN = ("text_dropout", "drop_path", "dropout", "attention_dropout", "head_dropout", "token_drop")
# pictures come fourth, and are compiled for when they come
_WARM = 8


@pytest.fixture(scope="module")
def data(captioned_videos) -> Path:
    return prepare(captioned_videos)


def run(name: str, data: Path, output: Path, *settings: str) -> tuple[list[float], list[int]]:
    """The loss of every step, and how many graphs there were after it. Nothing is drawn in a forward pass: compiled
    code draws other numbers."""
    # AdamW divides by what it adds epsilon to: where gradients are rounding, a small one makes steps of their signs
    config = RUNS[name].config(data, output, "log_every=1", "checkpoint_every=1000", "optimizer.eps=1e-4", *settings)
    drawn = [entry.name for entry in dataclasses.fields(config.model) if entry.name in _DRAWN]
    config = apply_overrides(config, [f"model.{field}=0" for field in drawn])
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    of_step = Gradients.of_step

    def counted(self: Gradients, *args: Any) -> Any:
        found = of_step(self, *args)
        graphs.append(counters["stats"]["unique_graphs"])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gradients, "of_step", counted)
        train(config, progress_bar=False)
    assert not counters["graph_break"], counters["graph_break"]
    return [record["loss"] for record in records_of(output)], graphs


@pytest.fixture
def traced(monkeypatch) -> None:
    """Compiled code that is as good as its trace, made without a compiler."""
    compiled, of_module = torch.compile, nn.Module.compile
    monkeypatch.setattr(torch, "compile", lambda called, **options: compiled(called, **{"backend": "eager", **options}))
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **options: of_module(self, **{"backend": "eager", **options})
    )


CHEAP = [("simvtp", "blocks"), ("retrieval", "step"), ("prism-1", "step")]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *CHEAP,
        *(
            pytest.param(name, mode, marks=pytest.mark.long)
            for name in RUNS
            for mode in ("blocks", "step")
            if (name, mode) not in CHEAP
        ),
    ],
)
def test_nothing_is_compiled_after_the_first_steps(name, mode, data, tmp_path, traced, request):
    """Over 60 batches of captions of other lengths; in CI over 16."""
    steps = 60 if request.node.get_closest_marker("long") else 16
    losses, graphs = run(name, data, tmp_path, f"steps={steps}", f"compile={mode}")
    assert len(losses) == len(graphs) == steps
    assert 0 < graphs[_WARM] == graphs[-1], graphs


@pytest.mark.long
@pytest.mark.parametrize("mode", ["blocks", "step"])
@pytest.mark.parametrize("name", RUNS)
def test_compiled_losses_are_the_eager_ones(name, mode, data, tmp_path):
    eager, _ = run(name, data, tmp_path / "none", "steps=20", "compile=none")
    compiled, graphs = run(name, data, tmp_path / mode, "steps=20", f"compile={mode}")
    assert compiled == pytest.approx(eager, rel=1e-4)
    assert 0 < graphs[_WARM] == graphs[-1], graphs
