"""Masks are right, reproducible and independent of the batch around a sample."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvtp_kernels import text_mask, tube_mask


def hidden_cells(mask, grid):
    """bool [B, t, h * w] from the masked token indices."""
    t, h, w = grid
    hidden = torch.zeros(mask.masked.shape[0], t * h * w, dtype=torch.bool)
    return hidden.scatter(1, mask.masked.long(), True).unflatten(1, (t, h * w))


@settings(max_examples=40, deadline=None)
@given(
    batch_size=st.integers(0, 4),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7)),
    mask_ratio=st.floats(0, 0.99),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
)
def test_tube_mask_partitions_the_grid_into_tubes(batch_size, grid, mask_ratio, seed, step):
    t, h, w = grid
    mask = tube_mask(batch_size, grid, mask_ratio, seed=seed, step=step)
    hidden = int(mask_ratio * (h * w))
    assert mask.visible.shape == (batch_size, t * (h * w - hidden))
    assert mask.masked.shape == (batch_size, t * hidden)
    assert mask.visible.dtype == mask.masked.dtype == torch.int32
    for index in mask:
        assert (index.diff(dim=1) > 0).all()
    everything = torch.cat(mask, dim=1).sort(dim=1).values
    assert torch.equal(everything, torch.arange(t * h * w, dtype=torch.int32).expand(batch_size, -1))
    tubes = hidden_cells(mask, grid)
    assert torch.equal(tubes, tubes[:, :1].expand_as(tubes))


def test_videomae_counts():
    mask = tube_mask(2, (8, 14, 14), 0.9, seed=0)
    assert mask.visible.shape == (2, 160)
    assert mask.masked.shape == (2, 1408)


def test_masks_are_frozen():
    """A change of these numbers breaks the reproducibility of every past run."""
    tubes = tube_mask(2, (1, 3, 4), 0.5, seed=1, step=2, sample_ids=[7, 2**40]).masked
    assert tubes.tolist() == [[2, 4, 5, 8, 10, 11], [0, 6, 7, 8, 9, 11]]
    words = text_mask(torch.full((12,), 7), torch.tensor([0, 5, 12]).int(), 0.5, special_ids=(), seed=1, step=2)
    assert words.int().tolist() == [1, 1, 0, 0, 0, 1, 1, 0, 1, 1, 0, 0]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6), st.data())
def test_tube_mask_depends_on_the_sample_not_on_the_batch(sample_ids, data):
    grid = (2, 5, 6)
    together = tube_mask(len(sample_ids), grid, 0.8, seed=5, step=3, sample_ids=torch.tensor(sample_ids))
    row = data.draw(st.integers(0, len(sample_ids) - 1))
    alone = tube_mask(1, grid, 0.8, seed=5, step=3, sample_ids=[sample_ids[row]])
    assert torch.equal(alone.visible[0], together.visible[row])
    assert torch.equal(alone.masked[0], together.masked[row])


def test_seed_step_and_each_word_of_the_sample_id_matter():
    base = tube_mask(1, (1, 14, 14), 0.5, seed=1).masked
    for other in (
        tube_mask(1, (1, 14, 14), 0.5, seed=2),
        tube_mask(1, (1, 14, 14), 0.5, seed=1 + 2**32),
        tube_mask(1, (1, 14, 14), 0.5, seed=1, step=1),
        tube_mask(1, (1, 14, 14), 0.5, seed=1, sample_ids=[1]),
        tube_mask(1, (1, 14, 14), 0.5, seed=1, sample_ids=[2**32]),
    ):
        assert not torch.equal(base, other.masked)
    assert torch.equal(base, tube_mask(1, (1, 14, 14), 0.5, seed=1, step=0, sample_ids=[0]).masked)


def test_every_cell_is_hidden_equally_often():
    hidden = hidden_cells(tube_mask(4000, (1, 4, 5), 0.5, seed=11), (1, 4, 5)).float().mean(dim=(0, 1))
    # Standard deviation of a frequency over 4000 draws is 0.008.
    assert ((hidden - 0.5).abs() < 0.032).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tube_mask(1, (2, 2, 2), 1.0, seed=0), ValueError, "mask_ratio is 1.0, expected 0 <= mask_ratio < 1"),
        (lambda: tube_mask(1, (2, 0, 2), 0.5, seed=0), ValueError, r"grid \(2, 0, 2\).* three sizes >= 1"),
        (lambda: tube_mask(1, (2, 2, 2), 0.5, seed=-1), ValueError, r"seed is -1, expected 0 <= seed < 2\*\*64"),
        (lambda: tube_mask(1, (2, 2, 2), 0.5, seed=0, step=2**32), ValueError, "step is 4294967296"),
        (
            lambda: tube_mask(2, (2, 2, 2), 0.5, seed=0, sample_ids=[1]),
            ValueError,
            r"sample_ids has shape \[1\], expected \[2\]",
        ),
        (
            lambda: tube_mask(1, (2, 2, 2), 0.5, seed=0, sample_ids=torch.ones(1)),
            TypeError,
            "sample_ids is torch.float32",
        ),
    ],
)
def test_tube_mask_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()


CAPTIONS = [[101, 7, 8, 9, 102], [], [101, 5, 102, 0, 0], [101, 6, 6, 6, 6, 6, 6, 102]]


def pack(captions, tail=0):
    ids = torch.tensor([token for caption in captions for token in caption] + [55] * tail)
    lengths = torch.tensor([0] + [len(caption) for caption in captions])
    return ids, lengths.cumsum(0).int()


def test_text_mask_spares_specials_and_the_tail():
    ids, offsets = pack(CAPTIONS, tail=3)
    hidden = text_mask(ids, offsets, 1.0, special_ids=(0, 101, 102), seed=0)
    assert hidden.dtype == torch.bool
    expected = ~torch.isin(ids, torch.tensor([0, 101, 102]))
    expected[-3:] = False
    assert torch.equal(hidden, expected)
    assert not text_mask(ids, offsets, 0.0, special_ids=(), seed=0).any()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.data())
def test_text_mask_depends_on_sample_and_position_not_on_the_batch(lengths, data):
    sample_ids = torch.tensor(
        data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=len(lengths), max_size=len(lengths)))
    )
    ids, offsets = pack([[7] * length for length in lengths])
    together = text_mask(ids, offsets, 0.5, special_ids=(), seed=4, step=8, sample_ids=sample_ids)
    row = data.draw(st.integers(0, len(lengths) - 1))
    alone = text_mask(
        *pack([[7] * lengths[row]]), 0.5, special_ids=(), seed=4, step=8, sample_ids=sample_ids[row : row + 1]
    )
    assert torch.equal(alone, together[offsets[row] : offsets[row + 1]])


def test_text_mask_rate_and_dependence_on_seed_and_step():
    ids, offsets = torch.full((20000,), 7), torch.arange(0, 20001, 20, dtype=torch.int32)
    masks = [text_mask(ids, offsets, 0.75, special_ids=(), seed=s, step=t) for s, t in ((0, 0), (1, 0), (0, 1))]
    for hidden in masks:
        assert abs(hidden.float().mean() - 0.75) < 0.013  # four standard deviations
    # Independent masks agree on 0.75^2 + 0.25^2 = 0.625 of the tokens.
    for other in masks[1:]:
        assert abs((masks[0] == other).float().mean() - 0.625) < 0.015


def test_text_and_tube_masks_of_one_seed_are_unrelated():
    cells = 2000
    order = hidden_cells(tube_mask(1, (1, 1, cells), 0.5, seed=0), (1, 1, cells))[0, 0]
    hidden = text_mask(torch.full((cells,), 7), torch.tensor([0, cells]).int(), 0.5, special_ids=(), seed=0)
    assert abs((order == hidden).float().mean() - 0.5) < 0.045


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mask_ratio": 1.5}, ValueError, "mask_ratio is 1.5"),
        ({"cu_seqlens": torch.tensor([0, 4])}, TypeError, "cu_seqlens is torch.int64"),
        ({"cu_seqlens": torch.tensor([0, 3, 2]).int()}, ValueError, "never fall and end at or below the 4 rows"),
        ({"cu_seqlens": torch.tensor([0, 5]).int()}, ValueError, "never fall and end at or below the 4 rows"),
        ({"cu_seqlens": torch.tensor([1, 4]).int()}, ValueError, "must start at 0"),
        ({"input_ids": torch.ones(2, 2).long()}, ValueError, r"input_ids has shape \[2, 2\], expected \[N\]"),
    ],
)
def test_text_mask_refuses(change, error, message):
    arguments = {"input_ids": torch.ones(4).long(), "cu_seqlens": torch.tensor([0, 4]).int(), "mask_ratio": 0.5}
    with pytest.raises(error, match=message):
        text_mask(**(arguments | change), special_ids=(), seed=0)
