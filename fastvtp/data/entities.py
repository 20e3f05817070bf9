"""What captions speak of: nouns by frequency, which ALPRO's prompts ask for (arXiv:2112.09583, section 3.2)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from fastvtp.errors import UserError
from fastvtp.files import (
    lines_of,
    read_text,
    write_atomically,
)

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_ENTITY = re.compile(r"(?=.*[^\W\d_])[^\W_]+(?:['’-][^\W_]+)*")  # also "4k"
_NOUNS = ("NN", "NNS")  # of the Penn Treebank's tags; names of persons and places (NNP) are no entities

Tagger = Callable[[list[str]], Iterable[tuple[str, str]]]
"""Words of a sentence -> each with its Penn Treebank tag."""


def build_entities(
    captions: Iterable[str], size: int, *, words: Collection[str] | None = None, tagger: Tagger | None = None
) -> list[str]:
    """Find the `size` most frequent nouns of `captions` in lower case, equally frequent ones in alphabetical order.

    words: what counts as a noun, if given; no tagger is asked then. tagger: tells nouns from other words by the
    sentence they stand in; None: NLTK's perceptron (extra `entities`).

    Raises:
        UserError: `size` not positive, no noun in the captions, or the default tagger is not installed.
    """
    if size < 1:
        raise UserError(f"size must be positive, got {size}")
    if words is not None:
        known = {word.lower() for word in words}
        nouns = (word for caption in captions for word in _WORD.findall(caption.lower()) if word in known)
    else:
        tag = tagger or perceptron_tagger()
        tagged = (pair for caption in captions if (sentence := _WORD.findall(caption)) for pair in tag(sentence))
        nouns = (word.lower() for word, kind in tagged if kind in _NOUNS)
    counts = Counter(nouns)
    if not counts:
        raise UserError("the captions hold no noun" + (" of the word list" if words is not None else ""))
    return sorted(counts, key=lambda noun: (-counts[noun], noun))[:size]


def perceptron_tagger() -> Tagger:
    """Load NLTK's averaged perceptron for English.

    Raises:
        UserError: NLTK or its weights are not installed.
    """
    try:
        from nltk.tag.perceptron import PerceptronTagger  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("telling nouns needs NLTK: pip install 'fastvtp[entities]', or give a word list") from None
    try:
        return PerceptronTagger().tag
    except LookupError:
        raise UserError(
            "NLTK has no tagger yet: python -m nltk.downloader averaged_perceptron_tagger_eng, or give a word list"
        ) from None


def read_entities(path: str | os.PathLike[str], limit: int | None = None) -> list[str]:
    """Read the first word of each line, as the released code reads its list of unigrams; at most `limit` of them.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a folder, not UTF-8, no words, a line that begins with none, or a word twice, whose prompts would be
            the same.
    """
    lines = enumerate(lines_of(read_text(path)), 1)
    listed = [(number, line.split()[0]) for number, line in lines if line.strip()][:limit]
    if odd := next((place for place in listed if not _ENTITY.fullmatch(place[1])), None):
        raise UserError(f"{path}, line {odd[0]}: expected a word, got {odd[1]!r}")
    entities = [entity for _, entity in listed]
    if not entities:
        raise UserError(f"{path}: lists no entities")
    if len(set(entities)) < len(entities):
        twice = next(word for word, count in Counter(entities).items() if count > 1)
        raise UserError(f"{path}: lists {twice!r} more than once")
    return entities


def write_entities(path: str | os.PathLike[str], entities: Iterable[str]) -> None:
    """Write what `read_entities` reads, one a line."""
    write_atomically(Path(path), "".join(f"{entity}\n" for entity in entities).encode())
