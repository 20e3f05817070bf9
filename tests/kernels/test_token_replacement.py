"""Masked words become [MASK], a random word or themselves, as BERT's rule says, whatever the batch around them."""

import pytest
import torch
import torch._functorch.config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fastvtp_kernels import Replacement, replace_masked_tokens, text_mask

BERT = Replacement(3, vocab_size=40, random_fraction=0.3, keep_fraction=0.2, special_ids=(3, 0, 1, 39, 3))


def pack(lengths, tail=0, word=7):
    """Captions of one word repeated, and their offsets."""
    return torch.full((sum(lengths) + tail,), word), torch.tensor([0, *lengths]).cumsum(0).int()


def replaced(ids, offsets, replacement=BERT, **options):
    return replace_masked_tokens(ids, torch.ones_like(ids, dtype=torch.bool), offsets, replacement, **options)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 6), max_size=4),
    st.integers(0, 3),
    st.sampled_from([torch.int32, torch.int64]),
    st.integers(0, 2**64 - 1),
    st.data(),
)
def test_every_masked_word_becomes_mask_and_nothing_else_changes(lengths, tail, dtype, seed, data):
    ids, offsets = pack(lengths, tail)
    ids = (ids + torch.arange(len(ids))).to(dtype)
    masked = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))), dtype=torch.bool)
    before = ids.clone()
    result = replace_masked_tokens(ids, masked, offsets, Replacement(3), seed=seed)
    in_a_caption = torch.arange(len(ids)) < sum(lengths)
    assert result.dtype == dtype
    assert torch.equal(result, torch.where(masked & in_a_caption, 3, before).to(dtype))
    assert torch.equal(ids, before)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.data())
def test_depends_on_sample_and_position_not_on_the_batch(lengths, data):
    sample_ids = data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=len(lengths), max_size=len(lengths)))
    ids, offsets = pack(lengths, tail=2)
    together = replaced(ids, offsets, seed=4, step=8, sample_ids=torch.tensor(sample_ids))
    row = data.draw(st.integers(0, len(lengths) - 1))
    alone = replaced(*pack([lengths[row]]), seed=4, step=8, sample_ids=[sample_ids[row]])
    assert torch.equal(alone, together[offsets[row] : offsets[row + 1]])
    assert (together[sum(lengths) :] == 7).all()


def test_seed_step_position_and_each_word_of_the_sample_id_matter():
    ids, offsets = pack([50])
    base = replaced(ids, offsets, seed=1)
    for change in ({"seed": 2}, {"seed": 1 + 2**32}, {"step": 1}, {"sample_ids": [1]}, {"sample_ids": [2**32]}):
        assert not torch.equal(base, replaced(ids, offsets, **{"seed": 1, **change}))
    assert torch.equal(base, replaced(ids, offsets, seed=1, step=0, sample_ids=[0]))
    assert len(base.unique()) > 5


def test_replacements_are_frozen():
    """A change of these numbers breaks the reproducibility of every past run."""
    ids, offsets = pack([8, 12])
    result = replaced(ids, offsets, seed=1, step=2, sample_ids=[7, 2**40])
    assert result.tolist() == [3, 7, 3, 12, 3, 35, 23, 7, 30, 3, 3, 20, 35, 12, 2, 7, 3, 10, 4, 2]


def test_shares_and_uniform_random_words():
    ids, offsets = pack([40] * 1000)
    result = replaced(ids, offsets, seed=5)
    counts = result.bincount(minlength=40)
    drawable = [word for word in range(40) if word not in BERT.special_ids]
    # 40000 words; each of the 36 that may be drawn is expected 333 times. Bounds are four standard deviations.
    assert abs(counts[3] / 40000 - 0.5) < 0.01
    assert abs(counts[7] - 40000 * 0.2 - 333) < 330
    others = counts[[word for word in drawable if word != 7]]
    assert ((others - 40000 * 0.3 / 36).abs() < 74).all()
    assert counts[[0, 1, 39]].sum() == 0
    # What a word becomes is independent of its position.
    kept = (result == 7).view(1000, 40).float().mean(dim=0)
    assert ((kept - 0.208).abs() < 0.055).all()


@pytest.mark.parametrize("special_ids", [(), (0,), (9,), (0, 1, 2), (2, 5, 6, 9), range(1, 10), range(9)])
def test_a_random_word_is_any_but_the_special_ones(special_ids):
    ids, offsets = pack([400])
    result = replaced(ids, offsets, Replacement(0, 10, random_fraction=1.0, special_ids=special_ids), seed=0)
    assert result.unique().tolist() == sorted(set(range(10)) - set(special_ids))


def test_keep_all_or_none():
    ids, offsets = pack([30])
    assert torch.equal(replaced(ids, offsets, Replacement(3, keep_fraction=1.0), seed=0), ids)
    half = {"random_fraction": 0.5, "keep_fraction": 0.5, "vocab_size": 9, "special_ids": (3, 7)}
    result = replaced(ids, offsets, Replacement(3, **half), seed=0)
    assert 3 not in result
    assert 0 < (result == 7).sum() < 30


def test_unrelated_to_the_mask_of_the_same_seed():
    ids, offsets = pack([20] * 1000)
    masked = text_mask(ids, offsets, 0.5, special_ids=(), seed=0)
    result = replace_masked_tokens(ids, masked, offsets, Replacement(3, keep_fraction=0.5), seed=0)
    assert abs((result[masked] == 7).float().mean() - 0.5) < 0.02
    assert (result[~masked] == 7).all()


def test_compiles_into_one_graph():
    def function(ids, masked, offsets):
        return replace_masked_tokens(ids, masked, offsets, BERT, seed=2)

    torch._dynamo.reset()
    ids, offsets = pack([3, 0, 9], tail=2)
    arguments = (ids, torch.arange(14) % 3 > 0, offsets)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments)
    assert torch.equal(compiled, function(*arguments))


def test_stays_on_the_device_and_reads_no_value():
    with torch._functorch.config.patch(fake_tensor_allow_meta=True), FakeTensorMode():
        ids, masked = torch.empty(9, dtype=torch.int32, device="meta"), torch.empty(9, dtype=torch.bool, device="meta")
        result = replace_masked_tokens(ids, masked, torch.empty(4, dtype=torch.int32, device="meta"), BERT, seed=2)
    assert (result.device.type, result.dtype, list(result.shape)) == ("meta", torch.int32, [9])


IDS, OFFSETS = pack([4])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input_ids": torch.ones(2, 2).long()}, ValueError, r"input_ids has shape \[2, 2\], expected \[N\]"),
        ({"input_ids": torch.ones(4)}, TypeError, "input_ids is torch.float32, expected int32 or int64"),
        ({"masked": torch.ones(3).bool()}, ValueError, r"masked has shape \[3\], expected \[4\]"),
        ({"masked": torch.ones(4).long()}, TypeError, "masked is torch.int64, expected bool"),
        ({"masked": torch.ones(4, device="meta").bool()}, ValueError, "masked on meta, .* expected one device"),
        ({"cu_seqlens": torch.tensor([0, 4])}, TypeError, "cu_seqlens is torch.int64"),
        ({"cu_seqlens": torch.tensor([0, 5]).int()}, ValueError, "never fall and end at or below the 4 rows"),
        (
            {"replacement": Replacement(3, random_fraction=-0.1)},
            ValueError,
            "random_fraction -0.1, keep_fraction 0.0: expected both >= 0, sum <= 1",
        ),
        ({"replacement": Replacement(3, keep_fraction=-0.1)}, ValueError, "keep_fraction -0.1"),
        (
            {"replacement": Replacement(3, random_fraction=0.6, keep_fraction=0.5)},
            ValueError,
            "random_fraction 0.6, keep_fraction 0.5",
        ),
        (
            {"replacement": Replacement(3, vocab_size=0)},
            ValueError,
            r"vocab_size is 0, expected 0 < vocab_size < 2\*\*31",
        ),
        ({"replacement": Replacement(3, vocab_size=2**31)}, ValueError, "vocab_size is 2147483648"),
        (
            {"replacement": Replacement(3, random_fraction=0.1)},
            ValueError,
            "vocab_size is None, expected the number of ids where",
        ),
        ({"replacement": Replacement(mask_id=-1)}, ValueError, "mask_id is -1, expected 0 <= id < 2147483648"),
        ({"replacement": Replacement(mask_id=9, vocab_size=9)}, ValueError, "mask_id is 9, expected 0 <= id < 9"),
        (
            {"replacement": Replacement(3, special_ids=(1, 9), vocab_size=9)},
            ValueError,
            "special_ids is 9, expected 0 <= id < 9",
        ),
        (
            {"replacement": Replacement(3, special_ids=range(9), vocab_size=9, random_fraction=0.1)},
            ValueError,
            "special_ids holds all 9 ids, expected one to draw at least",
        ),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"step": 2**32}, ValueError, "step is 4294967296"),
        ({"sample_ids": [1, 2]}, ValueError, r"sample_ids has shape \[2\], expected \[1\]"),
    ],
)
def test_refuses(change, error, message):
    arguments = {"input_ids": IDS, "masked": IDS > 0, "cu_seqlens": OFFSETS, "replacement": Replacement(3), "seed": 0}
    with pytest.raises(error, match=f"^replace_masked_tokens: .*{message}"):
        replace_masked_tokens(**(arguments | change))
