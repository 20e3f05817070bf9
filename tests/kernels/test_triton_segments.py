"""Triton's sums of rows against plain PyTorch."""

import pytest

pytest.importorskip("triton")
import torch

from fastvtp_kernels import tuning
from fastvtp_kernels.segments import kernels, reference
from fastvtp_kernels.testing import assert_within_tolerance, poisoned_empty
from fastvtp_kernels.tuning import Tile
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


CHUNK = 16
# Lists that begin, end, or lie between the borders of chunks, fill one, two and several of them, or none.
LONG = [0, 5, 27, 16, 32, 17, 0, 71, 15, 1, 50]


def in_chunks():
    return tuning.override("sum_chunks", Tile({"CHUNK": CHUNK, "BLOCK_ROWS": 4, "BLOCK_D": 4}))


@every_dtype
def test_long_lists_are_added_in_chunks(dtype):
    with in_chunks():
        rows, places, starts = listed(LONG)
        gradient = random_values(len(rows), 9, dtype=dtype).detach()
        with poisoned_empty():
            found = kernels.sum_rows(gradient, rows, places, starts, -1)
            without = kernels.sum_rows(gradient, rows, places, starts, 7)
        assert_close("sums", found, lambda x: reference.sum_rows(x, rows, places, starts, -1), gradient)
        assert not without[7].any()
        assert torch.equal(without[8:], found[8:])
        found = kernels.sum_by_key(gradient, rows.int(), len(LONG), dtype)
        assert_close("sums by key", found, lambda x: reference.sum_rows(x, rows, places, starts, -1), gradient)


def test_a_chunk_is_of_one_list_or_of_none(monkeypatch):
    launched, launch = [], kernels.launch

    def recorded(kernel, grid, *arguments, **options):
        launched.append(arguments)
        launch(kernel, grid, *arguments, **options)

    monkeypatch.setattr(kernels, "launch", recorded)
    rows, places, starts = listed(LONG)
    gradient = torch.ones(len(rows), 3, device=DEVICE)
    with in_chunks(), poisoned_empty():
        kernels.sum_rows(gradient, rows, places, starts, 7)
    partial = launched[0][4]
    firsts = range(0, sum(LONG) // CHUNK * CHUNK, CHUNK)
    listed_at = rows[places].tolist()
    whole = [len({*listed_at[first : first + CHUNK]}) == 1 and listed_at[first] != 7 for first in firsts]
    assert any(whole)
    assert partial[:, 0].tolist() == [CHUNK * each for each in whole]


def test_nobody_in_a_long_list():
    """A chunk of nobody, one with a single taker, and nobody at the list's ends."""
    dropped = [3, *range(32, 48), *range(49, 64), 70]
    rows, places, starts = listed([3, 68, 20], dropped)
    gradient = random_values(91, 3).detach()
    taken = torch.zeros(91, dtype=torch.bool)
    taken[[place for place in places.tolist() if place >= 0]] = True
    gradient[~taken] = float("nan")
    with in_chunks(), poisoned_empty():
        found = kernels.sum_rows(gradient, rows, places, starts, -1)
    kept = [[x for x in group.tolist() if x >= 0] for group in places.split([3, 68, 20])]
    torch.testing.assert_close(found, torch.stack([gradient[group].sum(0) for group in kept]))


TILES = tiles_of("sum_rows", "sum_chunks", "sum_sequences", "spread_sequences")


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
