"""Philox against Random123's known answers and the properties the ops rely on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvtp_kernels import philox

KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
STREAMS = [getattr(philox, name) for name in dir(philox) if name.isupper() and not name.startswith("_")]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
@pytest.mark.parametrize("as_tensors", [True, False], ids=["tensors", "integers"])
def test_known_answers(counter, key, expected, as_tensors):
    c, k = ([torch.tensor([word]) if as_tensors else word for word in words] for words in (counter, key))
    words = philox.philox((c[0], c[1], c[2], c[3]), (k[0], k[1]))
    assert tuple(map(int, words)) == expected


def random123(counter, key):
    """The published algorithm in Python's unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


word = st.integers(0, 2**32 - 1)


@given(st.tuples(word, word, word, word), st.tuples(word, word))
def test_int64_tensors_equal_unbounded_integers(counter, key):
    c = [torch.tensor([word]) for word in counter]
    words = philox.philox((c[0], c[1], c[2], c[3]), key)
    assert [int(word) for word in words] == random123(counter, key)


def test_words_broadcast_to_every_counter():
    rows, columns = torch.arange(5)[:, None], torch.arange(7)
    words = philox.random_words(philox.TUBE_MASK, 3, (rows, columns, 9, 0))
    for each in words:
        assert each.shape == (5, 7)
    single = philox.random_words(philox.TUBE_MASK, 3, (torch.tensor(4), torch.tensor(6), 9, 0))
    assert [int(w[4, 6]) for w in words] == [int(w) for w in single]


def test_streams_and_seeds_do_not_share_numbers():
    counter = (torch.arange(1000), 0, 0, 0)
    seeds = (0, 1, 2**32, 2**63, 2**64 - 1)
    drawn = torch.cat([torch.cat(philox.random_words(s, seed, counter)) for s in STREAMS for seed in seeds])
    # 140000 words of 32 bits: 2.3 collisions are expected by chance.
    assert drawn.unique().numel() > drawn.numel() - 10


def test_uniform_stays_below_one_and_is_even():
    word = torch.tensor([0, 255, 256, 2**32 - 1])
    low, high = philox.uniform(torch.zeros_like(word), word), philox.uniform(word, word)
    assert low.tolist() == [0, 0, 2.0**-48, 2.0**-24 - 2.0**-48]
    assert high.tolist() == [0, 0, 2.0**-24 + 2.0**-48, 1 - 2.0**-48]
    words = philox.random_words(philox.TEXT_MASK, 0, (torch.arange(20000), 0, 0, 0))
    drawn = philox.uniform(words[0], words[1])
    assert drawn.dtype == torch.float64
    assert (torch.histc(drawn, 10, 0, 1) - 2000).abs().max() < 170  # four standard deviations


def test_below_is_uniform_and_stays_below():
    words = torch.arange(0, 2**32, 2**12 - 1)
    for bound in (1, 3, 10, 1000):
        counts = philox.below(words, bound).bincount(minlength=bound)
        assert len(counts) == bound
        assert counts.max() - counts.min() <= 2
    assert philox.below(torch.tensor(2**32 - 1), 2**31 - 1) == 2**31 - 2


def test_bernoulli_probability_is_exact_at_the_ends():
    words = torch.tensor([0, 2**31, 2**32 - 1])
    assert philox.bernoulli(words, 0.0).tolist() == [False] * 3
    assert philox.bernoulli(words, 0.5).tolist() == [True, False, False]
    assert philox.bernoulli(words, 1.0).tolist() == [True] * 3


def test_global_generator_is_untouched():
    state = torch.get_rng_state()
    philox.random_words(philox.TUBE_MASK, 1, (torch.arange(4), 0, 0, 0))
    assert torch.equal(state, torch.get_rng_state())
