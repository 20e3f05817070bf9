"""Accuracy that knows about ties."""

from collections.abc import Iterable

from torch import Tensor


def top_k_credit(scores: Tensor, right: int, k: int) -> float:
    """Compute the probability that the `right` one of `scores` [C] is among the k largest when the tied are put in
    random order.

    So equal scores for all come to chance, however the right answers are placed.

    Raises ValueError for a score that is not finite.
    """
    if not scores.isfinite().all():
        raise ValueError("scores must be finite, got NaN or infinity: look for a NaN in the model")
    greater = int((scores > scores[right]).sum())
    tied = int((scores == scores[right]).sum())
    return min(max((k - greater) / tied, 0.0), 1.0)


def percent(credits: Iterable[float]) -> float:
    """Compute the mean credit in percent; there must be at least one."""
    credits = list(credits)
    return 100 * sum(credits) / len(credits)
