"""Fixed positions at other sizes, against a plain computation of the interpolated table."""

import numpy as np
import pytest
import torch

from fastvtp.modules.positions import grid_positions, sincos_positions


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75, which is PyTorch's."""
    x, a = np.abs(x), -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    return np.where(x <= 1, near, np.where(x < 2, a * (x**3 - 5 * x**2 + 8 * x - 4), 0.0))


def tent(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(x))


def resampling(before: int, after: int, kernel, reach: int) -> np.ndarray:
    """The matrix [after, before] of an axis: centres of cells lie at (i + 0.5) / count, the border's cells go on."""
    matrix = np.zeros((after, before))
    for row in range(after):
        place = (row + 0.5) * before / after - 0.5
        for cell in range(int(np.floor(place)) - reach + 1, int(np.floor(place)) + reach + 1):
            matrix[row, min(max(cell, 0), before - 1)] += kernel(np.array(place - cell))
    return matrix


def plain_table(grid: tuple[int, int, int], width: int) -> np.ndarray:
    """[T, H, W, D]: sines on even, cosines on odd columns of the flat index over 10000^(2 floor(j / 2) / D)."""
    column = np.arange(width)
    angle = np.arange(np.prod(grid))[:, None] / 10000.0 ** (2 * (column // 2) / width)
    return np.where(column % 2 == 0, np.sin(angle), np.cos(angle)).reshape(*grid, width)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((8, 14, 14), (16, 28, 28)), ((8, 14, 14), (4, 7, 7)), ((5, 6, 4), (7, 6, 4)), ((5, 6, 4), (5, 9, 11)),
        ((3, 7, 7), (1, 5, 5)), ((1, 3, 3), (4, 8, 8)), ((6, 1, 1), (6, 2, 2)), ((4, 5, 5), (9, 3, 8)),
    ],
)  # fmt: skip
def test_the_table_is_interpolated_along_time_height_and_width(before, after):
    time = resampling(before[0], after[0], tent, 1)
    height, width = (resampling(before[axis], after[axis], cubic, 2) for axis in (1, 2))
    expected = np.einsum("Tt,Hh,Ww,thwd->THWd", time, height, width, plain_table(before, 22), optimize=True)
    table = grid_positions(after, 22, before)
    assert table.dtype == torch.float32
    np.testing.assert_allclose(table.numpy(), expected.reshape(-1, 22), atol=1e-5)


@pytest.mark.parametrize("grid", [(8, 14, 14), (3, 5, 7), (1, 1, 1)])
def test_at_its_own_grid_the_table_is_bit_identical(grid):
    flat = sincos_positions(int(np.prod(grid)), 31)
    assert torch.equal(grid_positions(grid, 31), flat)
    assert torch.equal(grid_positions(grid, 31, grid), flat)


def test_neighbours_stay_neighbours():
    """At twice the size a token lies half as far from the one below it: more alike, not less. The rebuilt table makes
    of the row below a row that is 24 tokens away instead of 14."""
    nearer = torch.cosine_similarity
    native, grown = sincos_positions(8 * 14 * 14, 64).view(8, 14, 14, 64), grid_positions((8, 28, 28), 64, (8, 14, 14))
    grown = grown.view(8, 28, 28, 64)
    before = nearer(native[:, 4, 4], native[:, 5, 4], dim=-1).mean()
    assert nearer(grown[:, 9, 9], grown[:, 10, 9], dim=-1).mean() > before + 0.05
    rebuilt = sincos_positions(8 * 28 * 28, 64).view(8, 28, 28, 64)
    assert nearer(rebuilt[:, 9, 9], rebuilt[:, 10, 9], dim=-1).mean() < before
