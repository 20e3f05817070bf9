"""What a masked word becomes: [MASK], a random word, or itself. Plain PyTorch on every device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import philox
from ..packing import locate_rows
from ..validation import INDEX_DTYPES, check_cu_seqlens, check_devices, check_seed, check_shape
from .op import resolve_sample_ids


@dataclass(frozen=True)
class Replacement:
    """What stands in the place of a masked word: by default always [MASK], as in SimVTP.

    mask_id: id of [MASK].
    vocab_size: number of ids; needed for random words.
    random_fraction: probability in [0, 1] of a random word.
    keep_fraction: probability in [0, 1] of the word itself; both together at most 1 (BERT: 0.1 and 0.1).
    special_ids: ids that are never drawn as a random word; name `mask_id` here too.
    """

    mask_id: int
    vocab_size: int | None = None
    random_fraction: float = 0.0
    keep_fraction: float = 0.0
    special_ids: Sequence[int] = ()


def replace_masked_tokens(
    input_ids: Tensor,
    masked: Tensor,
    cu_seqlens: Tensor,
    replacement: Replacement,
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    sample_ids: Tensor | Sequence[int] | None = None,
) -> Tensor:
    """Replace masked words as BERT does (Devlin et al. 2019, §3.1).

    Each masked word becomes a random word with probability `random_fraction`, stays as it is with probability
    `keep_fraction` and becomes `mask_id` otherwise. The decision depends on (seed, step, sample
    id, position in the caption) alone, not on the batch around it, and is the same on every device.

    A random word is uniform over the vocabulary without `special_ids` (to within 2^-32 per word: the upper half of 32
    random bits times the number of words); it may be the word that it replaces.

    Args:
        input_ids: token ids int [N] of S packed captions.
        masked: bool [N], True where masked, as `text_mask` returns it.
        cu_seqlens: int32 [S+1], offsets of the captions.
        replacement: the words that may stand there, and how often.
        seed: 0 <= seed < 2^64, or one int64 in a tensor on the device, which captured graphs read anew.
        step: training step, 0 <= step < 2^32, or a tensor like seed.
        sample_ids: int [S], the identity of each caption's sample; default arange(S).

    Returns:
        int [N], the dtype of input_ids; rows that are not masked and rows from cu_seqlens[-1] on are unchanged.

    Raises:
        ValueError: a shape, a fraction, an id, the seed, the step or (on the CPU) an offset is out of range, no word is
            left to draw, `vocab_size` is missing, or devices differ.
        TypeError: an integer argument has another dtype, or `masked` is not bool.
    """
    op = "replace_masked_tokens"
    mask_id, vocab_size, special_ids = replacement.mask_id, replacement.vocab_size, replacement.special_ids
    random_fraction, keep_fraction = replacement.random_fraction, replacement.keep_fraction
    check_shape(op, "input_ids", input_ids, "N")
    check_shape(op, "masked", masked, input_ids.shape[0])
    check_cu_seqlens(op, "cu_seqlens", cu_seqlens, input_ids.shape[0])
    check_devices(op, input_ids=input_ids, masked=masked, cu_seqlens=cu_seqlens)
    if input_ids.dtype not in INDEX_DTYPES:
        raise TypeError(f"{op}: input_ids is {input_ids.dtype}, expected int32 or int64")
    if masked.dtype != torch.bool:
        raise TypeError(f"{op}: masked is {masked.dtype}, expected bool")
    seed, step = check_seed(op, seed, step, device=input_ids.device)
    if not (random_fraction >= 0 and keep_fraction >= 0 and random_fraction + keep_fraction <= 1):
        raise ValueError(
            f"{op}: random_fraction {random_fraction}, keep_fraction {keep_fraction}: expected both >= 0, sum <= 1"
        )
    if vocab_size is not None and not 0 < vocab_size < 2**31:
        raise ValueError(f"{op}: vocab_size is {vocab_size}, expected 0 < vocab_size < 2**31")
    _check_ids(op, "mask_id", [mask_id], vocab_size)
    _check_ids(op, "special_ids", special_ids, vocab_size)
    sample_ids = resolve_sample_ids(op, sample_ids, cu_seqlens.shape[0] - 1, input_ids.device)

    sequence, position = locate_rows(cu_seqlens, input_ids.shape[0])
    # Rows past the end belong to no sample; a zero keeps the lookup in range.
    sample = torch.cat([sample_ids, sample_ids.new_zeros(1)])[sequence]
    counter = (*philox.split_words(sample), step, position)
    fate, word_bits = philox.random_words(philox.TOKEN_REPLACEMENT, seed, counter)[:2]
    becomes_random = philox.bernoulli(fate, random_fraction)
    stays = ~becomes_random & philox.bernoulli(fate, random_fraction + keep_fraction)
    words = torch.full_like(input_ids, mask_id)
    if random_fraction > 0:
        drawn = _random_words(op, word_bits, vocab_size, sorted(set(special_ids)))
        words = torch.where(becomes_random, drawn.to(input_ids.dtype), words)
    return torch.where(masked & (sequence < sample_ids.shape[0]) & ~stays, words, input_ids)


def _random_words(op: str, bits: Tensor, vocab_size: int | None, specials: list[int]) -> Tensor:
    """Return ids in [0, vocab_size) that are not in `specials` (ascending), one for each 32 random bits."""
    if vocab_size is None:
        raise ValueError(f"{op}: vocab_size is None, expected the number of ids where random_fraction > 0")
    if len(specials) == vocab_size:
        raise ValueError(f"{op}: special_ids holds all {vocab_size} ids, expected one to draw at least")
    word = philox.below(bits, vocab_size - len(specials))
    for special in specials:
        word = word + (word >= special)
    return word


def _check_ids(op: str, name: str, ids: Sequence[int], vocab_size: int | None) -> None:
    bound = 2**31 if vocab_size is None else vocab_size
    for token_id in ids:
        if not 0 <= token_id < bound:
            raise ValueError(f"{op}: {name} is {token_id}, expected 0 <= id < {bound}")
