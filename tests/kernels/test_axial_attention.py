"""Attention along one axis against packed attention over the same sequences."""

import pytest
import torch

from fastvtp_kernels import axial_attention, axial_attention_packed, varlen_attention
from fastvtp_kernels.testing import truths

OPTIONS = {"plain": {}, "softcap": {"softcap": 2.0}, "causal": {"causal": True}, "scale": {"softmax_scale": 0.3}}


def as_packed(x):
    """[A, L, C, H, Dh] -> [A * C * L, H, Dh]."""
    return x.transpose(1, 2).flatten(0, 2)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_packed_attention(options):
    shape = (2, 5, 3, 2, 4)
    qkv = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    cu = torch.arange(0, 31, 5, dtype=torch.int32)
    actual = axial_attention(*qkv, **options)
    query, key, value = map(as_packed, qkv)
    packed = varlen_attention(query, key, value, cu, 5, **options)
    assert actual.shape == shape
    assert actual.is_contiguous()
    torch.testing.assert_close(as_packed(actual), packed)
    weights = torch.randn(shape, dtype=torch.float64)
    gradients = torch.autograd.grad(actual, qkv, weights)
    for one, other in zip(gradients, torch.autograd.grad(packed, qkv, as_packed(weights)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_the_specification(options):
    qkv = [torch.randn(2, 5, 3, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weights = torch.randn(2, 5, 3, 2, 4, dtype=torch.float64)
    found = axial_attention(*qkv, **options)
    with truths():
        exact = axial_attention(*qkv, **options)
    torch.testing.assert_close(found, exact)
    for one, other in zip(*(torch.autograd.grad(x, qkv, weights) for x in (found, exact)), strict=True):
        torch.testing.assert_close(one, other)


def test_any_strides_will_do():
    """Tokens ordered (place, frame) and one packed projection, as TimeSformer lays them out."""
    projection = torch.randn(2, 3, 5, 3, 2, 4)  # [A, C, L, 3, H, Dh]
    views = projection.transpose(1, 2).unbind(3)
    torch.testing.assert_close(axial_attention(*views), axial_attention(*(x.contiguous() for x in views)))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_the_packed_form_is_that_of_its_views(options, backend):
    if backend == "sdpa" and "softcap" in options:
        pytest.skip("sdpa has no softcap")
    projection = torch.randn(2, 5, 3, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    packed = axial_attention_packed(projection, backend=backend, **options)
    views = axial_attention(*projection.unbind(3), backend=backend, **options)
    weights = torch.randn_like(packed)
    assert torch.equal(packed, views)
    for one, other in zip(*(torch.autograd.grad(x, projection, weights) for x in (packed, views)), strict=True):
        assert torch.equal(one, other)


def test_gradcheck():
    qkv = [torch.randn(1, 3, 2, 1, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    for options in OPTIONS.values():
        assert torch.autograd.gradcheck(lambda *x, o=options: axial_attention(*x, **o), qkv)


@pytest.mark.parametrize("shape", [(0, 3, 2, 1, 4), (2, 1, 3, 1, 4), (1, 3, 0, 2, 4)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_degenerate_axes(shape, options):
    x = torch.randn(shape)
    output = axial_attention(x, x, x, **options)
    assert output.shape == shape
    if shape[1] == 1:
        torch.testing.assert_close(output, x)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": torch.ones(2, 3, 1, 4)}, ValueError, r"query has shape .*expected \[A, L, C, H, Dh\]"),
        ({"key": torch.ones(2, 4, 2, 1, 4)}, ValueError, r"key has shape .*expected \[2, 3, 2, 1, 4\]"),
        ({"value": torch.ones(2, 3, 2, 1, 4).double()}, TypeError, "expected one dtype"),
        ({"softcap": -2.0}, ValueError, r"softcap is -2\.0"),
    ],
)
def test_refuses(change, error, message):
    with pytest.raises(error, match=message):
        axial_attention(**({name: torch.ones(2, 3, 2, 1, 4) for name in ("query", "key", "value")} | change))


@pytest.mark.parametrize(
    ("qkv", "error", "message"),
    [
        (torch.ones(2, 3, 2, 2, 1, 4), ValueError, r"qkv has shape .*expected \[A, L, C, 3, H, Dh\]"),
        (torch.ones(2, 3, 2, 3, 1, 4, dtype=torch.int32), TypeError, "expected a floating-point dtype"),
    ],
)
def test_packed_refuses(qkv, error, message):
    with pytest.raises(error, match=message):
        axial_attention_packed(qkv)
