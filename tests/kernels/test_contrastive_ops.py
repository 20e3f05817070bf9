"""Contrastive losses against sums written out pair by pair, and hard negatives against their distribution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvtp_kernels import contrastive_loss, hard_negatives, sigmoid_loss
from fastvtp_kernels.contrastive.reference import sample_rows
from fastvtp_kernels.testing import assert_within_tolerance


def features(rows=5, width=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pair = [torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [torch.nn.functional.normalize(x).to(dtype).requires_grad_() for x in pair]


def pairwise_contrastive(a, b, scale, positives=None, label_smoothing=0.0):
    rows = len(a)
    logits = scale * (a @ b.T)
    total = 0
    for i in range(rows):
        same = [
            j
            for j in range(rows)
            if (positives is None and i == j) or (positives is not None and positives[i] == positives[j])
        ]
        for direction in (logits[i], logits[:, i]):
            log_probability = direction - direction.exp().sum().log()
            total = (
                total - (1 - label_smoothing) * log_probability[same].mean() - label_smoothing * log_probability.mean()
            )
    return total / (2 * rows)


def pairwise_sigmoid(a, b, scale, bias):
    total = 0
    for i in range(len(a)):
        for j in range(len(b)):
            logit = scale * (a[i] @ b[j]) + bias
            total = total + torch.log1p(torch.exp(-logit if i == j else logit))
    return total / len(a)


CASES = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.2},
    "positives": {"positives": torch.tensor([3, 1, 3, 2, 3])},
    "both": {"label_smoothing": 0.1, "positives": torch.tensor([0, 0, 1, 1, 0], dtype=torch.int32)},
}


def check(function, pairwise, dtype, *scalars):
    """Of four batches together: chance would decide the comparison of one number."""

    def found(loss, x):
        return [loss.detach(), *torch.autograd.grad(loss, x)]

    batches = []
    for seed in range(4):
        leaves = [*features(dtype=dtype, seed=seed), *(torch.tensor(x, requires_grad=True) for x in scalars)]
        doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
        rounded = pairwise(*(leaf.float() for leaf in leaves))
        batches.append([found(function(*leaves), leaves), found(rounded, leaves), found(pairwise(*doubles), doubles)])
        assert batches[-1][0][0].dtype == torch.float32
    names = ("loss", "grad of a", "grad of b", "grad of logit_scale", "grad of logit_bias")
    for place, name in enumerate(names[: 3 + len(scalars)]):
        assert_within_tolerance(name, *(torch.stack([x[kind][place] for x in batches]) for kind in range(3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_contrastive_equals_pair_by_pair(options, dtype):
    check(lambda *x: contrastive_loss(*x, **options), lambda *x: pairwise_contrastive(*x, **options), dtype, 14.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sigmoid_equals_pair_by_pair(dtype):
    check(sigmoid_loss, pairwise_sigmoid, dtype, 10.0, -3.0)


def test_gradcheck():
    a, b = features(3, 4)
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (5.0, -1.0))
    for options in ({}, {"label_smoothing": 0.3, "positives": torch.tensor([1, 2, 1])}):
        assert torch.autograd.gradcheck(lambda *x, o=options: contrastive_loss(*x, **o), (a, b, scale))
    assert torch.autograd.gradcheck(sigmoid_loss, (a, b, scale, bias))


def test_known_values_and_extremes():
    identity = torch.eye(4)
    torch.testing.assert_close(contrastive_loss(identity, identity, 0.0), torch.tensor(math.log(4)))
    assert contrastive_loss(identity, identity, 1e4).item() == 0
    assert contrastive_loss(identity, identity.roll(1, 0), 1e4).item() == pytest.approx(1e4)
    torch.testing.assert_close(sigmoid_loss(identity, identity, 0.0, 0.0), torch.tensor(4 * math.log(2)))
    assert contrastive_loss(identity[:1], identity[:1], 7.0).item() == 0


@pytest.mark.parametrize("loss", [contrastive_loss, lambda a, b, s: sigmoid_loss(a, b, s, -1.0)])
def test_autocast_rounds_features_but_not_the_loss(loss):
    a, b = features(dtype=torch.float32)
    scale = torch.tensor(14.0, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        low = loss(a, b, scale)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, loss(a.bfloat16(), b.bfloat16(), scale), rtol=0, atol=0)
    assert [g.dtype for g in torch.autograd.grad(low, (a, b, scale))] == [torch.float32] * 3


def probabilities(a, b, scale, groups):
    logits = (scale * (a.detach() @ b.detach().T)).masked_fill(groups[:, None] == groups, float("-inf"))
    return logits.softmax(1), logits.T.softmax(1)


def test_hard_negatives_follow_the_softmax():
    """Chi-square over more than 20000 draws in each direction: 400 equal rows choose among the six of other groups."""
    crowd, candidates = 400, 6
    a, b = features(candidates + 1, 4, seed=3)
    rows = torch.cat([torch.zeros(crowd, dtype=torch.int64), torch.arange(1, candidates + 1)])
    a, b = a[rows], b[rows]
    expected = probabilities(a, b, 2.0, rows)
    drawn = torch.stack([torch.stack(hard_negatives(a, b, 2.0, seed=8, step=s, groups=rows)) for s in range(60)])
    for direction in range(2):
        chosen = drawn[:, direction, :crowd].flatten()
        assert chosen.min() >= crowd
        want = expected[direction][0, crowd:] * chosen.numel()
        assert want.min() > 100
        chi_square = ((torch.bincount(chosen - crowd, minlength=candidates) - want) ** 2 / want).sum()
        assert chi_square < 25.7  # 99.99 % of a chi-square with 5 degrees of freedom


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 1000), st.sampled_from([0.0, 5.0, 1e4]))
def test_hard_negatives_never_come_from_the_own_group(groups, seed, scale):
    groups = torch.tensor(groups)
    a, b = features(len(groups), dtype=torch.float32, seed=seed)
    negatives = hard_negatives(a, b, scale, seed=seed, groups=groups)
    has_candidate = (groups[:, None] != groups).any(1)
    for chosen in negatives:
        assert chosen.dtype == torch.int64
        assert torch.equal(chosen == -1, ~has_candidate)
        assert (groups[chosen] != groups)[has_candidate].all()
    if scale == 1e4:
        for chosen, expected in zip(negatives, probabilities(a, b, scale, groups), strict=True):
            assert torch.equal(chosen[has_candidate], expected.argmax(1)[has_candidate])


def test_hard_negatives_without_groups_exclude_the_diagonal_and_repeat_by_seed_and_step():
    a, b = features(64, dtype=torch.float32)
    first, again, seeded, stepped = (
        hard_negatives(a, b, 1.0, seed=seed, step=step) for seed, step in ((1, 0), (1, 0), (2, 0), (1, 1))
    )
    diagonal = torch.arange(64)
    for chosen in first:
        assert ((chosen != diagonal) & (chosen >= 0) & (chosen < 64)).all()
    assert torch.equal(first.b_for_a, again.b_for_a)
    assert torch.equal(first.a_for_b, again.a_for_b)
    assert not torch.equal(first.b_for_a, seeded.b_for_a)
    assert not torch.equal(first.b_for_a, stepped.b_for_a)
    assert not torch.equal(first.b_for_a, first.a_for_b)
    assert hard_negatives(a[:1], b[:1], 1.0, seed=0) == (torch.tensor([-1]), torch.tensor([-1]))


def test_the_ends_of_the_cumulative_sum_belong_to_candidates():
    """The smallest and the largest number that can be drawn, with excluded columns at both ends."""
    logits, excluded = torch.zeros(1, 5), torch.tensor([[True, False, False, False, True]])
    for number, column in ((0.0, 1), (1 - 2.0**-24, 3)):
        assert sample_rows(logits, excluded, torch.tensor([number])).item() == column


def test_equal_rows_are_drawn_evenly():
    same = torch.ones(4, 3)
    drawn = torch.stack([hard_negatives(same, same, 100.0, seed=0, step=step).b_for_a for step in range(600)])
    for row in range(4):
        counts = torch.bincount(drawn[:, row], minlength=4)
        assert counts[row] == 0
        assert (counts[counts > 0] - 200).abs().max() < 47  # four standard deviations


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a, b: contrastive_loss(a, b[:4], 1.0), ValueError, r"b has shape \[4, 7\], expected \[5, 7\]"),
        (lambda a, b: contrastive_loss(a, b.float(), 1.0), TypeError, r"a is torch\.float64 and b is torch\.float32"),
        (lambda a, b: contrastive_loss(a[:0], b[:0], 1.0), ValueError, r"a has shape \[0, 7\], expected at least one"),
        (lambda a, b: contrastive_loss(a, b, torch.ones(2)), ValueError, r"logit_scale has shape \[2\], expected a sc"),
        (lambda a, b: contrastive_loss(a, b, 1.0, label_smoothing=2.0), ValueError, r"label_smoothing is 2\.0"),
        (lambda a, b: contrastive_loss(a, b, 1.0, positives=torch.ones(5)), TypeError, "positives is torch"),
        (
            lambda a, b: contrastive_loss(a, b, 1.0, group=object()),
            TypeError,
            "_loss: group is object, expected a torch",
        ),
        (lambda a, b: sigmoid_loss(a, b, 1.0, 0.0, group="world"), TypeError, "_loss: group is str, expected a torch"),
        (lambda a, b: contrastive_loss(a, b, torch.ones(0)), ValueError, r"logit_scale has shape \[0\], expected a sc"),
        (lambda a, b: contrastive_loss(a, b, 1.0, label_smoothing=float("nan")), ValueError, "label_smoothing is nan"),
        (
            lambda a, b: contrastive_loss(a, b, 1.0, positives=torch.ones(4).int()),
            ValueError,
            r"positives has shape \[4\], expected \[5\]",
        ),
        (lambda a, b: sigmoid_loss(a[:0], b[:0], 1.0, 0.0), ValueError, r"a has shape \[0, 7\], expected at least one"),
        (lambda a, b: sigmoid_loss(a, b, 1.0, torch.ones(2)), ValueError, r"logit_bias has shape \[2\]"),
        (lambda a, b: hard_negatives(a, b, 1.0, seed=0, groups=torch.ones(4).int()), ValueError, "groups has shape"),
        (lambda a, b: hard_negatives(a, b, 1.0, seed=2**64), ValueError, "seed is 18446744073709551616"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(*features())
