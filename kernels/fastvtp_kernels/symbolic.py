"""Lengths that a compiler does not know: what `.item()` gives inside compiled code has no value when it is traced."""

from typing import Any

import torch


def _are_plain(*lengths: int) -> bool:
    """Tell whether lengths are numbers whatever compiler may be looking."""
    if torch.compiler.is_compiling():
        return False
    return all(type(length) is int for length in lengths)


def holds(condition: bool) -> bool:
    """Tell whether a comparison of lengths holds; one that a compiler can neither prove nor guard does not."""
    if not torch.compiler.is_compiling():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return guard_or_false(condition)


def is_unknown(length: int) -> bool:
    """Tell whether a length is read from a tensor inside compiled code."""
    if _are_plain(length):
        return False
    return not (holds(length > 1) or holds(length <= 1))


def bound(length: int) -> int:
    """Return a bound on lengths, 1 or more.

    An unknown one is 2 or more, since 1 is a case of its own for shapes; longer than it need be changes no result.
    """
    return longer(length, 2) if is_unknown(length) else max(length, 1)


def longer(first: int, second: int) -> int:
    """Return the larger of two lengths, without asking which it is."""
    if _are_plain(first, second):
        return max(first, second)
    found: Any = torch.sym_max(first, second)
    return found
