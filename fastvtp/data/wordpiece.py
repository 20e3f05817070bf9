"""Captions to token ids: BERT's lower-casing WordPiece over the Hugging Face `tokenizers` library."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastvtp.data.text import PackedText, Tokenizer
from fastvtp.errors import UserError
from fastvtp.files import lines_of, read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class CaptionTokenizer(Tokenizer):
    """A WordPiece tokenizer that writes `[CLS] caption [SEP]`, or `[CLS] question [SEP] option [SEP]`.

    Attributes:
        pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special tokens.
        special_ids: all five.

    Raises:
        UserError: the vocabulary lacks one of the five special tokens.
    """

    def __init__(self, tokenizer: Library, name: str = "tokenizer"):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
        if missing:
            raise UserError(f"{name}: expected a BERT WordPiece vocabulary, this one has no {', '.join(missing)}")
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self.entries = {number: token for token, number in vocabulary.items()}
        self.special_ids = tuple(vocabulary[token] for token in SPECIAL_TOKENS)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = self.special_ids

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> CaptionTokenizer:
        """Learn a vocabulary of at most `vocab_size` tokens; the same captions, in any order, give the same vocabulary.

        Raises:
            UserError: no captions, or `vocab_size` too small for their characters.
        """
        from tokenizers import trainers

        captions = list(captions)
        blank = _word_piece({})
        pieces = _single_characters(blank, captions)
        if not pieces:
            raise UserError("cannot train a tokenizer without captions")
        if vocab_size < len(SPECIAL_TOKENS) + len(pieces):
            raise UserError(
                f"vocab_size {vocab_size} is too small: the special tokens and the characters of the captions alone "
                f"are {len(SPECIAL_TOKENS) + len(pieces)}"
            )
        # The trainer numbers characters as it meets them in a randomly ordered hash map, and breaks ties between merges
        # by those numbers. Naming all of them beforehand as "special" tokens fixes the numbers and so the vocabulary;
        # the tokenizer built from that vocabulary below knows only the true special tokens.
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=[*SPECIAL_TOKENS, *pieces],
            limit_alphabet=len(pieces),
            show_progress=False,
        )
        blank.train_from_iterator(captions, trainer)
        return cls(_word_piece(blank.get_vocab()))

    @classmethod
    def from_vocabulary(cls, path: Path) -> CaptionTokenizer:
        """Make the uncased tokenizer of BERT's `vocab.txt`, an entry a line.

        Raises:
            FileNotFoundError: nothing there.
            UserError: not UTF-8, or without the special tokens.
        """
        entries = lines_of(read_text(path))
        return cls(_word_piece({entry: number for number, entry in enumerate(entries)}), str(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `tokenizer.json` to `path`, or into it where `path` is a folder."""
        path = Path(path)
        self._tokenizer.save(str(path / "tokenizer.json" if path.is_dir() else path))

    def encode(self, captions: Sequence[str], max_length: int) -> list[np.ndarray]:
        """Return token ids of each caption, int64 `[length]`; longer ones lose their end, so that length <=
        `max_length`.

        Raises:
            UserError: `max_length` leaves no room between [CLS] and [SEP].
        """
        if max_length < 3:
            raise UserError(f"max_length must be at least 3 ([CLS], one token, [SEP]), got {max_length}")
        bodies = self._bodies(captions)
        return [np.array([self.cls_id, *body[: max_length - 2], self.sep_id], np.int64) for body in bodies]

    def encode_pairs(self, firsts: Sequence[str], seconds: Sequence[str], max_length: int) -> PackedText:
        """Encode pairs of texts in BERT's form, `[CLS] first [SEP] second [SEP]`, each pair at most `max_length` tokens
        long.

        A pair that is too long loses the end of its first text, down to one token, before the end of its second: the
        options of one question must not become equal.

        Raises:
            UserError: `max_length` leaves no room for one token of each.
        """
        if max_length < 5:
            raise UserError(f"max_length must be at least 5 (a token of each text, [CLS], 2 [SEP]), got {max_length}")
        room, bodies = max_length - 3, (self._bodies(texts) for texts in (firsts, seconds))
        pairs = []
        for first, second in zip(*bodies, strict=True):
            kept = first[: max(room - len(second), 1)]
            second = second[: room - len(kept)]
            pairs.append(np.array([self.cls_id, *kept, self.sep_id, *second, self.sep_id], np.int64))
        return PackedText.of(pairs)

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = True) -> str:
        """Join token ids to a text, word pieces to words."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=skip_special)

    def _bodies(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids of whole texts, without [CLS] and [SEP]."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def _word_piece(vocabulary: dict[str, int]) -> Library:
    """Return a BERT tokenizer (uncased) over `vocabulary`."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Library(models.WordPiece(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    present = [token for token in SPECIAL_TOKENS if token in vocabulary]
    tokenizer.add_special_tokens(present)
    if CLS in vocabulary and SEP in vocabulary:
        tokenizer.post_processor = processors.BertProcessing((SEP, vocabulary[SEP]), (CLS, vocabulary[CLS]))
    return tokenizer


def _single_characters(tokenizer: Library, captions: Iterable[str]) -> list[str]:
    """Return the one-character pieces of all words, sorted: `a` where it begins a word, `##a` inside one."""
    words: set[str] = set()
    for caption in captions:
        normalized = tokenizer.normalizer.normalize_str(caption)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized))
    return sorted({word[0] for word in words} | {f"##{character}" for word in words for character in word[1:]})
