"""What all tokenizers have in common, whatever library cuts the words: captions become packed token ids."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

MIN_TEXT_LENGTH = 3  # [CLS], a token, [SEP]
ABSENT_ID = -1


@dataclass(frozen=True)
class PackedText:
    """Captions without padding: `input_ids` int64 `[N]`, one caption after the other, and their lengths (sum N)."""

    input_ids: np.ndarray
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, ids: Sequence[np.ndarray]) -> PackedText:
        """Pack texts whose token ids are given, int64 `[length]` each."""
        return cls(np.concatenate(ids) if ids else np.empty(0, np.int64), tuple(len(text) for text in ids))


class Tokenizer(ABC):
    """Turns captions into token ids and back; made by `fastvtp.data.tokenizers.load_tokenizer`.

    Attributes:
        entries: the vocabulary by id.
        pad_id, unk_id: ids of padding, and of what the vocabulary does not cover.
        mask_id: id of a hidden word; `ABSENT_ID` where the vocabulary has none.
        special_ids: ids that stand for no part of a text, those above included.
    """

    entries: Mapping[int, str]
    pad_id: int
    unk_id: int
    mask_id: int
    special_ids: tuple[int, ...]

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""
        return len(self.entries)

    @property
    def model_settings(self) -> dict[str, Any]:
        """The settings of a model's configuration that follow from its tokenizer, by the names that they have there."""
        return {
            "vocab_size": self.vocab_size,
            "pad_token_id": self.pad_id,
            "mask_token_id": self.mask_id,
            "special_token_ids": tuple(sorted(self.special_ids)),
        }

    def settings_of(self, config: Any) -> dict[str, Any]:
        """Return those of `model_settings` that a configuration, or the class of one, has."""
        known = {entry.name for entry in fields(config)}
        return {name: value for name, value in self.model_settings.items() if name in known}

    @abstractmethod
    def encode(self, captions: Sequence[str], max_length: int) -> list[np.ndarray]:
        """Encode each caption as token ids, int64 `[length]`; longer ones lose their end, so that length <=
        `max_length`.

        Raises:
            UserError: `max_length` leaves no room for a token of the caption.
        """

    def encode_packed(self, captions: Sequence[str], max_length: int) -> PackedText:
        """Encode captions as `encode` does, all in one array without padding."""
        return PackedText.of(self.encode(captions, max_length))

    def tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Look up the vocabulary entry of each id; WordPiece's continuations keep their "##"."""
        return [self.entries[int(token)] for token in ids]

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = True) -> str:
        """Join token ids to a text, pieces of words to words."""

    @abstractmethod
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what `load_tokenizer` reads: to `path`, or into it where `path` is a folder."""
