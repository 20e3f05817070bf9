import pytest
import torch

from fastvtp.models.asking import Asking, attend_from
from fastvtp.models.bert import BertEncoder
from fastvtp.models.layers import Attention, Packing

LENGTHS, ROWS, ASKING = (5, 1, 6), (0, 3, 6, 7, 11), (2, 0, 3)


def packing(*lengths: int) -> Packing:
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return Packing(cu_seqlens, max(lengths))


@pytest.fixture
def rows() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(12, 32, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_rows_that_ask_get_what_the_whole_attention_gives_them(rows, qkv_bias):
    attention = Attention(32, 4, qkv_bias).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    asking = Asking(torch.tensor(ROWS), packing(*ASKING))
    inputs = rows, *attention.parameters()
    whole = attention(rows, packing(*LENGTHS))[asking.rows]
    part = attend_from(attention, rows, packing(*LENGTHS), asking)
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)
    incoming = torch.randn_like(part)
    for ours, expected in zip(*(torch.autograd.grad(out, inputs, incoming) for out in (part, whole)), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 3])
def test_an_encoder_of_which_some_rows_are_wanted(rows, depth):
    encoder = BertEncoder(32, depth, num_heads=4, hidden=64, dropout=0.0).double()
    asking = Asking(torch.tensor(ROWS), packing(*ASKING))
    expected = encoder(rows, packing(*LENGTHS))[asking.rows]
    torch.testing.assert_close(encoder(rows, packing(*LENGTHS), asking), expected, rtol=0, atol=1e-12)


def test_dropout_is_drawn_for_rows_that_ask_too(rows):
    attention = Attention(32, 4, dropout=0.5).double().train()
    first = Asking.first(packing(*LENGTHS))
    assert first.rows.tolist() == [0, 5, 6]
    draws = [attend_from(attention, rows, packing(*LENGTHS), first) for _ in range(2)]
    assert not torch.equal(*draws)
    again = [attend_from(attention.eval(), rows, packing(*LENGTHS), first) for _ in range(2)]
    assert torch.equal(*again)
