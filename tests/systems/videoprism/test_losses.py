import pytest
import torch
from torch.nn.functional import cosine_similarity

from fastvtp.systems.videoprism import losses as distillation
from fastvtp.systems.videoprism.losses import cosine_distance, shuffled_order
from fastvtp_kernels.derivatives import DerivativeError


def plain(prediction, target):
    return (1 - cosine_similarity(prediction, target, dim=-1)).mean()


@pytest.mark.parametrize("chunk", [1, 40, 1 << 21])
def test_equals_the_plain_formula_with_its_gradient(chunk, monkeypatch):
    monkeypatch.setattr(distillation, "_CHUNK", chunk)
    torch.manual_seed(0)
    values = torch.randn(3, 5, 16, dtype=torch.float64)
    target = torch.randn(3, 5, 16)
    exact = values.clone().requires_grad_()
    expected = plain(exact, target.double())
    expected.backward()
    prediction = values.float().requires_grad_()
    loss = cosine_distance(prediction, target)
    (3 * loss).backward()
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(prediction.grad.double(), 3 * exact.grad, rtol=1e-5, atol=1e-8)


def test_is_computed_in_float32_and_spares_the_target():
    torch.manual_seed(0)
    prediction, target = (torch.randn(4, 64).bfloat16().requires_grad_() for _ in range(2))
    loss = cosine_distance(prediction, target)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain(prediction.float(), target.float()), rtol=1e-6, atol=1e-7)
    assert prediction.grad.dtype == torch.bfloat16
    assert target.grad is None


def test_goes_from_none_to_two_and_takes_zero_rows():
    rows = torch.eye(3)
    assert cosine_distance(rows, 2 * rows).item() == pytest.approx(0, abs=1e-6)
    assert cosine_distance(rows, -rows).item() == pytest.approx(2)
    zero = torch.zeros(1, 3, requires_grad=True)
    loss = cosine_distance(zero, rows[:1])
    loss.backward()
    assert loss.item() == 1
    assert zero.grad.isfinite().all()


def test_unequal_shapes_are_named():
    with pytest.raises(ValueError, match=r"one shape, got \[2, 3\], \[3, 2\]"):
        cosine_distance(torch.zeros(2, 3), torch.zeros(3, 2))


def test_orders_are_permutations_of_sample_and_step_alone():
    ids = torch.tensor([7, 3, 2**40])
    orders = shuffled_order(ids, 50, seed=5, step=9)
    assert all(sorted(row) == list(range(50)) for row in orders.tolist())
    assert torch.equal(shuffled_order(ids[1:2], 50, seed=5, step=9)[0], orders[1])
    others = [shuffled_order(ids, 50, seed=5, step=8), shuffled_order(ids, 50, seed=4, step=9), orders.roll(1, 0)]
    assert all((other != orders).any(dim=1).all() for other in others)


def test_all_orders_are_equally_likely():
    orders = shuffled_order(torch.arange(6000), 3, seed=1, step=0)
    counts = (orders * torch.tensor([9, 3, 1])).sum(dim=1).bincount()
    assert len(counts[counts > 0]) == 6
    assert (counts[counts > 0] - 1000).abs().max() < 150


def test_other_derivatives_of_the_distance_are_refused_by_name():
    prediction, target = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(2)).unbind()
    leaf = prediction.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cosine_distance(leaf, target), leaf)
    gradient = torch.func.grad(cosine_distance)
    torch.testing.assert_close(gradient(prediction, target), expected)
    asks = [
        lambda: torch.autograd.grad(cosine_distance(leaf, target), leaf, create_graph=True),
        lambda: torch.func.jvp(lambda x: cosine_distance(x, target), (prediction,), (target,)),
        lambda: torch.func.grad(lambda x: gradient(x, target).sum())(prediction),
    ]
    for ask in asks:
        with pytest.raises(
            DerivativeError, match=r"^cosine_distance has .*; torch\.nn\.functional\.cosine_similarity has"
        ):
            ask()
