"""The tolerance law and poisoned memory, which all kernel tests rest on."""

import pytest
import torch

from fastvtp_kernels.testing import assert_within_tolerance, poisoned_empty


def test_twice_the_reference_error_passes_and_more_does_not():
    exact = torch.tensor([1.0, -4.0, 100.0], dtype=torch.float64)
    reference = (exact + torch.tensor([0.0, 0.5, 0.0])).float()
    assert_within_tolerance("output", (exact + torch.tensor([1.0, 0.0, 0.0])).float(), reference, exact)
    with pytest.raises(AssertionError, match=r"grad of weight: 2\.25 at \(0,\), expected 1: error 1\.25, allowed 1 "):
        assert_within_tolerance("grad of weight", (exact + torch.tensor([1.25, 0, 0])).float(), reference, exact)


def test_an_exact_reference_still_allows_two_rounding_steps():
    exact = torch.tensor([3.0], dtype=torch.float64)
    step = torch.finfo(torch.bfloat16).eps
    assert_within_tolerance("output", exact.bfloat16() + 4 * step, exact.bfloat16(), exact)
    with pytest.raises(AssertionError):
        assert_within_tolerance("output", exact.bfloat16() + 8 * step, exact.bfloat16(), exact)


def test_slack_follows_the_magnitude_of_the_tensor():
    exact = torch.full((2,), 1e-6, dtype=torch.float64)
    with pytest.raises(AssertionError):
        assert_within_tolerance("grad", torch.zeros(2).bfloat16(), exact.bfloat16(), exact)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_result_fails_and_is_located(value):
    exact = torch.zeros(2, 3, dtype=torch.float64)
    actual = torch.zeros(2, 3)
    actual[1, 2] = value
    with pytest.raises(AssertionError, match=r"output: (nan|inf) at \(1, 2\)"):
        assert_within_tolerance("output", actual, exact.float(), exact)


def test_shape_dtype_and_broken_references_are_refused():
    exact = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"actual has shape \[3\], not \[2\]"):
        assert_within_tolerance("output", torch.zeros(3), torch.zeros(2), exact)
    with pytest.raises(AssertionError, match=r"reference_same_dtype is torch\.float16"):
        assert_within_tolerance("output", torch.zeros(2), torch.zeros(2).half(), exact)
    with pytest.raises(ValueError, match=r"expected torch\.float64"):
        assert_within_tolerance("output", torch.zeros(2), torch.zeros(2), exact.float())
    with pytest.raises(ValueError, match="not finite"):
        assert_within_tolerance("output", torch.zeros(2), torch.zeros(2), exact * float("nan"))


def test_poisoned_empty_fills_every_way_of_allocating_and_is_undone():
    like = torch.zeros(2, 2)
    original = torch.empty
    with poisoned_empty():
        for tensor in (torch.empty(2, 2), torch.empty_like(like), torch.empty_strided((2,), (1,)), like.new_empty(3)):
            assert tensor.isnan().all()
        assert torch.empty(2, dtype=torch.int32).tolist() == [2**31 - 1] * 2
        assert torch.empty(2, dtype=torch.bool).all()
        assert torch.empty(2, requires_grad=True).requires_grad
    assert torch.empty is original
    assert not like.isnan().any()
