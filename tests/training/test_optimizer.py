from itertools import pairwise

import pytest
import torch

from fastvtp.training.config import OptimizerConfig
from fastvtp.training.optimizer import build_optimizer, learning_rate_at


def test_vectors_are_not_decayed():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if parameter.ndim > 1 else 1.0)
        torch.testing.assert_close(parameter.detach(), expected)


def test_schedule_rises_then_falls():
    config = OptimizerConfig(learning_rate=1.0, final_learning_rate=0.1, warmup_steps=5)
    rates = [learning_rate_at(step, 25, config) for step in range(25)]
    assert rates[0] == 0
    assert rates[4] == rates[5] == 1.0
    assert all(a > b for a, b in pairwise(rates[5:]))
    assert rates[15] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_one_step_of_warmup_and_a_run_shorter_than_its_warmup():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=1)
    assert learning_rate_at(0, 3, config) == 0
    assert learning_rate_at(1, 3, OptimizerConfig(learning_rate=1.0, warmup_steps=100)) == 0.5
