import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from fastvtp.errors import UserError
from fastvtp.frozen.training_heads import HeadTraining, train_head


class Recorder(nn.Module):
    """Its gradient is one in every step, so that the optimizer's moves show its rates."""

    def __init__(self):
        super().__init__()
        self.matrix, self.vector = nn.Parameter(torch.ones(1, 1)), nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.ones(1, 1), requires_grad=False)

    def forward(self):
        return self.matrix.sum() + self.vector.sum()


def run(**settings):
    head, path = Recorder(), []

    def loss_of(_):
        path.append((head.matrix.item(), head.vector.item()))
        return head()

    training = HeadTraining(**{"steps": 10, "warmup_steps": 0, "weight_decay": 0.0, **settings})
    last = train_head(head, iter(range(100)), loss_of, training, device="cpu", progress=False)
    path.append((head.matrix.item(), head.vector.item()))
    return head, path, last


def test_rates_rise_and_then_fall_to_zero_by_half_a_cosine():
    _, path, _ = run(learning_rate=0.01, warmup_steps=4)
    moves = [before[1] - after[1] for before, after in pairwise(path)]
    rising = [0.01 * (i + 1) / 5 for i in range(4)]
    falling = [0.005 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    assert moves == pytest.approx(rising + falling, rel=1e-3)


def test_matrices_alone_decay_and_the_frozen_stay():
    head, _, last = run(learning_rate=0.1, weight_decay=0.5)
    assert head.matrix.item() < head.vector.item() - 0.05
    assert head.frozen.item() == 1
    assert not head.training
    assert last == pytest.approx(2 * head.vector.item(), abs=0.3)


def test_a_loss_that_is_not_finite_stops():
    head = Recorder()
    with pytest.raises(FloatingPointError, match="the loss is nan at step 2"):
        train_head(head, range(2), lambda _: head() * torch.nan, HeadTraining(steps=2), device="cpu", progress=False)
    with pytest.raises(UserError, match="probe: expected 5 batches, got 3"):
        train_head(head, range(3), lambda _: head(), HeadTraining(steps=5), device="cpu", progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"warmup_steps": -1}, "warmup_steps must be finite and not negative, got -1"),
        ({"label_smoothing": 1}, r"label_smoothing must be in \[0, 1\), got 1"),
        ({"precision": "half"}, "precision must be 'float32' or 'bfloat16', got 'half'"),
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\)"),
    ],
)
def test_wrong_settings_are_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        HeadTraining(**settings)
