"""What was used last, kept in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class LastUsed(Generic[_Key, _Value]):
    """Values by their keys; those used longest ago are forgotten while all weigh more than `most`. The newest stays,
    whatever it weighs. Threads may share it.

    weigh: the weight of a value, which does not change; without it each weighs 1.
    """

    def __init__(self, most: int, weigh: Callable[[_Value], int] = lambda _: 1):
        self._most, self._weigh, self._lock = most, weigh, threading.Lock()
        self._values: OrderedDict[_Key, _Value] = OrderedDict()
        self.held = 0
        """What all of them weigh."""

    def get(self, key: _Key) -> _Value | None:
        """Return the value of a key, which this counts as using; None: it is not, or no longer, known."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def keep(self, key: _Key, value: _Value) -> _Value:
        """Keep a value, in place of one of the same key, and return it."""
        with self._lock:
            self._drop(key)
            self._values[key] = value
            self.held += self._weigh(value)
            while self.held > self._most and len(self._values) > 1:
                self._drop(next(iter(self._values)))
        return value

    def forget(self, *keys: _Key) -> None:
        """Forget the values of these keys; without any, of all."""
        with self._lock:
            for key in keys or list(self._values):
                self._drop(key)

    def _drop(self, key: _Key) -> None:
        if key in self._values:
            self.held -= self._weigh(self._values.pop(key))
