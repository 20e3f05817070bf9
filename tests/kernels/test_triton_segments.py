"""Triton's sums of rows against plain PyTorch."""

import pytest

pytest.importorskip("triton")
import torch

from fastvtp_kernels import tuning
from fastvtp_kernels.segments import kernels, reference
from fastvtp_kernels.testing import assert_within_tolerance, poisoned_empty
from tests.kernels.triton_cases import DEVICE, DTYPES, random_values, tiles_of

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Takers of each of some rows; a row that nobody takes, one taker, and as many as fill blocks of a tile and one more.
COUNTS = [0, 1, 2, 31, 32, 33, 0, 65]


def listed(counts, dropped=()):
    """The row that each taker takes, in no order, and the lists of takers; those that are dropped stand there as -1."""
    rows = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
    places = rows.argsort(stable=True)
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0)], dtype=torch.int32)
    for place in dropped:
        places[place] = -1
    return rows.to(DEVICE), places.to(DEVICE), starts.to(DEVICE)


def assert_close(name, found, function, x):
    """By the tolerance law: against the same in float64, and in the dtype of x."""
    assert_within_tolerance(name, found, function(x).to(found.dtype), function(x.double()))


@pytest.mark.parametrize("width", [1, 33, 130])
@every_dtype
def test_sums_of_taken_rows(dtype, width):
    rows, places, starts = listed(COUNTS)
    gradient = random_values(len(rows), width, dtype=dtype).detach()
    with poisoned_empty():
        found = kernels.sum_rows(gradient, rows, places, starts, -1)
        without = kernels.sum_rows(gradient, rows, places, starts, 3)
    assert found.dtype == dtype
    assert_close("sums", found, lambda x: reference.sum_rows(x, rows, places, starts, -1), gradient)
    assert not without[3].any()
    assert torch.equal(without[4:], found[4:])


def test_places_of_nobody():
    rows, places, starts = listed([3, 4, 2], dropped=[0, 1, 2, 5])
    gradient = random_values(9, 3).detach()
    gradient[rows == 0] = float("nan")
    found = kernels.sum_rows(gradient, rows, places, starts, -1)
    kept = [[x for x in group.tolist() if x >= 0] for group in places.split([3, 4, 2])]
    torch.testing.assert_close(found, torch.stack([gradient[group].sum(0) for group in kept]))


@pytest.mark.parametrize("width", [130])
@every_dtype
def test_sums_of_sequences_and_their_gradient(dtype, width):
    counts = [0, 1, 31, 32, 33, 0, 65]
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0)], dtype=torch.int32, device=DEVICE)
    x = random_values(sum(counts) + 3, width, dtype=dtype).detach()
    values = random_values(len(counts), width, seed=2).detach()
    with poisoned_empty():
        found = kernels.sum_sequences(x[:-3], offsets)
        spread = kernels.spread_sequences(values, offsets, len(x), dtype)
    assert found.dtype == torch.float32
    assert_close("sums", found, lambda x: reference.sum_sequences(x, offsets), x[:-3])
    assert not spread[-3:].any()
    assert torch.equal(spread, reference.spread_sequences(values, offsets, len(x), dtype))


TILES = tiles_of("sum_rows", "sum_sequences", "spread_sequences")


@pytest.mark.parametrize(("kernel", "dtype", "tile"), TILES.values(), ids=TILES)
def test_every_tile(kernel, dtype, tile):
    with tuning.override(kernel, tile):
        test_sums_of_taken_rows(dtype, 5)
        test_sums_of_sequences_and_their_gradient(dtype, 5)


def test_repeats_bit_for_bit():
    rows, places, starts = listed(COUNTS)
    gradient = random_values(len(rows), 33).detach()
    first = kernels.sum_rows(gradient, rows, places, starts, -1)
    for _ in range(4):
        assert torch.equal(kernels.sum_rows(gradient, rows, places, starts, -1), first)
