"""Many texts in little memory: one after the other in arrays, which processes can share."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

_AT_ONCE = 1024
_FEW = 4  # locations a folder, from which on folders are kept apart


class TextWriter:
    """Takes texts one after the other; `texts` returns them."""

    def __init__(self) -> None:
        self._content, self._ends = bytearray(), array("q", (0,))

    def add(self, text: str) -> None:
        """Take one more text."""
        self._content += text.encode(errors="surrogatepass")
        self._ends.append(len(self._content))

    def texts(self) -> Texts:
        """Return all of them; there are no more to come."""
        return Texts(np.frombuffer(self._content, np.uint8), narrow(self._ends))


class Texts:
    """Texts, one after the other in one array of bytes; made by `TextWriter` or `texts_of`.

    content: uint8. ends: where each text ends, behind a 0.
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray):
        self._arrays = content, ends
        self._look()

    def _look(self) -> None:
        # as buffers: numbers and bytes out of arrays themselves take several times as long
        self._content, self._ends = (each.data for each in self._arrays)

    def __getstate__(self) -> Any:
        return self._arrays

    def __setstate__(self, state: Any) -> None:
        self._arrays = state
        self._look()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        ends = self._ends
        return str(self._content[ends[index] : ends[index + 1]], "utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            yield from self.part(first, min(first + _AT_ONCE, len(self)))

    def part(self, start: int, stop: int) -> Sequence[str]:
        """Return the texts from `start` to before `stop`, which is faster than one by one."""
        ends = self._ends[start : stop + 1].tolist()
        first = ends[0]
        text = str(self._content[first : ends[-1]], "utf-8", "surrogatepass")
        if len(text) < ends[-1] - first:  # a character may take several bytes
            return [self[index] for index in range(start, stop)]
        return [text[ends[i] - first : ends[i + 1] - first] for i in range(stop - start)]


def texts_of(texts: Iterable[str]) -> Texts:
    """Keep texts in one array."""
    writer = TextWriter()
    for text in texts:
        writer.add(text)
    return writer.texts()


class Locations:
    """Locations of videos, or other paths, whose folders are kept once each."""

    def __init__(self, whole: Texts):
        folders, places = dict[str, int](), array("q")
        for location in whole:
            places.append(folders.setdefault(_folder_of(location), len(folders)))
            if len(folders) * _FEW > len(whole):
                self._folders, self._names, self._places = texts_of([""]), whole, np.zeros(len(whole), np.uint8)
                break
        else:
            self._folders, self._places = texts_of(folders), narrow(places)
            self._names = texts_of(location[len(_folder_of(location)) :] for location in whole)
        self._look()

    def _look(self) -> None:
        self._place = self._places.data
        self._named: dict[int, str] = {}  # some of the folders that were asked for

    def __getstate__(self) -> Any:
        return self._folders, self._names, self._places

    def __setstate__(self, state: Any) -> None:
        self._folders, self._names, self._places = state
        self._look()

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> str:
        place = self._place[index]
        folder = self._named.get(place)
        return (self._folder(place) if folder is None else folder) + self._names[index]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            yield from self.part(first, min(first + _AT_ONCE, len(self)))

    def part(self, start: int, stop: int) -> Sequence[str]:
        """Return those from `start` to before `stop`, which is faster than one by one."""
        places = self._places[start:stop].tolist()
        return [self._folder(place) + name for place, name in zip(places, self._names.part(start, stop), strict=True)]

    def _folder(self, place: int) -> str:
        if (known := self._named.get(place)) is None:
            if len(self._named) >= _AT_ONCE:  # of millions of folders not all are kept
                self._named.clear()
            known = self._named[place] = self._folders[place]
        return known


def narrow(numbers: Any) -> np.ndarray:
    """Return whole numbers, none negative, as an array of the narrowest type that holds them."""
    wide = np.asarray(numbers, np.int64)
    return wide.astype(np.min_scalar_type(int(wide.max(initial=0))))


def _folder_of(location: str) -> str:
    """Return all up to the last name in a location, be that in a folder or in a tar."""
    return location[: max(location.rfind("/") + 1, location.rfind("::") + 2 if "::" in location else 0)]
