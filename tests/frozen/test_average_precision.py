import math

import pytest
import torch

from fastvtp.frozen.detection import (
    average_precision,
    finite_mean,
    mean_average_precision,
)


def by_definition(scores, right, total, interpolated):
    """Over all thresholds that occur: recall gained there times precision there."""
    points = []
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= threshold
        hits = int((taken & right).sum())
        points.append((hits / total, hits / int(taken.sum())))
    area, before = 0.0, 0.0
    for number, (recall, precision) in enumerate(points):
        if interpolated:
            precision = max(later for _, later in points[number:])
        area += (recall - before) * precision
        before = recall
    return 100 * area


@pytest.mark.parametrize("interpolated", [False, True])
@pytest.mark.parametrize("levels", [3, 1000])
def test_against_the_definition_with_and_without_ties(interpolated, levels):
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 7, 40):
        for extra in (0, 3):
            scores = torch.randint(levels, (count,), generator=generator) / 7
            right = torch.rand(count, generator=generator) < 0.4
            right[0] = True
            total = int(right.sum()) + extra
            made = average_precision(scores, right, num_right=total, interpolated=interpolated)
            assert made == pytest.approx(by_definition(scores, right, total, interpolated))


def test_order_among_ties_does_not_matter():
    scores = torch.tensor([1.0, 1.0, 1.0, 0.0])
    values = [average_precision(scores, torch.tensor(right).bool()) for right in ([1, 0, 0, 0], [0, 0, 1, 0])]
    assert values == pytest.approx([100 / 3, 100 / 3])


def test_classes_that_nothing_shows_are_no_part_of_the_mean():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    mean, per_class = mean_average_precision(scores, torch.tensor([[False, False], [True, False]]))
    assert mean == pytest.approx(50)
    assert per_class[0] == pytest.approx(50)
    assert math.isnan(per_class[1])
    assert math.isnan(finite_mean([float("nan")]))


def test_faults_are_named():
    with pytest.raises(ValueError, match="scores must be finite"):
        average_precision(torch.tensor([torch.nan]), torch.tensor([True]))
    with pytest.raises(ValueError, match=r"expected scores \[N\] and right bool \[N\], got \[2\] and \[1\]"):
        average_precision(torch.zeros(2), torch.tensor([True]))
