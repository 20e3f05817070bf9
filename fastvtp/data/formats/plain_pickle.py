"""Reading a pickle of plain values as the data that it is: no name in it is looked up and nothing can be called."""

from __future__ import annotations

from collections.abc import Callable
from pickletools import genops
from typing import Any

from fastvtp.errors import UserError

_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset(
    {
        *("UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "INT", "BININT", "BININT1", "BININT2"),
        *("LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    }
)
_BYTE_TEXTS = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING"})  # of Python 2
_SAYING_NOTHING = frozenset({"PROTO", "FRAME", "STOP"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS, _GETS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"}), frozenset({"GET", "BINGET", "LONG_BINGET"})


def plain_pickle(content: bytes) -> Any:
    """Read a pickle of dictionaries, lists, tuples, texts, numbers, truth values and None, of any protocol; texts of
    Python 2 are read as UTF-8.

    Raises:
        UserError: it names a class or function, or holds anything else, which the message calls by its opcode.
        ValueError, LookupError or TypeError: it is no pickle, or a damaged one.
    """
    machine = _Machine()
    for opcode, argument, _ in genops(content):
        machine.step(opcode.name, argument)
    (value,) = machine.stack
    return value


class _Machine:
    """The stack and the memo of a pickle that is being read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[Any, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _BYTE_TEXTS:
            stack.append(argument.encode("latin-1").decode("utf-8"))
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _PUTS:
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in _GETS:
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in ("POP", "POP_MARK", "DUP"):
            self._turn(name)
        elif name not in _SAYING_NOTHING:
            self._collect(name, argument)

    def _turn(self, name: str) -> None:
        if name == "DUP":
            self.stack.append(self.stack[-1])
        elif name == "POP" and not (self._marks and self._marks[-1] == len(self.stack)):
            self.stack.pop()
        else:
            self._since_mark()

    def _collect(self, name: str, argument: Any) -> None:
        if name == "APPEND":
            value = self.stack.pop()
            self._top(list).append(value)
        elif name == "APPENDS":
            values = self._since_mark()
            self._top(list).extend(values)
        elif name == "SETITEM":
            values = self._last(2)
            self._top(dict).update([(values[0], values[1])])
        elif name == "SETITEMS":
            values = self._since_mark()
            self._top(dict).update(zip(values[::2], values[1::2], strict=True))
        elif name in _TUPLES:
            self.stack.append(tuple(self._last(_TUPLES[name])))
        elif name in ("TUPLE", "LIST"):
            values = self._since_mark()
            self.stack.append(tuple(values) if name == "TUPLE" else values)
        elif name == "DICT":
            values = self._since_mark()
            self.stack.append(dict(zip(values[::2], values[1::2], strict=True)))
        else:
            self._refuse(name, argument)

    def _refuse(self, name: str, argument: Any) -> None:
        if name == "STACK_GLOBAL":
            argument = " ".join(map(str, self._last(2)))
        if name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            named = str(argument).replace(" ", ".")
            raise UserError(f"names {named}, and files that name code are not read")
        raise UserError(f"holds {name}, which is no plain value")

    def _top(self, kind: type) -> Any:
        value = self.stack[-1]
        if type(value) is not kind:
            raise TypeError(f"expected a {kind.__name__}, got a {type(value).__name__}")
        return value

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("a value is missing")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values
