"""What holds for Triton's attention whatever the batch: sequences do not see each other, regimes agree."""

from typing import Any

import pytest

pytest.importorskip("triton")
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvtp_kernels import axial_attention, varlen_attention
from fastvtp_kernels.testing import assert_within_tolerance
from tests.kernels.attention_cases import (
    forced,
    grid,
    of_views,
    offsets,
    only,
    packed,
)
from tests.kernels.triton_cases import (
    DEVICE,
    no_kernels,
    pattern,
    random_values,
    results,
)

FEW = settings(max_examples=5, deadline=None)
LONGEST = {"tiny": 16, "resident": 24, "streaming": 24}
every_regime = pytest.mark.parametrize("regime", LONGEST)


def batch(regime):
    return st.lists(st.integers(0, LONGEST[regime]), min_size=2, max_size=3)


def rows_of(lengths):
    """Row numbers of each sequence."""
    return torch.arange(sum(lengths), device=DEVICE).split(list(lengths))


def tokens_of(lengths, seed=0):
    return random_values(sum(lengths), 3, 1, 16, seed=seed).detach()


def attend(regime, tokens, lengths, backend="triton", **options: Any):
    """Output and gradient of rows [N, 3, H, Dh] that see the same incoming gradient wherever they stand."""
    qkv = tokens.clone().requires_grad_()
    inputs = {"qkv": qkv, "cu_seqlens": offsets(lengths).to(qkv.device), "max_seqlen": LONGEST[regime], **options}
    with forced(regime):
        return results(of_views, {**inputs, "backend": backend}, lambda output: output.detach().mul(3).cos())


def assert_same_bits(first, second):
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def assert_law_between(one, other, exact):
    for name, value in one.items():
        assert_within_tolerance(name, value, other[name], exact[name])


def assert_unmoved(regime, rows, lengths, changed_lengths, tokens, **options):
    """Sequences that stand elsewhere among others, rows `rows` of the batch, have the same results: bit for bit where
    each has tiles of its own. Tiny ones share a tile, and their place in it decides in which order sums are rounded."""
    straight = attend(regime, tokens, lengths, **options)
    straight = {name: x[rows] for name, x in straight.items()}
    moved = attend(regime, tokens[rows], changed_lengths, **options)
    if regime != "tiny":
        assert_same_bits(straight, moved)
        return
    with no_kernels():
        exact = attend(regime, tokens.cpu().double()[rows.cpu()], changed_lengths, "reference", **options)
    assert_law_between(moved, straight, exact)


@every_regime
def test_permuting_sequences_permutes_results(regime):
    @FEW
    @given(st.data())
    def check(data):
        lengths = data.draw(batch(regime))
        order = data.draw(st.permutations(range(len(lengths))))
        rows = torch.cat([rows_of(lengths)[s] for s in order])
        assert_unmoved(regime, rows, lengths, [lengths[s] for s in order], tokens_of(lengths), causal=True)

    check()


@every_regime
def test_an_empty_sequence_changes_nothing(regime):
    @FEW
    @given(st.data())
    def check(data):
        lengths = data.draw(batch(regime))
        place = data.draw(st.integers(0, len(lengths)))
        more = [*lengths[:place], 0, *lengths[place:]]
        options = {"dropout_p": 0.2, "seed": 7} if regime == "tiny" else {}
        assert_unmoved(regime, torch.arange(sum(lengths), device=DEVICE), lengths, more, tokens_of(lengths), **options)

    check()


@every_regime
def test_a_neighbour_changes_nothing(regime):
    @FEW
    @given(st.data())
    def check(data):
        lengths = data.draw(batch(regime))
        changed = data.draw(st.integers(0, len(lengths) - 1))
        others = torch.cat([rows for s, rows in enumerate(rows_of(lengths)) if s != changed])
        tokens = tokens_of(lengths)
        perturbed = 40 * tokens_of(lengths, seed=1)
        perturbed[others] = tokens[others]
        one, other = (attend(regime, x, lengths, softcap=5.0) for x in (tokens, perturbed))
        assert_same_bits(*({name: x[others] for name, x in found.items()} for found in (one, other)))

    check()


@pytest.mark.parametrize(("regimes", "length"), [(("tiny", "resident"), 32), (("resident", "streaming"), 64)])
@pytest.mark.parametrize("options", [{}, {"softcap": 1.5, "causal": True}], ids=["plain", "capped and causal"])
def test_regimes_agree_where_both_can_run(regimes, length, options):
    """In the table's own tiles: each is at most twice as wrong as the other."""
    inputs = packed([length, length // 2 + 1], heads=1, width=64, dtype=torch.bfloat16, **options)
    found = []
    for regime in regimes:
        with only(regime):
            found.append(results(varlen_attention, inputs | {"backend": "triton"}))
    doubles = {
        name: x.detach().double().requires_grad_() if name in ("query", "key", "value") else x
        for name, x in inputs.items()
    }
    exact = results(varlen_attention, doubles | {"backend": "reference"})
    assert_law_between(found[0], found[1], exact)
    assert_law_between(found[1], found[0], exact)


@pytest.mark.parametrize(("length", "backward"), [(512, False), (256, True)])
def test_short_and_long_agree_at_the_longest_of_the_short(length, backward):
    """In the table's own tiles, forward as far as key tiles fit on chip anywhere."""
    inputs = packed([length], heads=1, width=64, dtype=torch.bfloat16, tail=0)
    if not backward:
        inputs = {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    found = []
    for regime in ("resident", "streaming"):
        with only(regime):
            found.append(results(varlen_attention, inputs | {"backend": "triton"}))
    doubles = {
        name: x.detach().double().requires_grad_(backward) if name in ("query", "key", "value") else x
        for name, x in inputs.items()
    }
    exact = results(varlen_attention, doubles | {"backend": "reference"})
    assert ("grad of key" in exact) == backward
    assert_law_between(found[0], found[1], exact)
    assert_law_between(found[1], found[0], exact)


def test_tiny_and_long_drop_the_same_weights():
    """Equal logits and one-hot values: the output shows which weights were kept."""
    lengths, heads = [16, 7, 12], 6
    rows = sum(lengths)
    zeros = torch.zeros(rows, heads, 16, device=DEVICE)
    position = torch.cat([torch.arange(length) for length in lengths]).to(DEVICE)
    value = torch.eye(16, device=DEVICE)[position][:, None].expand(rows, heads, 16)
    kept = []
    for regime in ("tiny", "streaming"):
        with only(regime):
            output = varlen_attention(
                zeros, zeros, value, offsets(lengths), 16, dropout_p=0.4, seed=11, backend="triton"
            )
        kept.append(output != 0)
    assert torch.equal(*kept)
    of_sequence = torch.repeat_interleave(torch.tensor(lengths), torch.tensor(lengths)).to(DEVICE)
    assert 0.5 < kept[0].sum().item() / (of_sequence.sum().item() * heads) < 0.7


@every_regime
def test_an_axis_is_a_batch_of_sequences(regime):
    length = 8 if regime == "tiny" else 20
    inputs = grid(2, length, 2, 1, 16, softcap=1.5, backend="triton")
    rows = {
        name: x.detach().transpose(1, 2).flatten(0, 2).requires_grad_() if isinstance(x, torch.Tensor) else x
        for name, x in inputs.items()
    }
    incoming = pattern(inputs["query"])
    with forced(regime):
        along = results(axial_attention, inputs, lambda _: incoming)
        rows |= {"cu_seqlens": offsets([length] * 4), "max_seqlen": length}
        apart = results(varlen_attention, rows, lambda _: incoming.transpose(1, 2).flatten(0, 2))
    assert_same_bits({name: x.transpose(1, 2).flatten(0, 2) for name, x in along.items()}, apart)
