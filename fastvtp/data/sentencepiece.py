"""Captions to token ids as VideoPrism reads them: SentencePiece's unigrams of canonical text."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fastvtp.data.text import ABSENT_ID, Tokenizer
from fastvtp.errors import UserError
from fastvtp.files import existing_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

SENTENCEPIECE_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.model")
_SPACES = str.maketrans(dict.fromkeys(string.punctuation, " "))
_EXTRA = re.compile(r"<extra_id_\d+>")  # which transformers appends, and no released text tower has rows for


def canonical(text: str) -> str:
    """Write `text` as the released model was shown it: ASCII punctuation as spaces, lower case, single spaces, a full
    stop.

    "it's A-B" -> "it s a b."
    """
    return " ".join(text.translate(_SPACES).lower().split()) + "."


class _Pieces(Protocol):
    """A vocabulary and what cuts texts into it."""

    entries: list[str]

    def cut(self, texts: list[str]) -> list[list[int]]: ...

    def join(self, ids: list[int]) -> str: ...

    def save(self, path: Path) -> None: ...


class _Unigram:
    """The unigrams of a tokenizer.json, which may add special tokens behind a text: they are left out."""

    def __init__(self, tokenizer: Library):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self.entries = sorted(vocabulary, key=vocabulary.__getitem__)
        while self.entries and _EXTRA.fullmatch(self.entries[-1]):
            self.entries.pop()

    def cut(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def join(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def save(self, path: Path) -> None:
        self._tokenizer.save(str(path / "tokenizer.json" if path.is_dir() else path))


class _SentencePiece:
    """The pieces of a .model file, by SentencePiece itself."""

    def __init__(self, path: Path):
        try:
            from sentencepiece import SentencePieceProcessor  # pyright: ignore
        except ImportError:
            raise UserError(f"{path} needs SentencePiece: pip install 'fastvtp[videoprism]'") from None
        self._content = path.read_bytes()
        try:
            self._processor = SentencePieceProcessor(model_proto=self._content)
        except (RuntimeError, OSError):
            raise UserError(f"{path}: not a SentencePiece model") from None
        self.entries = [self._processor.id_to_piece(number) for number in range(self._processor.get_piece_size())]

    def cut(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts, add_bos=False, add_eos=False)

    def join(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def save(self, path: Path) -> None:
        (path if path.is_dir() else path.parent).joinpath(SENTENCEPIECE_NAMES[0]).write_bytes(self._content)


class SentencePieceTokenizer(Tokenizer):
    """Cuts texts by SentencePiece's unigrams, `canonical` first, and cuts them off where they are too long.

    Nothing stands before or behind a text, since VideoPrism's text tower has its class token itself.

    Attributes:
        pad_id: 0, `<pad>`.
        special_ids: those of `<pad>` and `<unk>` and, if there, of `<s>` and `</s>`.

    Raises:
        UserError: the vocabulary does not begin with `<pad>`, or has no `<unk>`.
    """

    def __init__(self, pieces: _Pieces, name: str = "tokenizer"):
        entries = pieces.entries
        if entries[:1] != ["<pad>"] or "<unk>" not in entries:
            raise UserError(f"{name}: expected <pad> as entry 0 and <unk>, entries begin with {', '.join(entries[:3])}")
        self._pieces, self.entries = pieces, dict(enumerate(entries))
        self.pad_id, self.unk_id, self.mask_id = 0, entries.index("<unk>"), ABSENT_ID
        self.special_ids = tuple(i for i, entry in enumerate(entries) if entry in ("<pad>", "</s>", "<unk>", "<s>"))

    @classmethod
    def from_unigram(cls, tokenizer: Library, name: str = "tokenizer") -> SentencePieceTokenizer:
        """Make the tokenizer of a `tokenizer.json` of the kind Unigram."""
        return cls(_Unigram(tokenizer), name)

    @classmethod
    def from_model(cls, path: str | os.PathLike[str]) -> SentencePieceTokenizer:
        """Make the tokenizer of a `.model` file, for which SentencePiece is needed.

        Raises:
            FileNotFoundError: nothing there.
            UserError: no SentencePiece, or not a model of its.
        """
        return cls(_SentencePiece(existing_file(path, "tokenizer file")), str(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `tokenizer.json` to `path`, or into it where that is a folder; of a `.model`, a `tokenizer.model`
        there."""
        self._pieces.save(Path(path))

    def encode(self, captions: Sequence[str], max_length: int) -> list[np.ndarray]:
        """Return token ids of each caption, int64 `[length]`; longer ones lose their end, so that length <=
        `max_length`.

        Raises:
            UserError: `max_length` is less than 1.
        """
        if max_length < 1:
            raise UserError(f"max_length must be at least 1, got {max_length}")
        bodies = self._pieces.cut([canonical(text) for text in captions])
        return [np.array(body[:max_length], np.int64) for body in bodies]

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = True) -> str:
        """Join token ids to a text, in the form in which it was cut."""
        kept = [int(token) for token in ids if not skip_special or int(token) not in self.special_ids]
        return self._pieces.join(kept)
