"""Philox4x32-10: random numbers as a pure function of (stream, seed, counter), the same bits on every device.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Random123). Words are int64 tensors, or Python
ints, that hold values in [0, 2^32). Nothing is drawn from, or changes, torch's own generators.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Word: TypeAlias = Tensor | int

# One 64-bit constant per use, mixed into the key, so that two uses of one seed never share numbers.
TUBE_MASK = 0x9C6E1F4A2B7D3851
TEXT_MASK = 0x5A17C3E98D40F62B
HARD_NEGATIVES = 0xE3B0957C46D1A82F
ATTENTION_DROPOUT = 0x27D8F4B1906CE35A
BLOCK_MASK = 0x6B41D90F3CE7A285
RUNNING_CELL_MASK = 0xC8352E7B91F4064D
TOKEN_REPLACEMENT = 0x1FA96C50E8D3724B
TOKEN_ORDER = 0x84E2B7D05F1C936B

_LOW_32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)


def split_words(value: Word) -> tuple[Word, Word]:
    """Return the (low, high) 32-bit words of a 64-bit integer."""
    return value & _LOW_32, (value >> 32) & _LOW_32


def signed(value: int, bits: int = 64) -> int:
    """Return the integer whose two's complement has the bits of `value` in [0, 2^bits)."""
    return value - 2**bits if value >= 2 ** (bits - 1) else value


def for_kernels(seed: Word, step: Word, device: torch.device) -> tuple[tuple[int, int], Tensor | None]:
    """Return a seed and a step as kernels take them: (seed in two's complement, step) and None; or, where one of them
    is a tensor, zeros and both as int64 [2] on the device. There they are data, which captured graphs read anew.
    """
    if not isinstance(seed, Tensor) and not isinstance(step, Tensor):
        return (signed(seed), step), None
    words = (
        word if isinstance(word, Tensor) else torch.full((1,), signed(word), dtype=torch.int64, device=device)
        for word in (seed, step)
    )
    return (0, 0), torch.cat([word.reshape(1) for word in words])


def kernel_key(stream: int, seed: int) -> int:
    """Return the key of a stream and a seed, as `for_kernels` gives that, in two's complement."""
    return signed((seed ^ stream) & 0xFFFFFFFFFFFFFFFF)


def from_kernels(draw: Sequence[int], on_device: Tensor | None) -> tuple[Word, Word]:
    """Return the seed and the step that `for_kernels` made into these, as words."""
    return (draw[0], draw[1]) if on_device is None else (on_device[0], on_device[1] & _LOW_32)


def _multiply(word: Word, multiplier: int) -> tuple[Word, Word]:
    """Return the (high, low) words of the 64-bit product, for a multiplier of at least 2^31."""
    # word * multiplier overflows int64; word * (multiplier - 2^32) does not and is smaller by exactly word * 2^32.
    reduced = word * (multiplier - 2**32)
    return (reduced >> 32) + word, reduced & _LOW_32


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> tuple[Word, Word, Word, Word]:
    """Run ten Philox rounds over broadcastable words; returns four words in [0, 2^32) of the broadcast shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & _LOW_32, (k1 + _KEY_INCREMENTS[1]) & _LOW_32
    return c0, c1, c2, c3


def random_words(stream: int, seed: Word, counter: tuple[Word, Word, Word, Word]) -> tuple[Tensor, ...]:
    """Return four independent words of 32 random bits, int64, each of the shape the counter broadcasts to.

    `stream` is one of the constants above, `seed` a 64-bit integer or an int64 tensor that broadcasts with the counter;
    at least one counter word is a tensor.
    """
    low, high = split_words(seed)
    stream_low, stream_high = split_words(stream)
    words = philox(counter, (low ^ stream_low, high ^ stream_high))
    return tuple(torch.as_tensor(word) for word in words)


def uniform(high: Tensor, low: Tensor) -> Tensor:
    """float64 in [0, 1), a multiple of 2^-48, from two random words: fine enough to draw one of millions."""
    return (high >> 8).double() * 2.0**-24 + (low >> 8).double() * 2.0**-48


def below(word: Tensor, bound: Word) -> Tensor:
    """Return an integer in [0, bound), for bound < 2^31, from 32 random bits: the upper word of their product.

    The probability of each value is within 2^-32 of 1 / bound.
    """
    return (word * bound) >> 32


def bernoulli(word: Tensor, probability: float) -> Tensor:
    """Return True with the given probability, decided by an integer comparison: exact, hence the same on every
    device."""
    return word < round(probability * 2**32)
