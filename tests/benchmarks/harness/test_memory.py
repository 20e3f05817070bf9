"""Peak memory of functions whose peak is known, and of a graph's capture."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.harness.memory import GRAPH_WARM_UP, Graphed, peak_bytes

CPU = torch.device("cpu")
FLOATS = 250_000
MEGABYTE = 4 * FLOATS


def floats() -> torch.Tensor:
    return torch.empty(FLOATS)


def three_then_two() -> torch.Tensor:
    one, two = floats(), floats()
    del one
    three, four = floats(), floats()
    del three, four
    return two


def hands_back_what_was_there_before(held: list[torch.Tensor]) -> torch.Tensor:
    held.clear()
    return floats()


ONES = torch.ones(FLOATS)


@pytest.mark.parametrize(
    ("function", "megabytes"),
    [
        (three_then_two, 3),
        (floats, 1),
        (lambda: ONES.zero_(), 0),
        (partial(hands_back_what_was_there_before, [torch.ones(3 * FLOATS)]), 1),
    ],
    ids=["three of four at a time", "the output counts", "in place", "earlier memory"],
)
def test_peak_memory_on_the_cpu(function, megabytes):
    assert peak_bytes(function, CPU) == megabytes * MEGABYTE


def test_peak_memory_sees_temporaries_inside_an_operator():
    """The loss is one operator with a scalar result; its squares live inside it."""
    assert (peak_bytes(lambda: F.mse_loss(ONES, ONES), CPU) or 0) >= MEGABYTE


def test_peak_memory_on_cuda_is_above_what_is_held(monkeypatch):
    state = {"held": 5, "peak": 90}
    stand_in = {
        "synchronize": lambda device: None,
        "reset_peak_memory_stats": lambda device: state.update(peak=state["held"]),
        "memory_allocated": lambda device: state["held"],
        "max_memory_allocated": lambda device: state["peak"],
    }
    for name, function in stand_in.items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert peak_bytes(lambda: state.update(peak=max(state["peak"], 12)), torch.device("cuda")) == 7


def test_a_graph_knows_the_peak_of_its_capture(monkeypatch):
    """A replay allocates nothing, and must not be asked."""
    state = {"held": 5, "peak": 90, "replays": 0}
    calls = []

    def function() -> str:
        calls.append(state["peak"])
        state["peak"] = max(state["peak"], 12)
        return "output"

    graph = SimpleNamespace(replay=lambda: state.update(replays=state["replays"] + 1))
    stream = SimpleNamespace(wait_stream=lambda other: None)
    stand_in = {
        "CUDAGraph": lambda: graph,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda chosen: nullcontext(),
        "graph": lambda chosen: nullcontext(),
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: state.update(peak=state["held"]),
        "memory_allocated": lambda: state["held"],
        "max_memory_allocated": lambda: state["peak"],
    }
    for name, function_of in stand_in.items():
        monkeypatch.setattr(torch.cuda, name, function_of)
    graphed = Graphed(function)
    assert peak_bytes(graphed, torch.device("cuda")) is None
    assert graphed() == graphed() == "output"
    assert (len(calls), state["replays"]) == (GRAPH_WARM_UP + 1, 2)
    assert peak_bytes(graphed, torch.device("cuda")) == 7
    assert state["replays"] == 2
