"""Sizes that seldom change."""

import pytest
import torch

from fastvtp.modules.capacity import bucket, length_bound, pad_rows, waste


def test_buckets_have_few_sizes_and_waste_little():
    """One in 16 of counts above 8, on average, and never more than one in 8."""
    sizes = [bucket(count) for count in range(1, 4097)]
    assert all(size >= count for count, size in enumerate(sizes, start=1))
    assert sizes == sorted(sizes)
    assert bucket(0) == 1
    assert sorted(set(sizes)) == [
        *range(1, 17),
        *(step * n for step in (2, 4, 8, 16, 32, 64, 128, 256) for n in range(9, 17)),
    ]
    wasted = [waste(count, size) for count, size in enumerate(sizes, start=1)]
    assert max(wasted) < 1 / 8
    assert sum(wasted[256:]) / len(wasted[256:]) < 1 / 16
    assert {bucket(count, bits=3) for count in range(9, 17)} == {10, 12, 14, 16}


@pytest.mark.parametrize(("length", "limit", "bound"), [(1, 512, 64), (64, 512, 64), (65, 512, 128), (500, 501, 501)])
def test_bounds_of_lengths(length, limit, bound):
    assert length_bound(length, limit) == bound


def test_rows_are_padded_behind():
    rows = torch.arange(6, dtype=torch.int32).view(3, 2)
    padded = pad_rows(rows, 5, -1)
    assert padded.tolist() == [[0, 1], [2, 3], [4, 5], [-1, -1], [-1, -1]]
    assert padded.dtype == torch.int32
