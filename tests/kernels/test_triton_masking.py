"""Triton's tube_mask against the reference, bit for bit."""
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false
# (The body of a @triton.jit function is Triton's language, which looks like Python.)

import random
from typing import Any

import pytest

pytest.importorskip("triton")
import torch
import triton
import triton.language as tl

from fastvtp_kernels import philox, tube_mask, tuning
from fastvtp_kernels.masking import kernels
from fastvtp_kernels.testing import poisoned_empty
from tests.kernels.test_philox import KNOWN_ANSWERS
from tests.kernels.triton_cases import DEVICE, tiles_of

EDGES = {
    "seed": [0, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1],
    "step": [0, 1, 2**31 - 1, 2**31, 2**32 - 1],
    "id": [0, 1, 2**31, 2**32 - 1, 2**32, 2**62 + 5, 2**63 - 1],
}
# The key is the seed xor a constant; these make it 0, 1, small and negative, where Triton takes another integer type.
EDGES["seed"] += [philox.TUBE_MASK ^ key for key in (0, 1, 2**31, 2**64 - 5)]


def assert_same_mask(sample_ids, grid, mask_ratio, **options):
    ids = torch.tensor(sample_ids, dtype=torch.int64)
    expected = tube_mask(len(ids), grid, mask_ratio, **options, sample_ids=ids, backend="reference")
    with poisoned_empty():
        actual = tube_mask(len(ids), grid, mask_ratio, **options, sample_ids=ids.to(DEVICE), backend="triton")
    for name, one, other in zip(expected._fields, actual, expected, strict=True):
        assert one.dtype == torch.int32
        assert torch.equal(one.cpu(), other), (name, options)


def test_a_thousand_random_samples():
    draw = random.Random(0)
    for _ in range(40):
        ids = [draw.getrandbits(draw.choice((8, 32, 33, 63))) for _ in range(25)]
        assert_same_mask(ids, (1, 3, 5), 0.6, seed=draw.getrandbits(64), step=draw.getrandbits(32))


@pytest.mark.parametrize("seed", EDGES["seed"])
def test_edges_of_the_seed(seed):
    assert_same_mask([3, 2**40], (2, 2, 3), 0.5, seed=seed, step=5)


@pytest.mark.parametrize("step", EDGES["step"])
def test_edges_of_the_step(step):
    assert_same_mask([3, 2**40], (2, 2, 3), 0.5, seed=9, step=step)


def test_edges_of_the_sample_id():
    assert_same_mask(EDGES["id"], (2, 2, 3), 0.5, seed=9, step=2)


@pytest.mark.parametrize("mask_ratio", [0, 0.2, 0.9, 0.99])
@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 1, 2), (2, 5, 7), (1, 4, 8)])
def test_every_count_of_hidden_cells(grid, mask_ratio):
    assert_same_mask([4, 8], grid, mask_ratio, seed=1)


def test_videomaes_grid():
    assert_same_mask([0, 77], (2, 14, 14), 0.9, seed=6, step=100)


def test_no_clip():
    assert_same_mask([], (2, 3, 3), 0.5, seed=0)


@pytest.mark.parametrize(("sample", "hidden"), [(316369, 248), (342327, 215), (363065, 217)])
def test_the_smaller_of_two_cells_with_equal_bits_is_hidden(sample, hidden):
    """Two of these samples' 256 cells draw the same 32 bits, and only one of the two is to be hidden."""
    bits = philox.random_words(philox.TUBE_MASK, 0, (sample, 0, 0, torch.arange(256)))[0].sort().values
    assert bits[hidden - 1] == bits[hidden]
    assert_same_mask([sample], (1, 16, 16), hidden / 256, seed=0)


TILES = tiles_of("tube_mask")


@pytest.mark.parametrize(("kernel", "_", "tile"), TILES.values(), ids=TILES)
def test_every_tile(kernel, _, tile):
    with tuning.override(kernel, tile):
        assert_same_mask([1, 2, 2**50], (2, 5, 5), 0.7, seed=3, step=4)


def test_a_strided_list_of_ids_and_repeated_calls():
    ids = torch.arange(0, 2**40, 2**36, device=DEVICE)
    first, second = (tube_mask(8, (2, 2, 3), 0.5, seed=1, sample_ids=ids[::2], backend="triton") for _ in range(2))
    packed = tube_mask(8, (2, 2, 3), 0.5, seed=1, sample_ids=ids[::2].contiguous(), backend="triton")
    for one, *others in zip(first, second, packed, strict=True):
        assert all(torch.equal(one, other) for other in others)


@triton.jit(do_not_specialize=["key", "step"])
def _draw(output_ptr, sample_ptr, cell_ptr, key, step, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    bits = kernels._random_bits(key, tl.load(sample_ptr), step, tl.load(cell_ptr + place))
    tl.store(output_ptr + place, bits)


def signed(value, bits):
    """The integer whose two's complement has the bits of an unsigned one: so the launcher hands them over."""
    return value - (value >> (bits - 1) << bits)


def draw(key, sample, step, cells):
    """The first Philox word of each cell, int64, drawn in Triton."""
    cell = torch.tensor([signed(cell, 32) for cell in cells], dtype=torch.int32, device=DEVICE)
    samples = torch.tensor([signed(sample, 64)], device=DEVICE)
    output = torch.empty(len(cells), dtype=torch.int64, device=DEVICE)
    kernel: Any = _draw
    kernel[(1,)](output, samples, cell, signed(key, 64), signed(step, 32), COUNT=len(cells))
    return output.cpu()


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_philox(counter, key, expected):
    c0, c1, c2, c3 = counter
    assert draw(key[0] | key[1] << 32, c0 | c1 << 32, c2, [c3]).tolist() == [expected[0]]


def test_triton_and_torch_draw_the_same_words():
    draws, cells = random.Random(1), [*range(60), 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    for bits in (8, 31, 32, 33, 63, 64) * 3:
        key, sample, step = draws.getrandbits(bits), draws.getrandbits(min(bits, 63)), draws.getrandbits(min(bits, 32))
        counter = (*philox.split_words(sample), step, torch.tensor(cells))
        expected = philox.random_words(philox.TUBE_MASK, key ^ philox.TUBE_MASK, counter)[0]
        assert torch.equal(draw(key, sample, step, cells), expected)


def test_a_frame_too_large_for_one_program_is_refused():
    with pytest.raises(ValueError, match="a frame has 16900 cells, the kernel ranks up to 16384; use backend='ref"):
        tube_mask(1, (1, 130, 130), 0.5, seed=0, device=DEVICE, backend="triton")
