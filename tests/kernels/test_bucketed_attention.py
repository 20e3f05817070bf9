"""The CPU's road of attention: buckets of similar length, never one padded block, and the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvtp_kernels import varlen_attention, varlen_attention_packed
from fastvtp_kernels.attention import bucketed
from fastvtp_kernels.attention.bucketed import Bucket, fill_buckets

LENGTHS, LENGTHS_K = [3, 40, 0, 41, 12, 3, 2], [5, 33, 4, 0, 12, 2, 30]
OPTIONS = {
    "plain": {},
    "softcap": {"softcap": 1.5},
    "causal": {"causal": True},
    "dropout": {"dropout_p": 0.3, "seed": 2**63 + 9},
    "everything": {"softcap": 1.5, "causal": True, "softmax_scale": 0.7, "dropout_p": 0.3, "seed": 5},
}


def offsets(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


def attention(qkv, *arguments, **options):
    query, key, value = qkv
    return varlen_attention(query, key, value, *arguments, **options)


def leaves(*rows, heads=2, width=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    values = [torch.randn(count, heads, width, generator=generator, dtype=torch.float64) for count in rows]
    return [x.to(dtype).requires_grad_() for x in values]


def with_gradients(output, inputs):
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output).to(output.dtype)
    return output, *torch.autograd.grad(output, inputs, weights)


@pytest.fixture
def sdpa_calls(monkeypatch):
    """(query's shape, whether there is a mask) of each call of torch's SDPA."""
    calls, real = [], F.scaled_dot_product_attention

    def recorded(query, key, value, attn_mask=None, **options):
        calls.append((tuple(query.shape), attn_mask is not None))
        return real(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    return calls


@pytest.mark.parametrize("call_cost", [0, 3000, 10**12], ids=["one size a bucket", "mixed", "one bucket"])
@pytest.mark.parametrize("lengths_k", [None, LENGTHS_K], ids=["self", "cross"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_buckets_change_no_result(options, lengths_k, call_cost, monkeypatch):
    """However the sequences are grouped: the numbers, the gradients and the dropped weights of one padded block."""
    cu = offsets(LENGTHS)
    keys = {} if lengths_k is None else {"cu_seqlens_k": offsets(lengths_k), "max_seqlen_k": 35}
    rows_k = sum(lengths_k or LENGTHS) + 2
    monkeypatch.setattr(bucketed, "CALL_COST", call_cost)
    qkv = leaves(sum(LENGTHS) + 2, rows_k, rows_k)
    actual = with_gradients(attention(qkv, cu, 44, **keys, **options), qkv)
    monkeypatch.setattr(bucketed, "values_readable", lambda tensor: False)
    padded = with_gradients(attention(qkv, cu, 44, **keys, **options), qkv)
    for one, other in zip(actual, padded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert not actual[0][sum(LENGTHS) :].any()


@pytest.mark.parametrize("call_cost", [0, 40])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradcheck_across_buckets(options, call_cost, monkeypatch):
    monkeypatch.setattr(bucketed, "CALL_COST", call_cost)
    cu, cu_k = offsets([2, 0, 3, 1]), offsets([1, 2, 4, 1])
    qkv = leaves(7, 8, 8, heads=1, width=3)
    assert torch.autograd.gradcheck(lambda *x: attention(x, cu, 3, cu_seqlens_k=cu_k, max_seqlen_k=4, **options), qkv)


def test_similar_lengths_share_a_call_and_equal_ones_need_no_mask(sdpa_calls):
    lengths = [200, 7, 50, 200, 8, 0]
    qkv = leaves(sum(lengths), sum(lengths), sum(lengths), heads=4, width=64, dtype=torch.float32)
    attention(qkv, offsets(lengths), 200)
    # 8 with 50: 2436 pairs of padding, 256 wide, cost more than a call; 7 with 8: 15 pairs do not.
    assert sdpa_calls == [((2, 4, 200, 64), False), ((1, 4, 50, 64), False), ((2, 4, 8, 64), True)]


@pytest.mark.parametrize("causal", [False, True])
def test_equal_lengths_are_one_call_in_both_forms(sdpa_calls, causal):
    (qkv,) = leaves(12 * 3, heads=2, width=4)
    qkv = qkv.view(12, 3, 2, 4)
    separate = attention(qkv.unbind(1), offsets([4, 4, 4]), 4, causal=causal)
    packed = varlen_attention_packed(qkv, offsets([4, 4, 4]), 4, causal=causal)
    assert sdpa_calls == [((3, 2, 4, 4), causal)] * 2
    assert torch.equal(separate, packed)


def test_packed_gradient_is_that_of_the_three_views():
    cu = offsets(LENGTHS)
    qkv = leaves(3 * sum(LENGTHS))[0].detach().view(-1, 3, 2, 8).requires_grad_()
    separate = with_gradients(attention(qkv.unbind(1), cu, 44, softcap=2.0), [qkv])
    packed = with_gradients(varlen_attention_packed(qkv, cu, 44, softcap=2.0), [qkv])
    for one, other in zip(separate, packed, strict=True):
        assert torch.equal(one, other)


def test_buckets_join_while_padding_is_cheaper_than_a_call(monkeypatch):
    monkeypatch.setattr(bucketed, "CALL_COST", 100)
    lengths, lengths_k = [9, 1, 10, 0, 9, 3], [9, 1, 10, 3, 9, 0]
    # 2 * (100 - 81) = 38 and then 100 - 1 = 99 pairs of padding
    assert fill_buckets(lengths, lengths_k, width=1) == ([2, 0, 4, 1], [Bucket(4, 10, 10, False, True)])
    assert fill_buckets(lengths, lengths_k, width=2)[1] == [Bucket(3, 10, 10, False, True), Bucket(1, 1, 1, True, True)]
    assert [bucket.count for bucket in fill_buckets(lengths, lengths_k, width=3)[1]] == [1, 2, 1]


sizes = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=20)


@settings(max_examples=50, deadline=None)
@given(sizes, st.integers(1, 2048))
def test_buckets_hold_every_sequence_once_and_never_waste_more_than_separate_calls(pairs, width):
    lengths, lengths_k = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    order, buckets = fill_buckets(lengths, lengths_k, width)
    assert sorted(order) == [s for s, pair in enumerate(pairs) if 0 not in pair]
    assert sum(bucket.count for bucket in buckets) == len(order)
    start = 0
    for bucket in buckets:
        members = [pairs[s] for s in order[start : start + bucket.count]]
        start += bucket.count
        assert (bucket.length, bucket.length_k) == tuple(map(max, zip(*members, strict=True)))
        assert bucket.exact == (len(set(members)) == 1)
        padding = bucket.count * bucket.length * bucket.length_k - sum(n * nk for n, nk in members)
        assert padding * width <= bucketed.CALL_COST * (len(set(members)) - 1)
