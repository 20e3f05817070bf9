from dataclasses import replace

import pytest
import torch
from torch.nn.functional import linear

from fastvtp.modules.attention import Attention
from fastvtp.modules.bert import BertEncoder
from fastvtp.modules.layers import Transformer
from fastvtp.modules.packing import Packing
from fastvtp.modules.rows import Pick, QueryRows, Rows, Takers, take_rows
from fastvtp.systems.videomae.decoder import DecoderSizes, VideoDecoder

LENGTHS, QUERIES, COUNTS = (5, 1, 6), (0, 3, 6, 7, 11), (2, 0, 3)
"""Tokens of three sequences, the packed rows whose results are computed, and how many of each sequence these are."""


def packing(*lengths: int) -> Packing:
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return Packing(cu_seqlens, max(lengths))


@pytest.fixture
def rows() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(12, 32, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_query_rows_get_what_the_whole_attention_gives_them(rows, qkv_bias):
    attention = Attention(32, 4, qkv_bias).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    queries = QueryRows(torch.tensor(QUERIES), packing(*COUNTS))
    inputs = rows, *attention.parameters()
    whole = attention(rows, packing(*LENGTHS))[queries.rows]
    part = attention(rows, Rows(packing(*LENGTHS), queries))
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)
    incoming = torch.randn_like(part)
    for ours, expected in zip(*(torch.autograd.grad(out, inputs, incoming) for out in (part, whole)), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 3])
def test_query_rows_of_an_encoder(rows, depth):
    encoder = BertEncoder(32, depth, num_heads=4, hidden=64, dropout=0.0).double()
    queries = QueryRows(torch.tensor(QUERIES), packing(*COUNTS))
    expected = encoder(rows, packing(*LENGTHS))[queries.rows]
    torch.testing.assert_close(encoder(rows, Rows(packing(*LENGTHS), queries)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("queries", [None, QueryRows(torch.tensor(QUERIES), packing(*COUNTS))])
def test_rows_that_are_no_keys_change_nothing(rows, queries):
    attention = Attention(32, 4).double()
    keys = torch.tensor([0, 1, 3, 5, 6, 8, 11])  # 3 of 5, 1 of 1, 3 of 6
    padded = replace(packing(*LENGTHS), key_rows=keys, cu_seqlens_k=packing(3, 1, 3).cu_seqlens)
    out = attention(rows, Rows(padded, queries))
    places = range(12) if queries is None else QUERIES
    seen = [sequence for sequence, length in enumerate(LENGTHS) for _ in range(length)]
    for place, row in enumerate(places):
        own = keys[[seen[key] == seen[row] for key in keys]]
        query, key, value = attention.project_qkv(torch.cat([rows[row][None], rows[own]])).view(-1, 3, 4, 8).unbind(1)
        weights = torch.einsum("hk,nhk->hn", query[0], key[1:]).div(8**0.5).softmax(dim=1)
        expected = attention.proj(torch.einsum("hn,nhk->hk", weights, value[1:]).flatten())
        torch.testing.assert_close(out[place], expected, rtol=0, atol=1e-12)
    if queries is not None:
        (gradient,) = torch.autograd.grad(out.sum(), rows)
        read = {*keys.tolist(), *QUERIES} - {5}  # the sequence of row 5 has no query
        assert all((gradient[row].abs().max() > 0) == (row in read) for row in range(12))


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_query_rows_of_a_transformer(rows, depth):
    transformer = Transformer(32, depth, 4, layer_scale=0.5).double()
    queries = QueryRows(torch.tensor(QUERIES), packing(*COUNTS))
    expected = transformer(rows, packing(*LENGTHS))[queries.rows]
    part = transformer(rows, Rows(packing(*LENGTHS), queries))
    torch.testing.assert_close(part, expected, rtol=0, atol=1e-12)
    parameters = rows, *transformer.parameters()
    gradients = (torch.autograd.grad(out.square().sum(), parameters, allow_unused=True) for out in (part, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_the_last_block_computes_its_query_rows_alone(rows):
    transformer = Transformer(32, 2, 4).double()
    counts = []
    for block in transformer.blocks:
        block.mlp.register_forward_hook(lambda module, given, out: counts.append(len(out)))
    transformer(rows, Rows(packing(*LENGTHS), QueryRows.last(packing(*LENGTHS))))
    assert counts == [12, 3]


def test_dropout_is_drawn_for_query_rows_too(rows):
    attention = Attention(32, 4, dropout=0.5).double().train()
    first = QueryRows.first(packing(*LENGTHS))
    assert first.rows.tolist() == [0, 5, 6]
    draws = [attention(rows, Rows(packing(*LENGTHS), first)) for _ in range(2)]
    assert not torch.equal(*draws)
    again = [attention.eval()(rows, Rows(packing(*LENGTHS), first)) for _ in range(2)]
    assert torch.equal(*again)


SOURCE = torch.tensor([0, 1, 2, 0, 3, 1, 1, 4, 3, 0, 2, 1])
"""Twelve packed rows that begin as five."""


@pytest.mark.parametrize("queries", [None, QueryRows(torch.tensor(QUERIES), packing(*COUNTS))], ids=["all", "queries"])
@pytest.mark.parametrize("keys", [False, True], ids=["", "padded"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Transformer(32, 0, 4),
        lambda: Transformer(32, 1, 4, layer_scale=0.5),
        lambda: Transformer(32, 3, 4),
        lambda: BertEncoder(32, 2, num_heads=4, hidden=64, dropout=0.0),
    ],
    ids=["no blocks", "one block", "three blocks", "bert"],
)
def test_rows_that_begin_alike(monkeypatch, rows, make, keys, queries):
    model, layout = make().double(), packing(*LENGTHS)
    if keys:
        few = torch.tensor([0, 1, 3, 5, 6, 8, 11])
        layout = replace(layout, key_rows=few, cu_seqlens_k=packing(3, 1, 3).cu_seqlens)
    pool, projected = rows[:5], []
    monkeypatch.setattr(
        "fastvtp.modules.attention.linear", lambda x, *rest: projected.append(len(x)) or linear(x, *rest)
    )
    part = model(pool, Rows(layout, queries, Pick(SOURCE, Takers.of(SOURCE, 5))))
    assert projected[:1] in ([], [5]), "the first projection is of the pool"
    whole = model(pool[SOURCE], Rows(layout, queries))
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-12)
    inputs = rows, *model.parameters()
    gradients = (torch.autograd.grad(out.square().sum(), inputs, allow_unused=True) for out in (part, whole))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("copies", [30, 4000])
def test_long_sums_of_half_precision(dtype, copies):
    x = torch.randn(3, 8, dtype=dtype, requires_grad=True)
    picked = torch.arange(3).repeat(copies)
    incoming = (torch.rand(3 * copies, 8) + 0.5).to(dtype)
    pick = Pick(picked, Takers.of(picked, 3))
    (gradient,) = torch.autograd.grad(take_rows(x, pick), x, incoming, create_graph=True)
    expected = incoming.double().view(copies, 3, 8).sum(0)
    assert gradient.dtype == dtype
    assert ((gradient - expected).abs() <= torch.finfo(dtype).eps * expected).all()


def test_second_derivatives_of_picked_rows_in_half_precision():
    x = torch.randn(3, 8).bfloat16().requires_grad_()
    picked = torch.tensor([0, 2, 2])
    pick = Pick(picked, Takers.of(picked, 3))
    (slope,) = torch.autograd.grad(take_rows(x, pick).square().sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(slope.sum(), x)
    assert torch.equal(found, torch.tensor([2.0, 0.0, 4.0])[:, None].expand(3, 8).bfloat16())


def test_a_pool_larger_than_what_is_packed_of_it_is_not_projected(monkeypatch, rows):
    projected = []
    monkeypatch.setattr(
        "fastvtp.modules.attention.linear", lambda x, *rest: projected.append(len(x)) or linear(x, *rest)
    )
    model = Transformer(32, 1, 4).double()
    picked = torch.tensor([7, 2, 2])
    out = model(rows, Rows(packing(2, 1), sources=Pick(picked, Takers.of(picked, len(rows)))))
    torch.testing.assert_close(out, model(rows[picked], packing(2, 1)))
    assert projected == [3, 3]


def test_mask_tokens_of_several_clips_decode_as_those_of_one(rows):
    torch.manual_seed(0)
    decoder = VideoDecoder(DecoderSizes(32, 2, 4, 2.0), encoder_width=32, grid=(1, 2, 5), values=6).double()
    decoder.init_weights()
    order = torch.stack([torch.randperm(10) for _ in range(3)]).int()
    visible, hidden = order[:, :4], order[:, 4:]
    tokens = rows.view(3, 4, 32)
    together = decoder(tokens, visible, hidden)
    alone = torch.cat([decoder(*(part[i : i + 1] for part in (tokens, visible, hidden))) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    inputs = rows, *decoder.parameters()
    gradients = (torch.autograd.grad(out.square().sum(), inputs) for out in (together, alone))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)
