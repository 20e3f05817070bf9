"""The short regime's backward pass: two programs for each sequence and head, one side of which stays on chip."""

import pytest

pytest.importorskip("triton")
import torch

from fastvtp_kernels import tuning, varlen_attention
from fastvtp_kernels.attention import kernels, resident
from fastvtp_kernels.tuning import Tile
from tests.kernels.attention_cases import forced, only, packed
from tests.kernels.triton_cases import assert_meets_the_law, pattern, results

# numpy, in the interpreter, announces what some of these tests are about
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize(("block", "staying"), [(16, 32), (32, 16)])
@pytest.mark.parametrize("causal", [False, True])
def test_tiles_of_both_sides_may_differ(block, staying, causal):
    tile = Tile({"BLOCK": block, "BLOCK_STAYING": staying})
    with forced("resident"), tuning.override("resident_backward_64", tile):
        assert_meets_the_law(varlen_attention, packed([33, 0, 60, 1], [16, 4, 65, 0], heads=1, causal=causal))


def test_the_weight_of_a_key_that_does_not_exist_stays_finite():
    """All logits are about -400: 2 ** -lse, the weight of the zeros beyond the last key, is no float32 number."""
    inputs = packed([20], heads=1, tail=0)
    with torch.no_grad():
        inputs["query"].div_(50).add_(10)
        inputs["key"].div_(50).sub_(10)
    with forced("resident"):
        assert_meets_the_law(varlen_attention, inputs)


@pytest.mark.parametrize("lengths", [[20], [20, 40, 16]], ids=str)
def test_what_a_key_that_does_not_exist_would_add_may_be_too_large_for_float16(lengths):
    """Its weight would be 1, its value 0, and output . grad is 8e4; those that exist hardly differ."""
    inputs = packed(lengths, heads=1, dtype=torch.float16, tail=0, backend="triton")
    with torch.no_grad():
        inputs["query"].div_(50).add_(2)
        inputs["key"].div_(50).sub_(2)
        inputs["value"].div_(500).add_(1)
    with forced("resident"):
        output = varlen_attention(**inputs)
        found = torch.autograd.grad(output, inputs["query"], torch.full_like(output, 5000.0))[0]
    expected = varlen_attention(**inputs | {"backend": "specification"})
    expected = torch.autograd.grad(expected, inputs["query"], torch.full_like(output, 5000.0))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=40.0)


def test_queries_without_keys_have_no_gradient_whatever_comes_back_for_them():
    inputs = packed([5, 33], [0, 35], heads=1, tail=0, backend="triton")
    with forced("resident"):
        output = varlen_attention(**inputs)
        grad = torch.ones_like(output)
        grad[2] = float("inf")
        found = torch.autograd.grad(output, inputs["query"], grad)[0]
    assert not found[:5].any()
    assert found[5:].isfinite().all()


@pytest.mark.parametrize("source", ["key", "value"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_keys_without_queries_have_no_gradient_whatever_they_hold(source, value):
    inputs = packed([0, 3], [5, 4], heads=1, tail=0, backend="triton")
    with torch.no_grad():
        inputs[source][2, 0, 1] = value
    with forced("resident"):
        found = results(varlen_attention, inputs)
    for name in ("grad of key", "grad of value"):
        assert not found[name][:5].any()
        assert found[name][5:].isfinite().all()


def test_backward_is_one_launch_of_two_programs_for_each_sequence_and_head(monkeypatch):
    launched, launch = [], kernels.launch

    def recorded(kernel, grid, *arguments, **options):
        launched.append((kernel, grid))
        launch(kernel, grid, *arguments, **options)

    monkeypatch.setattr(kernels, "launch", recorded)
    inputs = packed([33, 40, 0], heads=2, width=64, dtype=torch.bfloat16, backend="triton")
    with only("resident"), tuning.targeting("sm_90"):
        output = varlen_attention(**inputs)
        launched.clear()
        torch.autograd.grad(output, inputs["query"], pattern(output))
    assert launched == [(resident.resident_backward, (12,))]
