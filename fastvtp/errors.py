"""The one kind of error that is the user's to mend."""

import difflib
from collections.abc import Iterable

_MOST_LISTED, _OF_A_KIND = 6, 3


class UserError(ValueError):
    """Bad input: a file, field, shape or setting. The message is one line that names it and says what was expected; the
    CLI prints it without a traceback."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that does not exist, with the nearest one that does.

    A last part that is right ("flip" for "data.flip") or nearly so is recognised too.
    """
    names = list(known)
    by_last_part = {known_name.rsplit(".", 1)[-1]: known_name for known_name in reversed(names)}
    near = difflib.get_close_matches(name, names, n=1)
    near_part = difflib.get_close_matches(name, by_last_part, n=1)
    if name in by_last_part or (not near and near_part):
        near = [by_last_part[name if name in by_last_part else near_part[0]]]
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return UserError(f"no {kind} {name!r}; {hint}")


_OF_ONE = {"are": "is", "have": "has", "end": "ends"}


def counted(number: int, name: str, verb: str = "") -> str:
    """Say how many there are of what `name` calls one of, "1 video", "2 videos", "3 classes", and with a verb what they
    do: "1 video is", "2 videos are"."""
    one = number == 1
    said = f"{number} {name}" if one else f"{number} {name}{'es' if name.endswith('s') else 's'}"
    return f"{said} {_OF_ONE[verb] if one else verb}" if verb else said


def few(names: Iterable[str], most: int = 5, between: str = ", ") -> str:
    """Return names as an enumeration: all of them, or the first `most` and how many more there are, "a, b, and 7
    more"."""
    every = list(names)
    more = [f"and {len(every) - most:,} more"] if len(every) > most else []
    return between.join([*every[:most], *more])


def few_of(problems: Iterable[str]) -> str:
    """Return problems of the entries of a checkpoint as an enumeration: all of them where they are few, else the first
    of each kind ("missing ...", "unexpected ...", or a shape that differs) and how many there are more of it."""
    kinds: dict[str, list[str]] = {"of another shape": [], "missing": [], "unexpected": []}
    for problem in sorted(problems):
        kind = problem.partition(" ")[0]
        kinds[kind if kind in kinds else "of another shape"].append(problem)
    found = [problem for listed in kinds.values() for problem in listed]
    if len(found) <= _MOST_LISTED:
        return "; ".join(sorted(found))
    parts = []
    for kind, listed in kinds.items():
        parts += listed[:_OF_A_KIND]
        if more := len(listed[_OF_A_KIND:]):
            parts.append(f"{more} more {kind}")
    return "; ".join(parts)


class ConfigError(UserError):
    """A setting that does not exist or cannot take the value given; the message is one line."""


class CheckpointError(UserError):
    """A checkpoint that is absent, malformed, or does not fit the model; the message is one line.

    problems: where it does not fit, all that is wrong with its entries, of which the message may name a few alone.
    """

    def __init__(self, message: str, problems: Iterable[str] = ()):
        super().__init__(message)
        self.problems = tuple(sorted(problems))


class FailedElsewhereError(UserError):
    """Another process of the run failed, and has said or will say why; this one only ends with it."""
