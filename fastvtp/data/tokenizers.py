"""Tokenizers from disk, of whichever kind a file turns out to be."""

from __future__ import annotations

import os
from pathlib import Path

from fastvtp.data.sentencepiece import SENTENCEPIECE_NAMES, SentencePieceTokenizer
from fastvtp.data.text import Tokenizer
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import UserError
from fastvtp.files import existing_file

TOKENIZER_NAMES = ("tokenizer.json", "vocab.txt", *SENTENCEPIECE_NAMES)


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Load a `tokenizer.json`, BERT's `vocab.txt`, SentencePiece's `.model`, or a folder that holds one of them.

    What SentencePiece cuts (a `.model`, or a `tokenizer.json` of the kind Unigram) becomes a `SentencePieceTokenizer`,
    everything else a `CaptionTokenizer`.

    Raises:
        FileNotFoundError: nothing there.
        UserError: not a tokenizer, or one without its kind's special tokens.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in TOKENIZER_NAMES if (path / name).is_file()]
        if not files:
            raise FileNotFoundError(f"{path}: holds neither tokenizer.json nor vocab.txt")
        path = files[0]
    if path.suffix == ".model":
        return SentencePieceTokenizer.from_model(path)
    existing_file(path, "tokenizer file")
    if path.suffix == ".txt":
        return CaptionTokenizer.from_vocabulary(path)

    from tokenizers import Tokenizer as Library
    from tokenizers import models

    try:
        tokenizer = Library.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise UserError(f"{path}: not a tokenizer.json: {error}") from None
    kind = SentencePieceTokenizer.from_unigram if isinstance(tokenizer.model, models.Unigram) else CaptionTokenizer
    return kind(tokenizer, str(path))
