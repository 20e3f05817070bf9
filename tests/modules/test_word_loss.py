import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from fastvtp.modules import losses as reconstruction
from fastvtp.modules.losses import masked_word_loss
from fastvtp_kernels.derivatives import DerivativeError
from fastvtp_kernels.testing import assert_within_tolerance

WORDS, WIDTH, VOCABULARY = 13, 8, 37


def make_inputs(dtype: torch.dtype = torch.float64, words: int = WORDS, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"features": (words, WIDTH), "weight": (VOCABULARY, WIDTH), "bias": (VOCABULARY,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    } | {"labels": torch.randint(0, VOCABULARY, (words,), generator=generator)}


def naive(features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    dtype = torch.promote_types(features.dtype, torch.float32)
    return cross_entropy(linear(features, weight, bias).to(dtype), labels)


def with_gradients(loss: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    gradients = torch.autograd.grad(0.5 * loss, list(leaves.values()), retain_graph=True)
    return {"loss": loss} | {f"grad of {name}": g for name, g in zip(leaves, gradients, strict=True)}


@pytest.fixture(params=[1 << 24, 4 * VOCABULARY, 1], ids=["one chunk", "four rows a chunk", "one row a chunk"])
def chunks(request, monkeypatch):
    monkeypatch.setattr(reconstruction, "_CHUNK_LOGITS", request.param)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_and_gradients_meet_the_law(dtype):
    inputs = make_inputs(dtype)
    exact = {name: x.detach().double().requires_grad_() if x.requires_grad else x for name, x in inputs.items()}
    found, same, truth = (
        with_gradients(function(**given), given)
        for function, given in ((lambda **x: masked_word_loss(**x).loss, inputs), (naive, inputs), (naive, exact))
    )
    for name, value in found.items():
        assert_within_tolerance(name, value, same[name], truth[name])


@pytest.mark.usefixtures("chunks")
def test_predictions_are_the_likeliest_words():
    inputs = make_inputs()
    logits = linear(inputs["features"], inputs["weight"], inputs["bias"])
    assert torch.equal(masked_word_loss(**inputs).predicted, logits.argmax(1))


def test_gradcheck_and_no_second_derivative():
    features, weight, bias, labels = make_inputs(words=3).values()
    assert torch.autograd.gradcheck(lambda *x: masked_word_loss(*x, labels).loss, (features, weight, bias))
    assert torch.autograd.gradcheck(lambda *x: masked_word_loss(*x, None, labels).loss, (features, weight))
    loss = masked_word_loss(features, weight, bias, labels).loss
    with pytest.raises(
        DerivativeError, match=r"^masked_word_loss has first derivatives .*; torch\.nn\.functional\.cross"
    ):
        torch.autograd.grad(loss, features, create_graph=True)


def test_transforms_of_torch_func():
    features, weight, bias, labels = (x.detach() for x in make_inputs(words=3).values())

    def loss(*x):
        return masked_word_loss(*x, labels).loss

    leaves = [x.clone().requires_grad_() for x in (features, weight, bias)]
    found = torch.func.grad(loss, argnums=(0, 1, 2))(features, weight, bias)
    torch.testing.assert_close(found, torch.autograd.grad(loss(*leaves), leaves))
    with pytest.raises(DerivativeError, match="forward-mode"):
        torch.func.jvp(loss, (features, weight, bias), (features, weight, bias))


def test_without_gradients_none_are_computed():
    inputs = {name: x.detach() for name, x in make_inputs().items()}
    outputs = reconstruction._chunked(*inputs.values(), False)
    assert [len(x) for x in outputs[2:]] == [0, 0, 0]
    assert not masked_word_loss(**inputs).loss.requires_grad


def test_no_masked_word_costs_nothing_and_is_differentiable():
    inputs = make_inputs(words=0)
    loss, predicted = masked_word_loss(**inputs)
    loss.backward()
    assert loss == 0
    assert predicted.shape == (0,)
    assert inputs["weight"].grad.abs().max() == 0


def test_memory_is_a_chunk_of_logits(monkeypatch):
    from benchmarks.harness.memory import peak_bytes

    words, vocabulary, width = 256, 4096, 4
    monkeypatch.setattr(reconstruction, "_CHUNK_LOGITS", 8 * vocabulary)
    features, weight = torch.randn(words, width, requires_grad=True), torch.randn(vocabulary, width)
    labels = torch.zeros(words, dtype=torch.long)
    assert peak_bytes(lambda: masked_word_loss(features, weight, None, labels), features.device) < words * vocabulary


def test_autocast_rounds_as_a_linear_layer_does():
    inputs = make_inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = masked_word_loss(**inputs).loss, naive(**inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for gradient, name in zip(torch.autograd.grad(found, [inputs["weight"], inputs["features"]]), "wf", strict=True):
        assert gradient.dtype == torch.float32, name


def test_one_graph_for_all_counts_of_words():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda **x: masked_word_loss(**x).loss, fullgraph=True, backend=counter)
    for words in (13, 7, 5, 11):
        inputs = make_inputs(torch.float32, words)
        torch.testing.assert_close(compiled(**inputs), naive(**inputs))
    assert counter.frame_count <= 2


def test_opcheck():
    inputs = make_inputs(torch.float32)
    torch.library.opcheck(torch.ops.fastvtp.word_loss.default, (*inputs.values(), True))


def test_liger_is_called_for_sums_in_float32(monkeypatch):
    """Liger has no CPU kernel: a stand-in shows what it is asked for and that its results come through."""
    calls = []

    def fused(features, weight, labels, bias, **options):
        calls.append(options)
        logits = linear(features, weight, bias)
        return SimpleNamespace(loss=cross_entropy(logits, labels, reduction="sum"), predicted_tokens=logits.argmax(1))

    module = ModuleType("liger_kernel.transformers.functional")
    module.liger_fused_linear_cross_entropy = fused
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(reconstruction, "_uses_liger", lambda features, backend: backend != "chunked")
    inputs = make_inputs()
    found, expected = masked_word_loss(**inputs), masked_word_loss(**inputs, backend="chunked")
    torch.testing.assert_close(found.loss, expected.loss)
    assert torch.equal(found.predicted, expected.predicted)
    assert calls == [{"reduction": "sum", "accum_dtype": torch.float32, "return_predicted_tokens": True}]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.zeros(VOCABULARY, WIDTH + 1)}, ValueError, r"weight \[37, 9\]"),
        ({"labels": torch.zeros(WORDS + 1, dtype=torch.long)}, ValueError, r"labels \[14\] do not fit"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias \[3\]"),
        ({"backend": "fused"}, ValueError, "backend is 'fused'"),
        ({"backend": "liger"}, RuntimeError, "backend 'liger' needs liger-kernel and CUDA tensors"),
    ],
)
def test_refuses(change, error, message):
    with pytest.raises(error, match=message):
        masked_word_loss(**(make_inputs() | change))
