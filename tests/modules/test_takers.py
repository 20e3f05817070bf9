"""The way back of gradients of rows that are taken of a table: lists of takers, as kernels read them and as PyTorch."""

import pytest

pytest.importorskip("triton")
import torch
from torch.nn.functional import embedding

from fastvtp.modules.rows import Pick, Takers, take_rows
from fastvtp.systems.videomae.decoder import _takers
from fastvtp_kernels.segments import kernels

ROWS = torch.tensor([4, 1, 1, 0, 4, 2, 1])


def gradient_of(rows, num_rows, incoming, ignored=None):
    table = torch.zeros(num_rows, incoming.shape[1], requires_grad=True)
    return torch.autograd.grad(embedding(rows, table, ignored), table, incoming)[0]


def check(rows, takers, num_rows, ignored=None):
    """Both roads against an embedding's own gradient."""
    incoming = torch.arange(3.0 * len(rows)).view(-1, 3)
    expected = gradient_of(rows, num_rows, incoming, ignored)
    lists = takers.places, takers.starts, takers.ignored
    assert torch.equal(kernels.sum_rows(incoming, rows, *lists), expected)
    table = torch.zeros(num_rows, 3, requires_grad=True)
    assert torch.equal(torch.autograd.grad(take_rows(table, Pick(rows, takers)), table, incoming)[0], expected)


def test_lists_by_sorting():
    takers = Takers.of(ROWS, 6)
    lists = takers.places.tensor_split(takers.starts[1:-1].long())
    assert [x.tolist() for x in lists] == [[3], [1, 2, 6], [5], [], [0, 4], []]
    check(ROWS, takers, 6)


def test_a_row_that_gets_no_gradient():
    check(ROWS, Takers.of(ROWS, 6, ignored=1), 6, ignored=1)


@pytest.mark.parametrize("picked", [[6, 0, 1], [3], []])
def test_some_of_a_pick(picked):
    picked = torch.tensor(picked, dtype=torch.int64)
    some = Pick(ROWS, Takers.of(ROWS, 6)).among(picked)
    assert torch.equal(some.rows, ROWS[picked])
    assert some.takers is not None
    check(some.rows, some.takers, 6)
    again = some.among(torch.arange(len(picked))).takers
    assert again is not None
    check(some.rows, again, 6)


def test_mask_tokens_of_a_decoder():
    """Two clips with a visible tubelet each, and two predicted ones of five places."""
    numbers, predicted = torch.arange(6).view(2, 3), torch.tensor([[3, 1], [4, 3]], dtype=torch.int32)
    rows = torch.tensor([0, 2 + 3, 2 + 1, 1, 2 + 4, 2 + 3])
    check(rows, _takers(numbers, 1, predicted, 5), 7)


def test_different_rows_are_copied_back():
    table = torch.zeros(5, 3, requires_grad=True)
    incoming = torch.arange(6.0).view(2, 3)
    rows = torch.tensor([4, 1])
    found = torch.autograd.grad(take_rows(table, rows), table, incoming)[0]
    assert torch.equal(found, gradient_of(rows, 5, incoming))
    with pytest.raises(ValueError, match="rows name a row twice: their gradients need a Pick with its Takers"):
        take_rows(table, ROWS[:3])
    assert torch.equal(take_rows(table.detach(), ROWS[:3]), torch.zeros(3, 3))
