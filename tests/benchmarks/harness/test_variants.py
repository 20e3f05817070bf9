"""What is made of an op's functions: calls, and their error against the truth in float64."""

from typing import Any

import pytest
import torch

from benchmarks.harness.case import Missing
from benchmarks.harness.variants import bind, relative_error


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ([1.0, -4.0], 0.0),
        ([1.5, -4.0], 0.125),
        ([1.0, float("nan")], float("inf")),
        ([1.0], float("inf")),
    ],
)
def test_relative_error(output, error):
    exact = torch.tensor([1.0, -4.0], dtype=torch.float64)
    for tensors in ([exact, torch.tensor(output)], [torch.tensor(output), exact]):
        assert relative_error(tensors, [exact, exact]) == error


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_bound_calls_are_held_against_float64(direction):
    leaf = torch.tensor([0.1, 0.2, 0.3])

    def wrong_gradient(x: torch.Tensor) -> torch.Tensor:
        return x.square() + 0.01 * (x - x.detach())

    functions: dict[str, Any] = {"right": torch.square, "gradient": wrong_gradient, "absent": Missing("gone")}
    variants, error = bind(functions, torch.square, [leaf], direction)
    right: Any = variants["right"]
    gradient: Any = variants["gradient"]
    assert 0 < error(right()) < 1e-6
    assert (error(gradient()) > 1e-3) == (direction == "forward+backward")
    assert variants["absent"] == Missing("gone")
    assert not right()[0].requires_grad
