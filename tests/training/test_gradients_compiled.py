"""A step in micro-batches of a model that torch.compile has compiled."""

import logging
from typing import Any

import pytest
import torch

from fastvtp.training.compiling import blocks_of
from fastvtp.training.gradients import computes_twice
from fastvtp.training.parallel import Parallel
from tests.training.steps import (
    CASES,
    CPU,
    IDS,
    LENGTHS,
    in_micro_batches,
    largest_difference,
    make_batch,
    make_config,
    make_task,
    parts,
)


@pytest.fixture
def traced(monkeypatch) -> None:
    """Compiled code that is as good as its trace: whatever breaks a graph or a guard shows, without code for a
    processor."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda called, **options: compiled(called, backend="eager", **options))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("simvtp_hard_learned", {"depth": 1, "text_dropout": 0.3}),  # block by block: its embeddings draw
        # the whole model, where it draws nothing
        pytest.param("dual_encoder_shared", {"depth": 1}, marks=pytest.mark.long),
        pytest.param("simvtp_hard_learned", {"depth": 1}, marks=pytest.mark.long),
        pytest.param("alpro_paper", {"depth": 1, "text_depth": 1, "fusion_depth": 1}, marks=pytest.mark.long),
    ],
)
def test_compiled_micro_batches_give_the_same_gradients(name, changes, traced):
    """What a micro-batch is told of the others breaks no graph, and makes no new one in the step that follows."""
    case = CASES[name]
    model, batch = case.model(dtype=torch.float64, **changes), make_batch(case)
    other = make_batch(case, lengths=LENGTHS[::-1], ids=IDS[::-1])
    graphs = []
    for whole, micro_batches in ((batch, 2), (batch, 4), (other, 4)):
        batches = parts(whole, micro_batches, numbered=True)
        found = in_micro_batches(case, model, batches, compile="step")
        assert largest_difference(found, in_micro_batches(case, model, batches)) < 1e-6
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 0 < graphs[1] == graphs[2]
    assert not torch._dynamo.utils.counters["graph_break"]


def test_what_draws_twice_is_not_compiled(monkeypatch, caplog):
    """Compiled code draws other numbers; as whole models are compiled where features are computed once."""
    monkeypatch.setattr(torch, "compile", lambda called, **_: called)
    case = CASES["dual_encoder_shared"]

    def compiled(micro_batches: int, **changes: Any) -> list[bool] | None:
        """Which blocks are compiled; None: all of the model is."""
        model = case.model(depth=3, **changes)
        config = make_config(case, model, micro_batches, compile="step")
        twice = computes_twice(config, make_task(config), micro_batches)
        Parallel(model, config, CPU, leaves_out=False, twice=twice)
        by_block = [block._compiled_call_impl is not None for block in blocks_of(model)]
        return by_block if any(by_block) or twice else None

    with caplog.at_level(logging.WARNING):
        assert compiled(1, drop_path=0.2) is None
        assert compiled(4, text_dropout=0.2) == [True, True, True]
        assert not caplog.messages
        assert sorted(compiled(4, drop_path=0.2) or []) == [False, False, True]  # the first is never skipped
    assert "2 of 3 blocks are not compiled, for their dropout or drop_path must draw the same twice" in caplog.text
