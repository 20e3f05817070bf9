"""How many heads the attention of a checkpoint has, which no shape shows: two models of unlike heads have the same
tensors. It is stated by a config.json or an axis of the arrays, or known of a size that was released; else it must be
given, and is never guessed."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

# settings that are numbers of heads -> the setting that is the width which they divide
HEADS = {"num_heads": "width", "decoder_num_heads": "decoder_width", "text_num_heads": "width"}
CONFIG_FILE = "config.json"

Size = tuple[int, ...]


def by(*settings: str) -> Callable[[Mapping[str, Any]], Size | None]:
    """Return a function of settings that returns the values of these, or None where one is absent: a checkpoint without
    a decoder has no width of it."""

    def size(values: Mapping[str, Any]) -> Size | None:
        return tuple(values[name] for name in settings) if all(values.get(name) for name in settings) else None

    return size


@dataclass(frozen=True)
class HeadTable:
    """Heads of released sizes.

    Attributes:
        setting: which heads, one of `HEADS`.
        size: the settings that shapes show -> what tells a size from others; None: the checkpoint has no such part.
        released: size -> (heads, what was released in it, in words).
    """

    setting: str
    size: Callable[[Mapping[str, Any]], Size | None]
    released: Mapping[Size, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class KnownHeads:
    """A number of heads, and where it comes from, in words."""

    number: int
    source: str

    def __str__(self) -> str:
        return f"{self.number}: {self.source}"


def known_heads(
    tables: tuple[HeadTable, ...], values: Mapping[str, Any], stated: Mapping[str, Any], stated_by: str
) -> dict[str, KnownHeads]:
    """Return what is known of a checkpoint's heads: setting -> number.

    tables: of its kind. values: the settings that its shapes show. stated: the settings that it states, which come
    before the tables. stated_by: what states them, in words.
    """
    found: dict[str, KnownHeads] = {}
    for table in tables:
        size = table.size(values)
        if size is not None and size in table.released:
            number, name = table.released[size]
            found[table.setting] = KnownHeads(number, f"released size {name}")
    return found | {name: KnownHeads(stated[name], stated_by) for name in HEADS if stated.get(name) is not None}


def unknown_heads(values: Mapping[str, Any], known: Mapping[str, KnownHeads], settings: Collection[str]) -> list[str]:
    """Return the heads among a model's `settings` of which nothing is known, though a checkpoint, whose shapes show
    `values`, has the width that they divide."""
    return [name for name, width in HEADS.items() if name in settings and width in values and name not in known]
