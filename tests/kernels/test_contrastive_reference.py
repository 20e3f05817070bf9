"""backend="reference" of the contrastive losses, whose tiles never hold all logits, against the formulas that do."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastvtp_kernels import contrastive_loss, sigmoid_loss
from fastvtp_kernels.contrastive import chunked, reference

# Strips of one row, of several that divide the rows unevenly, and one strip.
STRIPS = {"single rows": 1, "five rows": 5 * 37, "one strip": 1 << 22}
OPTIONS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "positives": {"positives": torch.arange(37) * 7 % 16},
    "both": {"label_smoothing": 0.3, "positives": torch.arange(37, dtype=torch.int32) % 3},
    "all positive": {"positives": torch.zeros(37, dtype=torch.int64)},
}
every_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(params=STRIPS.values(), ids=list(STRIPS))
def strips(request, monkeypatch):
    monkeypatch.setattr(chunked, "_STRIP_LOGITS", request.param)
    assert chunked.strip_rows(37) == max(1, request.param // 37)


def inputs(*scalars, rows=37, width=33, dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    features = [F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64)) for _ in range(2)]
    values = [*features, *(torch.tensor(x, dtype=torch.float64) for x in scalars)]
    return [x.to(dtype).requires_grad_() for x in values]


def assert_equal(actual, exact, leaves, relative=1e-6):
    """`exact(*leaves)` in float64: the losses and every gradient to `relative` of their largest number."""
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    pairs = [(actual(*leaves), exact(*doubles))]
    pairs += zip(torch.autograd.grad(pairs[0][0], leaves), torch.autograd.grad(pairs[0][1], doubles), strict=True)
    for place, (found, right) in enumerate(pairs):
        error = (found.double() - right).abs().max()
        assert error <= relative * right.abs().max(), f"output {place}: error {error:.3g} of {right.abs().max():.3g}"


@every_options
def test_contrastive_equals_the_naive_formula(options, strips):
    call = partial(contrastive_loss, **options, backend="reference")
    naive = {"positives": None, "label_smoothing": 0.0} | options
    assert_equal(call, partial(reference.contrastive_loss, **naive), inputs(14.0))


def test_sigmoid_equals_the_naive_formula(strips):
    assert_equal(partial(sigmoid_loss, backend="reference"), reference.sigmoid_loss, inputs(10.0, -4.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_contrastive_equals_torch_cross_entropy_both_ways(smoothing):
    def both_ways(a, b, scale):
        logits, own = scale * (a @ b.T), torch.arange(len(a))
        ways = [F.cross_entropy(x, own, label_smoothing=smoothing) for x in (logits, logits.T)]
        return sum(ways) / 2

    assert_equal(partial(contrastive_loss, label_smoothing=smoothing, backend="reference"), both_ways, inputs(9.0))


def test_contrastive_equals_open_clip():
    """ClipLoss.forward of open_clip (loss.py): two matrices of logits, one for each tower's rows."""

    def clip_loss(image_features, text_features, logit_scale):
        logits_per_image = logit_scale * image_features @ text_features.T
        logits_per_text = logit_scale * text_features @ image_features.T
        labels = torch.arange(logits_per_image.shape[0])
        return (F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_text, labels)) / 2

    assert_equal(partial(contrastive_loss, backend="reference"), clip_loss, inputs(1 / 0.07))


def test_sigmoid_equals_siglip():
    """Algorithm 1 of Zhai et al. 2023, whose temperature is exp(t'), given here as the scale itself."""

    def siglip(img_emb, txt_emb, t, b):
        n = len(img_emb)
        logits = img_emb @ txt_emb.T * t + b
        labels = 2 * torch.eye(n) - torch.ones(n)
        return -torch.sum(F.logsigmoid(labels * logits)) / n

    assert_equal(partial(sigmoid_loss, backend="reference"), siglip, inputs(10.0, -10.0))


@pytest.mark.parametrize("strip", [1, 10, 1 << 22])
def test_gradcheck(strip, monkeypatch):
    monkeypatch.setattr(chunked, "_STRIP_LOGITS", strip)
    leaves = inputs(5.0, -1.0, rows=5, width=3, dtype=torch.float64)
    smoothed = {"label_smoothing": 0.3, "positives": torch.tensor([1, 2, 1, 0, 1])}
    for options in ({}, smoothed):
        call = partial(contrastive_loss, **options, backend="reference")
        assert torch.autograd.gradcheck(call, leaves[:3])
    assert torch.autograd.gradcheck(partial(sigmoid_loss, backend="reference"), leaves)


def test_no_strip_is_larger_than_its_limit(monkeypatch):
    """37 x 37 logits are never in memory together where strips hold 5 rows."""
    monkeypatch.setattr(chunked, "_STRIP_LOGITS", 5 * 37)
    largest = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest.append(result.numel())
            return result

    leaves = inputs(9.0, -4.0, width=3)
    with Sizes():
        for loss in (contrastive_loss(*leaves[:3], backend="reference"), sigmoid_loss(*leaves, backend="reference")):
            loss.backward()
    assert max(largest) <= 5 * 37
