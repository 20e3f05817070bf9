import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from fastvtp.modules import linear as module
from fastvtp.modules.linear import (
    LEAST_WORK,
    Linear,
    linear,
)

ROWS, INPUTS, OUTPUTS = 1000, 250, 161


@pytest.fixture
def asked(monkeypatch):
    """The shapes of the inputs that oneDNN was asked to multiply."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch was built without oneDNN")
    shapes, product = [], module._product

    def watched(x, *rest):
        shapes.append(tuple(x.shape))
        return product(x, *rest)

    monkeypatch.setattr(module, "_product", watched)
    return shapes


def operands(bias=True, leading=(ROWS,)):
    torch.manual_seed(0)
    shapes = (*leading, INPUTS), (OUTPUTS, INPUTS), *([(OUTPUTS,)] if bias else [])
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(ROWS,), (4, 25, 10)])
def test_output_and_gradients_are_those_of_float64(asked, bias, leading):
    given = operands(bias, leading)
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    out, expected = linear(*given), nn.functional.linear(*exact)
    incoming = torch.randn(OUTPUTS).expand_as(out)  # a gradient without memory of its own, as a mean gives it
    found = torch.autograd.grad(out, given, incoming)
    right = torch.autograd.grad(expected, exact, incoming.double())
    assert asked == [(*leading, INPUTS), (*leading, OUTPUTS)]
    for ours, theirs in zip((out, *found), (expected, *right), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()


def test_inputs_of_any_strides(asked):
    x, weight, bias = operands()
    turned = x.detach().t().contiguous().t().requires_grad_()
    sliced = torch.cat([weight, weight]).detach()[OUTPUTS:].requires_grad_()
    expected = torch.autograd.grad(linear(x, weight, bias).square().sum(), (x, weight))
    found = torch.autograd.grad(linear(turned, sliced, bias).square().sum(), (turned, sliced))
    assert len(asked) == 4
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_frozen_weights_and_inputs_get_no_gradient(asked):
    x, weight, bias = operands()
    frozen = linear(x, weight.detach(), bias.detach())
    frozen.sum().backward()
    assert x.grad is not None
    assert len(asked) == 2
    linear(x.detach(), weight, bias).sum().backward()
    assert len(asked) == 3, "nobody wanted the gradient of the input"
    assert weight.grad is not None


def test_what_stays_in_memory_for_backward():
    def kept(x, weight):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.shape), lambda _: None):
            linear(x, weight)
        return sizes

    x, weight = operands(bias=False)
    assert kept(x, weight.detach()) == [weight.shape]
    assert kept(x.detach(), weight) == [x.shape]
    assert sorted(kept(x, weight)) == sorted([x.shape, weight.shape])


def test_second_derivatives(asked):
    x, weight, bias = operands()
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]

    def penalty(call, x, weight, bias):
        """The gradient of a gradient's size: the layer is the last one, its own gradient a constant."""
        (slope,) = torch.autograd.grad(call(x.sin(), weight, bias).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (x, weight))

    found, right = penalty(linear, x, weight, bias), penalty(nn.functional.linear, *exact)
    assert asked
    for ours, theirs in zip(found, right, strict=True):
        assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()


def test_batched_gradients(asked):
    given = operands()
    out, incoming = linear(*given), torch.randn(3, ROWS, OUTPUTS)
    assert len(asked) == 1
    batched = torch.autograd.grad(out, given, incoming, retain_graph=True, is_grads_batched=True)
    for number, one in enumerate(incoming):
        for ours, expected in zip(batched, torch.autograd.grad(out, given, one, retain_graph=True), strict=True):
            torch.testing.assert_close(ours[number], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "bias", [torch.randn(2 * OUTPUTS)[::2], torch.randn(1).expand(OUTPUTS)], ids=["strided", "expanded"]
)
def test_biases_of_any_strides(asked, bias):
    x, weight, _ = operands()
    torch.testing.assert_close(linear(x, weight, bias), nn.functional.linear(x, weight, bias), rtol=0, atol=1e-4)
    assert asked


@pytest.mark.parametrize("change", [lambda x, w, b: (x, w[:, 1:], b), lambda x, w, b: (x, w, b[1:])])
def test_wrong_shapes_get_the_error_of_torch(asked, change):
    given = change(*operands())
    with pytest.raises(RuntimeError) as expected:
        nn.functional.linear(*given)
    with pytest.raises(RuntimeError) as found:
        linear(*given)
    assert str(found.value) == str(expected.value)


def flops_of(x, weight, bias):
    with FlopCounterMode(display=False) as counter:
        out = linear(x, weight, bias)
        out.sum().backward(retain_graph=True)
    assert counter.get_total_flops() == 3 * 2 * ROWS * INPUTS * OUTPUTS
    return out


def dual(x, weight, bias):
    with forward_ad.dual_level():
        out = linear(forward_ad.make_dual(x, torch.ones_like(x)), weight, bias)
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, torch.ones_like(x) @ weight.t())
        return forward_ad.unpack_dual(out).primal


def switched_off(x, weight, bias):
    with torch.backends.mkldnn.flags(enabled=False):
        return linear(x, weight, bias)


def traced(x, weight, bias):
    given = x, weight, bias
    return torch.jit.trace(linear, tuple(tensor.detach() for tensor in given), check_trace=False)(*given)


def test_compiled_for_any_number_of_rows():
    layer = Linear(768, 768).to("meta")
    rows = torch.export.Dim("rows", min=2, max=4096)
    program = torch.export.export(layer, (torch.empty(64, 768, device="meta"),), dynamic_shapes=({0: rows},))
    assert program.module()(torch.empty(3, 768, device="meta")).shape == (3, 768)


def test_backward_without_onednn(asked):
    out = linear(*(given := operands()))
    with torch.backends.mkldnn.flags(enabled=False):
        torch.autograd.grad(out.sum(), given)
    assert len(asked) == 1


def test_a_layer_repeats_bit_for_bit(asked):
    x, weight, _ = operands()
    layer = Linear(INPUTS, OUTPUTS)
    runs = [torch.autograd.grad(layer(x).square().sum(), (x, layer.weight)) for _ in range(3)]
    assert len(asked) == 6
    assert all(torch.equal(*pair) for again in runs[1:] for pair in zip(runs[0], again, strict=True))
    assert isinstance(layer, nn.Linear)
    assert weight.shape == layer.weight.shape


@pytest.mark.parametrize(
    "call",
    [
        lambda x, weight, bias: linear(x[: LEAST_WORK // (INPUTS * OUTPUTS)], weight, bias),
        lambda x, weight, bias: linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()),
        lambda x, weight, bias: linear(x.double(), weight.double(), bias.double()),
        lambda x, weight, bias: torch.vmap(linear, in_dims=(0, None, None))(x.expand(2, -1, -1), weight, bias),
        lambda x, weight, bias: linear(x.flatten(), torch.ones(161, x.numel(), requires_grad=True), bias),
        lambda x, weight, bias: linear(x, torch.randn(INPUTS, requires_grad=True), None),
        lambda x, weight, bias: torch.compile(linear, backend="aot_eager")(x, weight, bias),
        lambda x, weight, bias: linear(x, weight, bias.new_ones(())),
        lambda x, weight, bias: linear(x, weight.detach().to_sparse_csr(), None),
        flops_of,
        dual,
        switched_off,
        traced,
    ],
    ids=[
        "small", "bfloat16", "float64", "vmap", "vector", "weight vector", "compiled", "scalar bias", "sparse",
        "counted", "forward mode", "switched off", "traced",
    ],
)  # fmt: skip
def test_what_is_left_to_torch(asked, call):
    call(*operands()).sum().backward()
    assert asked == []


def test_autocast_is_left_to_torch(asked):
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(*operands()).dtype == torch.bfloat16
    assert asked == []
