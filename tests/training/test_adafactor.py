"""Adafactor in its four forms against the algorithm of its paper (arXiv:1804.04235, algorithms 2 and 4)."""

import json
import math
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastvtp.errors import ConfigError
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import OptimizerConfig, apply_overrides
from fastvtp.training.loop import train
from fastvtp.training.optimizer import build_optimizer, set_learning_rate

SHAPES = {"matrix": (7, 5), "kernel": (4, 3, 2, 3, 6), "vector": (9,), "scalar": ()}
RATE, DECAY, STEPS = 0.03, 0.2, 4


class Parts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        for number, (name, shape) in enumerate(SHAPES.items()):
            value = torch.randn(shape, generator=generator) * 10.0 ** (1 - number)
            setattr(self, name, torch.nn.Parameter(value))


def gradients_of(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {name: 0.3 * rng.standard_normal(shape) + 0.1 for name, shape in SHAPES.items()}


def root_mean_square(x: np.ndarray) -> float:
    return math.sqrt(float(np.mean(np.square(x))))


def by_the_paper(start: dict[str, np.ndarray], *, scaled: bool, momentum: float | None, torchs: bool):
    """With decoupled weight decay, of matrices alone, by the rate that the update has; torch decays by the rate as set.
    The factors are of the last two dimensions, and the first moment is of the updates."""
    values = {name: value.copy() for name, value in start.items()}
    rows, columns, squares, moments = {}, {}, {}, {}
    for step in range(1, STEPS + 1):
        beta2 = 1 - step**-0.8
        for name, gradient in gradients_of(step).items():
            x, square = values[name], gradient**2 + (0 if torchs else 1e-30)
            rate = RATE * (max(1e-3, root_mean_square(x)) if scaled else 1.0)
            if x.ndim > 1:
                x = x * (1 - DECAY * (RATE if torchs else rate))
                rows[name] = beta2 * rows.get(name, 0) + (1 - beta2) * square.mean(-1)
                columns[name] = beta2 * columns.get(name, 0) + (1 - beta2) * square.mean(-2)
                second = rows[name][..., None] * columns[name][..., None, :] / rows[name].mean(-1)[..., None, None]
            else:
                squares[name] = second = beta2 * squares.get(name, 0) + (1 - beta2) * square
            update = gradient / np.sqrt(second)
            update = rate * update / max(1.0, root_mean_square(update))
            if momentum is not None:
                moments[name] = update = momentum * moments.get(name, 0) + (1 - momentum) * update
            values[name] = x - update
    return values


@pytest.mark.parametrize("momentum", [None, 0.8])
@pytest.mark.parametrize("scaled", [True, False])
def test_steps_are_those_of_the_paper(scaled, momentum):
    torchs = scaled and momentum is None
    if not torchs:
        pytest.importorskip("pytorch_optimizer")
    model = Parts()
    start = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    config = OptimizerConfig(
        algorithm="adafactor", weight_decay=DECAY, scale_by_parameter=scaled, momentum=momentum, learning_rate=7.0
    )
    optimizer = build_optimizer(model, config)
    assert isinstance(optimizer, torch.optim.Adafactor) == torchs
    for step in range(1, STEPS + 1):
        set_learning_rate(optimizer, RATE)
        for name, gradient in gradients_of(step).items():
            model.get_parameter(name).grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    for name, expected in by_the_paper(start, scaled=scaled, momentum=momentum, torchs=torchs).items():
        found = model.get_parameter(name).detach().double()
        torch.testing.assert_close(found, torch.tensor(expected), rtol=2e-5, atol=2e-6, msg=name)


@pytest.mark.parametrize("recipe", ["videoprism_stage1", "videoprism_stage2"])
def test_the_published_recipes_move_what_adamw_moves(recipe):
    """50 steps at the peak rate: torch's relative form moves this matrix by 1 %, and the vector from 0 by 1e-5."""
    pytest.importorskip("pytorch_optimizer")
    moved = {}
    config = replace(get_recipe(recipe).optimizer, weight_decay=0.0)
    for algorithm in ("adafactor", "adamw"):
        torch.manual_seed(0)
        model = torch.nn.Linear(96, 80)
        with torch.no_grad():
            model.weight.normal_(std=0.02)
            model.bias.zero_()
        before = model.weight.detach().clone()
        optimizer = build_optimizer(model, replace(config, algorithm=algorithm))
        for _ in range(50):
            set_learning_rate(optimizer, config.learning_rate)
            for parameter in model.parameters():
                parameter.grad = 0.1 * torch.randn_like(parameter) + 0.05
            optimizer.step()
        change = (model.weight - before).norm() / before.norm()
        moved[algorithm] = change.item(), model.bias.detach().square().mean().sqrt().item()
    for found, wanted in zip(moved["adafactor"], moved["adamw"], strict=True):
        assert 0.6 * wanted < found < 1.4 * wanted, moved


def test_a_resumed_run_equals_an_uninterrupted_one(tiny_settings, tmp_path):
    pytest.importorskip("pytorch_optimizer")
    form = ["optimizer.algorithm=adafactor", "optimizer.scale_by_parameter=false", "optimizer.momentum=0.9"]
    settings = [*tiny_settings, *form, "data.test=none", "keep_checkpoints=9"]
    whole, stopped = (
        apply_overrides(get_recipe("simvtp_demo"), [*settings, f"output_dir={tmp_path / name}"])
        for name in ("whole", "stopped")
    )
    train(whole, progress_bar=False)
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped/model")
    for step in (4, 6):
        shutil.rmtree(tmp_path / f"stopped/checkpoints/step_{step:08d}")
    train(stopped, resume=True, progress_bar=False)
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes(), name
    assert all(math.isfinite(json.loads(line)["loss"]) for line in (tmp_path / "whole/metrics.jsonl").open())


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ConfigError, match=r"need pytorch_optimizer: pip install 'fastvtp\[train\]'"):
        build_optimizer(torch.nn.Linear(3, 2), OptimizerConfig(algorithm="adafactor", momentum=0.9))
    build_optimizer(torch.nn.Linear(3, 2), OptimizerConfig(algorithm="adafactor"))
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), or none, got 1"):
        OptimizerConfig(momentum=1.0)
