"""Triton's contrastive losses against the reference."""

from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("triton")
import torch

from fastvtp_kernels import contrastive_loss, hard_negatives, sigmoid_loss, tuning
from fastvtp_kernels.contrastive import op, tiles
from tests.kernels import contrastive_cases
from tests.kernels.contrastive_cases import (
    CONTRASTIVE,
    KINDS,
    LOSSES,
    assert_within_rounding,
    batches,
    ids,
    of_batches,
    pair,
    scalar,
)
from tests.kernels.triton_cases import (
    DEVICE,
    DTYPES,
    assert_meets_the_law,
    assert_repeats,
    no_kernels,
    random_values,
    results,
    strided,
    tiles_of,
)

SHAPES = {"5x80": (5, 80), "37x33": (37, 33)}
# Positives and label smoothing.
TARGETS = [("none", 0.0), ("none", 0.1), ("repeated", 0.0), ("repeated", 0.1), ("equal", 0.1)]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_loss = pytest.mark.parametrize("loss", LOSSES)


@pytest.fixture(autouse=True)
def _small_tiles():
    with contrastive_cases.small_tiles():
        yield


def single(loss: str, rows: int = 20, width: int = 24, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of the loss itself, all of which ask for gradients."""
    a, b = pair(rows, width, dtype=dtype)
    inputs: dict[str, Any] = {"a": a, "b": b, "logit_scale": scalar(14.0)}
    return inputs | ({"logit_bias": scalar(-3.0)} if loss == "sigmoid_loss" else {})


def without_gradient(inputs: dict[str, Any], *names: str) -> dict[str, Any]:
    return inputs | {name: inputs[name].detach() for name in names}


@every_shape
@pytest.mark.parametrize(("positives", "smoothing"), TARGETS)
@every_dtype
def test_contrastive_meets_the_law(dtype, positives, smoothing, shape):
    options = {"label_smoothing": smoothing, "positives": ids(positives, shape[0])}
    assert_meets_the_law(
        partial(of_batches, contrastive_loss, **options), batches("contrastive_loss", *shape, dtype=dtype)
    )


@pytest.mark.parametrize("shape", [*SHAPES.values(), (32, 32)], ids=str)
@every_dtype
def test_sigmoid_meets_the_law(dtype, shape):
    assert_meets_the_law(partial(of_batches, sigmoid_loss), batches("sigmoid_loss", *shape, dtype=dtype))


@every_loss
@every_dtype
def test_wide_features(dtype, loss):
    assert_meets_the_law(partial(of_batches, LOSSES[loss]), batches(loss, 5, 1024, dtype=dtype))


def check_rounding(loss: str, a: torch.Tensor, b: torch.Tensor, scale: float, **options: Any) -> None:
    scalars = {"logit_scale": scale} | ({"logit_bias": -3.0} if loss == "sigmoid_loss" else {})
    leaves = {"a": a, "b": b} | {name: scalar(x) for name, x in scalars.items()}
    assert_within_rounding(results(LOSSES[loss], leaves | options | {"backend": "triton"}), a, b, **scalars, **options)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 100.0, 1e4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["contrastive_loss", "contrastive_loss, repeated", "sigmoid_loss"])
@every_dtype
def test_extreme_scales_and_features(dtype, case, kind, scale):
    a, b = pair(17, 33, kind=kind, dtype=dtype)
    if dtype == torch.float16 and kind == "large" and scale > 100:
        # Their gradients are larger than float16's largest number.
        a, b = a.detach(), b.detach()
    loss, _, positives = case.partition(", ")
    options = {"positives": ids(positives, 17), "label_smoothing": 0.1} if positives else {}
    check_rounding(loss, a, b, scale, **options)


@every_loss
@every_dtype
def test_a_batch_of_one(dtype, loss):
    """The contrastive loss is then the difference of a logit and itself."""
    check_rounding(loss, *pair(1, 32, dtype=dtype), 14.0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_either_integer_dtype_makes_the_same_positives(dtype):
    inputs = batches("contrastive_loss", 20, 32)
    assert_meets_the_law(partial(of_batches, contrastive_loss, positives=ids("repeated", 20, dtype)), inputs)


def test_ids_are_compared_in_all_their_bits():
    a, b = pair(20, 32)
    far = torch.arange(20, device=DEVICE) * 2**32 - 2**40
    losses = [contrastive_loss(a, b, 9.0, positives=x, backend="triton") for x in (far, torch.arange(20).to(DEVICE))]
    assert torch.equal(*losses)


@every_loss
@every_dtype
def test_any_strides_will_do(dtype, loss):
    inputs = single(loss, dtype=dtype)
    views = inputs | {name: strided(inputs[name]) for name in ("a", "b")}
    assert not views["a"].is_contiguous()
    found, expected = (results(LOSSES[loss], x | {"backend": "triton"}) for x in (views, inputs))
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


TILES = tiles_of(*(name for name in CONTRASTIVE if name != "contrastive_sample"))


@pytest.mark.parametrize(("kernel", "dtype", "tile"), TILES.values(), ids=TILES)
def test_every_tile(kernel, dtype, tile):
    loss = "sigmoid_loss" if kernel == "contrastive_sigmoid" else "contrastive_loss"
    rows = tile.blocks.get("BLOCK_M", 32) + 5
    # The other kernels take the table's tiles, which are larger.
    with ExitStack() as stack:
        for name in CONTRASTIVE:
            stack.enter_context(tuning.override(name, tile if name == kernel else tuning.TABLE[name]["single"]["any"]))
        assert_meets_the_law(partial(of_batches, LOSSES[loss]), batches(loss, rows, 70, dtype=dtype, count=1))


@pytest.mark.parametrize("backend", ["triton", "reference"])
@every_loss
def test_only_what_is_asked_for_gets_a_gradient(loss, backend):
    inputs = single(loss)
    leaves = [name for name, x in inputs.items() if x.requires_grad]
    complete = results(LOSSES[loss], inputs | {"backend": backend})
    for wanted in leaves:
        some = without_gradient(inputs, *(name for name in leaves if name != wanted))
        output = LOSSES[loss](**some, backend=backend)
        output.backward()
        assert torch.equal(output, complete["output"])
        assert {name for name in leaves if some[name].grad is not None} == {wanted}
        # Fewer gradients are other products of matrices, which round as they like.
        torch.testing.assert_close(some[wanted].grad, complete[f"grad of {wanted}"], rtol=1e-6, atol=1e-7)


@every_loss
def test_without_gradients_no_logit_has_one(loss):
    """No array of the size of the logits is made then."""
    inputs = single(loss)
    sizes: list[int] = []
    allocate = torch.Tensor.new_empty

    def recorded(self, *size, **options):
        tensor = allocate(self, *size, **options)
        sizes.append(tensor.numel())
        return tensor

    with patch.object(torch.Tensor, "new_empty", recorded):
        expected = LOSSES[loss](**inputs, backend="triton")
        assert 20 * 20 in sizes
        sizes.clear()
        with torch.no_grad():
            unrecorded = LOSSES[loss](**inputs, backend="triton")
    assert 20 * 20 not in sizes
    assert torch.equal(unrecorded, expected)
    assert not unrecorded.requires_grad


@pytest.mark.parametrize("backend", ["triton", "reference"])
@every_loss
def test_the_gradient_of_a_multiple_and_of_a_kept_graph(loss, backend):
    inputs = single(loss)
    leaves = [x for x in inputs.values() if x.requires_grad]
    output = LOSSES[loss](**inputs, backend=backend)
    once, again = (torch.autograd.grad(output, leaves, retain_graph=True) for _ in range(2))
    multiple = torch.autograd.grad(-4 * output, leaves)
    for first, second, third in zip(once, again, multiple, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(-4 * first, third)


@pytest.mark.parametrize("backend", ["triton", "reference"])
@every_loss
def test_scalars_are_numbers_or_tensors_of_one_element(loss, backend):
    inputs = single(loss)
    scalars = {name: x for name, x in inputs.items() if x.numel() == 1}
    expected = results(LOSSES[loss], inputs | {"backend": backend})
    numbers = results(LOSSES[loss], inputs | {name: x.item() for name, x in scalars.items()} | {"backend": backend})
    assert numbers.keys() == {"output", "grad of a", "grad of b"}
    vectors = {name: x.detach().reshape(1).requires_grad_() for name, x in scalars.items()}
    for found in (numbers, results(LOSSES[loss], inputs | vectors | {"backend": backend})):
        assert found["output"].shape == ()
        for name, value in found.items():
            shape = (1,) if name.removeprefix("grad of ") in vectors else expected[name].shape
            assert torch.equal(value, expected[name].reshape(shape)), name


@pytest.mark.parametrize("backend", ["triton", "reference"])
@every_loss
def test_autocast_rounds_the_features_alone(loss, backend):
    inputs = single(loss)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found = results(LOSSES[loss], inputs | {"backend": backend})
    low = {name: inputs[name].detach().bfloat16().requires_grad_() for name in ("a", "b")}
    cast = results(LOSSES[loss], inputs | low | {"backend": backend})
    for name, value in found.items():
        assert value.dtype == torch.float32, name
        assert torch.equal(value, cast[name].float()), name


@pytest.mark.parametrize("loss", LOSSES)
@every_dtype
def test_many_strips_of_gradients(dtype, loss, monkeypatch):
    """Seven rows of logits' gradients at a time: three strips, whose last is shorter."""
    heights = []

    def strip_rows(columns):
        heights.append(columns)
        return 7

    monkeypatch.setattr(tiles, "strip_rows", strip_rows)
    inputs = batches(loss, 20, 24, dtype=dtype)
    assert_meets_the_law(partial(of_batches, LOSSES[loss]), inputs)
    assert set(heights) == {20}
    if loss == "contrastive_loss":
        options = {"positives": ids("repeated", 20), "label_smoothing": 0.2}
        assert_meets_the_law(partial(of_batches, contrastive_loss, **options), inputs)


@every_loss
def test_repeats_bit_for_bit(loss):
    assert_repeats(LOSSES[loss], single(loss, dtype=torch.bfloat16) | {"backend": "triton"})


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_may_lie_anywhere_in_memory(dtype):
    columns = torch.tensor([[1, 9], [0, 9], [1, 9], [2, 9], [2, 9]], dtype=dtype, device=DEVICE)
    a, b = (random_values(5, 32, seed=seed).detach() for seed in (0, 1))
    strided_ids, ids = columns[:, 0], columns[:, 0].clone()
    losses = [contrastive_loss(a, b, 5.0, positives=found, backend="triton") for found in (strided_ids, ids)]
    assert torch.equal(*losses)
    drawn = [hard_negatives(a, b, 5.0, seed=1, groups=found, backend="triton") for found in (strided_ids, ids)]
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one, other)


@every_loss
@pytest.mark.parametrize("shape", [(5, 80), (37, 33)], ids=str)
def test_three_products_of_bfloat16(loss, shape):
    """Each is left with 2^-16 of the products of sizes, where bfloat16 features alone lose 2^-8."""
    inputs = batches(loss, *shape, count=1)
    exact = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    found = results(partial(of_batches, LOSSES[loss], precision="bf16x3", backend="triton"), inputs)
    with no_kernels():
        expected = results(partial(of_batches, LOSSES[loss], backend="reference"), exact)
        low = results(
            partial(of_batches, LOSSES[loss], backend="reference"),
            inputs | {name: inputs[name].detach().bfloat16().float().requires_grad_() for name in ("a", "b")},
        )
    for name, value in found.items():
        error, others = ((x.double() - expected[name]).abs().max() for x in (value, low[name]))
        assert error <= others / 16, name
        assert error <= 2**-12 * expected[name].abs().max(), name


def test_hard_negatives_by_three_products_of_bfloat16():
    """Of features that bfloat16 holds nothing is left out, and the same is drawn."""
    a, b = (x.detach().bfloat16().float() for x in pair(18, 17))
    options = {"seed": 3, "groups": ids("repeated", 18), "backend": "triton"}
    split = hard_negatives(a, b, 9.0, precision="bf16x3", **options)
    assert torch.equal(torch.stack(split), torch.stack(hard_negatives(a, b, 9.0, **options)))


def test_strips_are_whole_tiles():
    assert [tiles.strip_rows(columns) for columns in (20_000, 32_768, 1 << 20)] == [6656, 4096, 1024]


def test_large_batches_on_a_gpu_take_three_products(monkeypatch):
    class Features:
        """float32 features on a GPU, of which only that counts."""

        is_cuda, dtype = True, torch.float32

        def __init__(self, rows):
            self.rows = rows

        def __len__(self):
            return self.rows

    assert not op._splits("x", None, Features(2048), None)
    assert op._splits("x", None, Features(2049), None)
    assert not op._splits("x", "float32", Features(4096), None)
    assert not op._splits("x", None, torch.zeros(4096, 2), None)
    assert not op._splits("x", "bf16x3", torch.zeros(2, 2, dtype=torch.float16), None)
    monkeypatch.setattr(op, "allows_tf32", lambda: True)
    assert not op._splits("x", None, Features(4096), None)
    with pytest.raises(ValueError, match="precision is 'half', expected 'float32', 'bf16x3' or None"):
        contrastive_loss(*pair(3, 4), 1.0, precision="half")


def test_the_choice_of_products_does_not_break_a_compiled_graph():
    choose = torch.compile(lambda x: x + 1 if op.allows_tf32() else x, backend="eager", fullgraph=True)
    assert choose(torch.zeros(())).item() == op.allows_tf32()
