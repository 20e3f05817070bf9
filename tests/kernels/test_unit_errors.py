"""What the device's units may add to results is enough for them and too little for a fault."""

from functools import partial
from typing import Any

import pytest

pytest.importorskip("triton")
import torch

from fastvtp_kernels import (
    axial_attention,
    contrastive_loss,
    masked_pixel_loss,
    sigmoid_loss,
    varlen_attention,
    varlen_attention_packed,
)
from fastvtp_kernels.testing import truths
from fastvtp_kernels.unit_errors import carried
from tests.kernels import test_triton_pixel_loss
from tests.kernels.attention_cases import OPTIONS, grid, of_views, packed, side_by_side
from tests.kernels.contrastive_cases import batches, of_batches
from tests.kernels.triton_cases import assert_meets_the_law, no_kernels, pattern, results

LENGTHS = [33, 0, 60, 1]
# Ops with float32 inputs as the tests of their kernels have them.
OPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "attention": (varlen_attention, packed(LENGTHS)),
    "attention with everything": (varlen_attention, packed(LENGTHS, **OPTIONS["everything"])),
    "attention of a large softcap": (varlen_attention, packed(LENGTHS, softcap=50.0)),
    "attention of a grid": (axial_attention, grid(2, 40, 2, 2, 16)),
    "InfoNCE": (partial(of_batches, contrastive_loss, label_smoothing=0.1), batches("contrastive_loss", 37, 24)),
    "SigLIP": (partial(of_batches, sigmoid_loss), batches("sigmoid_loss", 37, 24)),
    "pixel loss": (masked_pixel_loss, test_triton_pixel_loss.example()),
}
FIRST = {"InfoNCE": "a", "SigLIP": "a", "pixel loss": "prediction"}


def wrong(function, change):
    """The function, with the inputs that `change` makes of its own where kernels would run."""

    def run(backend, **inputs):
        return function(**(change(inputs) if backend == "triton" else inputs), backend="reference")

    return run


def larger(inputs, name):
    """One input larger by a thousandth: a wrong scale."""
    return inputs | {name: inputs[name] * (1 + 1e-3)}


def without_a_row(inputs, name):
    """One input without its last number in each row and head: a column that a mask has cut off."""
    kept = torch.ones_like(inputs[name])
    kept[..., -1] = 0
    return inputs | {name: inputs[name] * kept}


@pytest.mark.parametrize(("function", "inputs"), OPS.values(), ids=OPS)
def test_plain_pytorch_passes(function, inputs):
    assert_meets_the_law(wrong(function, dict), inputs)


@pytest.mark.parametrize("change", [larger, without_a_row])
@pytest.mark.parametrize("case", OPS)
def test_a_fault_of_a_thousandth_or_of_one_column_does_not(case, change):
    function, inputs = OPS[case]
    name = FIRST.get(case, "query")
    with pytest.raises(AssertionError, match=r"allowed .* approximate units"):
        assert_meets_the_law(wrong(function, partial(change, name=name)), inputs)


def bounds(function, inputs):
    """Results in float64 by the specification, and what units may add to them."""
    doubles = {
        name: x.detach().double().requires_grad_() if isinstance(x, torch.Tensor) and x.requires_grad else x
        for name, x in inputs.items()
    }
    with no_kernels(), truths() as runs:
        exact = results(partial(function, backend="reference"), doubles, pattern)
    leaves = {name: x for name, x in doubles.items() if isinstance(x, torch.Tensor) and x.requires_grad}
    return exact, carried(runs, exact["output"], leaves)


@pytest.mark.parametrize("case", OPS)
def test_no_result_is_allowed_a_ten_thousandth(case):
    """Of its largest element. Most are allowed some 2^-23; sums of magnitudes can be much larger than the sums."""
    exact, allowed = bounds(*OPS[case])
    for name, value in exact.items():
        relative = torch.as_tensor(allowed[name]).max() / value.abs().max()
        assert 1e-9 < relative < 1e-4, name


def assert_close(found, expected):
    for name, value in expected.items():
        torch.testing.assert_close(torch.as_tensor(found[name]), torch.as_tensor(value), rtol=1e-9, atol=0)


def test_bounds_go_through_what_surrounds_an_op():
    """A factor, also a negative one, multiplies all of them; views put them where the numbers came from."""
    example = test_triton_pixel_loss.example()
    _, plain = bounds(masked_pixel_loss, example)
    _, scaled = bounds(partial(test_triton_pixel_loss.scaled, -3.0), example)
    assert_close(scaled, {name: 3 * value for name, value in plain.items()})
    inputs = side_by_side(LENGTHS)
    _, of_one = bounds(varlen_attention_packed, inputs)
    _, of_three = bounds(of_views, inputs)
    assert_close(of_three, of_one)


def test_bounds_of_two_runs_add_up():
    example = test_triton_pixel_loss.example()

    def twice(**inputs):
        return masked_pixel_loss(**inputs) + 2 * masked_pixel_loss(**inputs)

    _, plain = bounds(masked_pixel_loss, example)
    _, both = bounds(twice, example)
    assert_close(both, {name: 3 * value for name, value in plain.items()})
