"""What is wrong with the lines of a list: raised at the first of them, or collected by whoever wants to know all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from fastvtp.errors import UserError

_T = TypeVar("_T")

_MOST_LEFT_OUT = 50


class Faults:
    """What becomes of lines that cannot be read. As a context it takes the UserError of one of them, as `note` does.

    collects: malformed lines are noted and left out; else the first one raises its error.

    Attributes:
        found: the errors, each once, in the order in which they were met.
        more: whether reading ended before the list did, since too many of its entries are malformed.
        repeated: lines that say of a video, or of a span of it, what an earlier one says.
        first_repeated: the place of the first of these; "" where there is none.
    """

    def __init__(self, *, collects: bool = False):
        self.collects = collects
        self.found: dict[str, None] = {}
        self.more = False
        self._at: str | None = None
        self._left_out: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """Begin to read the list from its first line."""
        self.repeated, self.first_repeated = 0, ""
        self._said: set[int] = set()

    def note(self, error: UserError) -> None:
        """Collect an error, or raise it where errors are not collected."""
        if not self.collects:
            raise error
        self.found.setdefault(str(error))

    def compare(self, place: str, said: object) -> None:
        """Count a line that says what an earlier one does."""
        key = hash(repr(said))
        if key in self._said:
            self.repeated += 1
            self.first_repeated = self.first_repeated or place
        self._said.add(key)

    def __enter__(self) -> Faults:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not (self.collects and isinstance(error, UserError)):
            return False
        self.note(error)
        return True

    # --- Readers of formats, which end at the first entry that they cannot read

    def entries(self, entries: Iterable[tuple[str, _T]]) -> Iterator[tuple[str, _T]]:
        """Give the entries of a list behind their places, but those that were found to be malformed."""
        return self._sound(entries) if self.collects else iter(entries)  # of lists of millions

    def _sound(self, entries: Iterable[tuple[str, _T]]) -> Iterator[tuple[str, _T]]:
        for place, entry in entries:
            self._at = place
            if place not in self._left_out:
                yield place, entry

    def leave_out(self, error: UserError) -> bool:
        """Note that a reader ended at the entry that it was given last, which is left out from then on.

        Returns whether it may read anew: no, where there are too many such entries. Raises an error that is not of that
        entry.
        """
        if not self.collects or self._at is None or not str(error).startswith(f"{self._at}:"):
            raise error
        self.note(error)
        self._left_out.add(self._at)
        self.more = len(self._left_out) >= _MOST_LEFT_OUT
        return not self.more
