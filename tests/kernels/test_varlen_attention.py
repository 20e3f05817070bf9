"""Packed attention on the CPU against the specification, a loop over sequences and queries."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvtp_kernels import varlen_attention
from fastvtp_kernels.attention import reference
from fastvtp_kernels.attention.call import Call, Options
from fastvtp_kernels.testing import assert_within_tolerance

LENGTHS = [3, 0, 1, 7, 5]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 2.0},
    "causal": {"causal": True},
    "scale": {"softmax_scale": 0.3},
    "dropout": {"dropout_p": 0.4, "seed": 9},
    "everything": {"softcap": 1.5, "causal": True, "softmax_scale": 0.9, "dropout_p": 0.2, "seed": 2**40},
}


def offsets(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


def attention(qkv, cu, max_seqlen, **options):
    query, key, value = qkv
    return varlen_attention(query, key, value, cu, max_seqlen, **options)


def loop_attention(qkv, cu, cu_k, softmax_scale=None, **options):
    """The specification, which asks for no bounds of the lengths."""
    scale = qkv[0].shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    return reference.varlen_attention(*qkv, Call(cu, 0, cu_k, 0, Options(scale, **options)))


def example(rows, rows_k=None, heads=3, width=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = (rows, rows_k or rows, rows_k or rows)
    qkv = [torch.randn(count, heads, width, generator=generator, dtype=torch.float64) for count in counts]
    return [x.to(dtype).requires_grad_() for x in qkv]


def with_gradients(function, qkv):
    output = function(qkv)
    ramp = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output).to(output.dtype)
    return output, torch.autograd.grad(output, qkv, ramp)


def check_against_loop(qkv, cu, cu_k, options, **lengths):
    """The tolerance law for the output and each gradient; returns the output."""

    def loop(tensors):
        return loop_attention(tensors, cu, cu_k, **options)

    actual = with_gradients(lambda tensors: attention(tensors, cu, **lengths, **options), qkv)
    same = with_gradients(loop, qkv)
    exact = with_gradients(loop, [x.detach().double().requires_grad_() for x in qkv])
    assert_within_tolerance("output", actual[0], same[0], exact[0])
    for name, *gradients in zip(("query", "key", "value"), actual[1], same[1], exact[1], strict=True):
        assert_within_tolerance(f"grad of {name}", *gradients)
    return actual[0]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_self_attention_equals_the_loop(options, dtype):
    cu = offsets(LENGTHS)
    output = check_against_loop(example(sum(LENGTHS) + 2, dtype=dtype), cu, cu, options, max_seqlen=7)
    assert not output[sum(LENGTHS) :].any()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_cross_attention_equals_the_loop(options):
    """More queries than keys, fewer, no keys, no queries."""
    cu, cu_k = offsets([3, 2, 4, 0, 2]), offsets([5, 0, 2, 3, 2])
    qkv = example(12, 14, dtype=torch.float32)
    output = check_against_loop(qkv, cu, cu_k, options, max_seqlen=9, cu_seqlens_k=cu_k, max_seqlen_k=5)
    without_keys = slice(3, 5)
    assert not output[without_keys].any()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equal_lengths_equal_the_loop(options):
    cu = offsets([4, 4, 4])
    check_against_loop(example(12, dtype=torch.float32), cu, cu, options, max_seqlen=4)


def test_rows_that_merely_number_as_many_as_the_padding():
    """12 rows = 3 sequences of at most 4, but the sequences are unequal and the tail belongs to none."""
    cu = offsets([1, 0, 4])
    output = check_against_loop(example(12, dtype=torch.float32), cu, cu, {}, max_seqlen=4)
    assert not output[5:].any()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradcheck(options):
    cu = offsets([2, 0, 3])
    qkv = example(6, heads=2, width=3)
    assert torch.autograd.gradcheck(lambda *tensors: attention(tensors, cu, 3, **options), qkv)


@pytest.mark.parametrize(("rows", "lengths", "max_seqlen"), [(0, [], 0), (0, [0, 0], 0), (3, [], 4), (3, [0], 0)])
@pytest.mark.parametrize("options", [{}, {"softcap": 1.0}])
def test_nothing_to_attend_to(rows, lengths, max_seqlen, options):
    qkv = [x[:rows] for x in example(4)]
    output = attention(qkv, offsets(lengths), max_seqlen, **options)
    assert output.shape == (rows, 3, 8)
    assert not output.any()
    for gradient in torch.autograd.grad(output.sum(), qkv):
        assert not gradient.any()


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"causal": True}])
def test_strided_views_of_one_projection(options):
    cu = offsets(LENGTHS)
    packed = torch.randn(16, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(16, 2, 8, dtype=torch.float64)

    def run(prepare):
        output = attention([prepare(x) for x in packed.unbind(1)], cu, 7, **options)
        return output, *torch.autograd.grad(output, packed, weights)

    for one, other in zip(run(lambda x: x), run(torch.Tensor.contiguous), strict=True):
        assert torch.equal(one, other)


lengths_strategy = st.lists(st.integers(0, 6), min_size=1, max_size=6)
deterministic_options = st.sampled_from([OPTIONS[name] for name in ("plain", "softcap", "causal")])


@settings(max_examples=20, deadline=None)
@given(lengths_strategy, deterministic_options, st.data())
def test_permuting_sequences_permutes_results(lengths, options, data):
    cu = offsets(lengths)
    qkv = example(sum(lengths) + 1, dtype=torch.float32)
    order = data.draw(st.permutations(range(len(lengths))))
    rows = torch.cat([torch.arange(int(cu[s]), int(cu[s + 1])) for s in order] + [torch.tensor([sum(lengths)])])
    original = attention(qkv, cu, 7, **options)
    permuted = attention([x[rows] for x in qkv], offsets([lengths[s] for s in order]), 7, **options)
    assert torch.equal(permuted, original[rows])


@settings(max_examples=20, deadline=None)
@given(lengths_strategy, deterministic_options, st.sampled_from([1e3, float("inf"), float("nan")]), st.data())
def test_a_neighbour_cannot_change_a_bit(lengths, options, disturbance, data):
    cu = offsets(lengths)
    own = data.draw(st.integers(0, len(lengths) - 1))
    mine = slice(int(cu[own]), int(cu[own + 1]))
    qkv = example(sum(lengths) + 2, dtype=torch.float32)
    disturbed = []
    for x in qkv:
        noisy = x.detach() + disturbance
        noisy[mine] = x.detach()[mine]
        disturbed.append(noisy.requires_grad_())

    def run(tensors):
        output = attention(tensors, cu, 6, **options)[mine]
        return [output, *(gradient[mine] for gradient in torch.autograd.grad(output.sum(), tensors))]

    for before, after in zip(run(qkv), run(disturbed), strict=True):
        assert torch.equal(before, after)


def test_max_seqlen_is_only_a_bound():
    cu, qkv = offsets(LENGTHS), example(16)
    for options in ({}, {"dropout_p": 0.5, "seed": 1}):
        tight, loose = (attention(qkv, cu, bound, **options) for bound in (7, 20))
        torch.testing.assert_close(tight, loose, rtol=1e-12, atol=1e-12)


def test_softcap_bounds_the_logits():
    """With logits capped at c, no weight exceeds e^(2c) times another."""
    query = 1e4 * torch.ones(1, 1, 4)
    key = torch.stack([torch.ones(1, 4), -torch.ones(1, 4)])
    value = torch.tensor([1.0, 0.0])[:, None, None].expand(2, 1, 4)
    cu, cu_k = offsets([1]), offsets([2])
    weight = varlen_attention(query, key, value, cu, 1, cu_seqlens_k=cu_k, max_seqlen_k=2, softcap=1.0)
    torch.testing.assert_close(weight, torch.full_like(weight, 1 / (1 + math.exp(-2))))


def test_dropout_is_a_function_of_the_seed_and_keeps_the_mean():
    cu = offsets([50] * 8)
    query, key, value = torch.zeros(400, 4, 2), torch.zeros(400, 4, 2), torch.ones(400, 4, 2)
    drawn = [varlen_attention(query, key, value, cu, 50, dropout_p=0.25, seed=s) for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    # 80000 weights: the mean of keep / 0.75 has a standard deviation of 0.002.
    assert abs(drawn[0].mean() - 1) < 0.008
    assert not torch.equal(drawn[0][:, 0], drawn[0][:, 1])
    for output in drawn:
        assert output.std() > 0.01


def test_autocast_is_followed():
    cu, qkv = offsets(LENGTHS), example(16, dtype=torch.float32)
    for options in ({}, {"softcap": 2.0}):
        with torch.autocast("cpu", torch.bfloat16):
            low = attention(qkv, cu, 7, **options)
        assert low.dtype == torch.bfloat16
        explicit = attention([x.bfloat16() for x in qkv], cu, 7, **options)
        assert torch.equal(low, explicit)
        assert torch.autograd.grad(low.sum(), qkv[0])[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"max_seqlen": 2}, ValueError, "max_seqlen is 2, but the longest sequence of cu_seqlens has 3 rows"),
        ({"cu_seqlens": offsets([3, 9])}, ValueError, "must start at 0, never fall and end at or below the 4 rows"),
        ({"cu_seqlens": torch.tensor([0, 3])}, TypeError, r"cu_seqlens is torch\.int64 \[2\], expected int32"),
        ({"key": torch.ones(4, 3, 8)}, ValueError, r"key has shape \[4, 3, 8\], expected \[Nk, 2, 8\]"),
        ({"value": torch.ones(5, 2, 8)}, ValueError, r"value has shape \[5, 2, 8\], expected \[4, 2, 8\]"),
        ({"key": torch.ones(5, 2, 8), "value": torch.ones(5, 2, 8)}, ValueError, r"expected \[4, 2, 8\]"),
        ({"cu_seqlens_k": offsets([3])}, ValueError, "cu_seqlens_k is given without max_seqlen_k"),
        ({"cu_seqlens_k": offsets([3, 1]), "max_seqlen_k": 3}, ValueError, r"cu_seqlens_k has shape \[3\], expected"),
        ({"cu_seqlens_k": offsets([3]), "max_seqlen_k": 2}, ValueError, "longest sequence of cu_seqlens_k has 3"),
        ({"value": torch.ones(4, 2, 8).half()}, TypeError, r"are torch\.float32, torch\.float32, torch\.float16"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p is 1.0, expected 0 <= dropout_p < 1"),
        ({"softcap": -1.0}, ValueError, r"softcap is -1\.0"),
        ({"seed": -1}, ValueError, "seed is -1"),
    ],
)
def test_refuses(change, error, message):
    arguments = {name: torch.ones(4, 2, 8) for name in ("query", "key", "value")}
    with pytest.raises(error, match=message):
        varlen_attention(**(arguments | {"cu_seqlens": offsets([3]), "max_seqlen": 3} | change))
