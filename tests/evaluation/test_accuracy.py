import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvtp.evaluation.accuracy import percent, top_k_credit


@pytest.mark.parametrize(
    ("scores", "right", "k", "credit"),
    [
        ([3.0, 1.0, 2.0], 0, 1, 1),
        ([3.0, 1.0, 2.0], 2, 1, 0),
        ([3.0, 1.0, 2.0], 2, 2, 1),
        ([1.0, 1.0, 1.0, 1.0], 0, 1, 0.25),
        ([1.0, 1.0, 1.0, 1.0], 3, 3, 0.75),
        ([5.0, 1.0, 1.0, 0.0], 2, 2, 0.5),
        ([5.0, 1.0, 1.0, 0.0], 2, 3, 1),
    ],
)
def test_tied_scores_share_the_credit(scores, right, k, credit):
    assert top_k_credit(torch.tensor(scores), right, k) == credit


@settings(max_examples=50, deadline=None, derandomize=True)
@given(scores=st.lists(st.integers(0, 3), min_size=1, max_size=8), k=st.integers(1, 8))
def test_the_credits_of_all_candidates_add_up_to_the_places_there_are(scores, k):
    credits = [top_k_credit(torch.tensor(scores), right, k) for right in range(len(scores))]
    assert sum(credits) == pytest.approx(min(k, len(scores)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="scores must be finite"):
        top_k_credit(torch.tensor([0.0, bad]), 0, 1)


def test_percent():
    assert percent(iter([1.0, 0.0, 0.5, 0.5])) == 50
