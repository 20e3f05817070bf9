"""What lies beside converted weights: lists that say what their outputs mean, and how their clips were read."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvtp.data.classes import read_class_names, write_class_names
from fastvtp.data.entities import read_entities, write_entities
from fastvtp.data.questions import AnswerVocabulary, read_answers
from fastvtp.errors import UserError
from fastvtp.model_folder import ANSWERS_NAME, CLASSES_NAME, ENTITIES_NAME, recorded_framing

_NAMES = {"answers": ANSWERS_NAME, "entities": ENTITIES_NAME, "classes": CLASSES_NAME}
_READERS: dict[str, Callable[[Path], Sequence[str]]] = {
    "answers": lambda path: read_answers(path).answers, "entities": read_entities, "classes": read_class_names,
}  # fmt: skip
_WRITERS: dict[str, Callable[[Path, Sequence[str]], None]] = {
    "answers": lambda path, names: AnswerVocabulary(tuple(names)).save(path), "entities": write_entities,
    "classes": write_class_names,
}  # fmt: skip

Lists = dict[str, tuple[Path, Sequence[str]]]
""""answers", "entities" or "classes" -> where they were read, and themselves."""


def find_lists(source: Path, given: Mapping[str, str | Path | None], architecture: str, config: Any) -> Lists:
    """The lists of a model: of the files `given`, or else those in the folder `source`.

    Raises FileNotFoundError and UserError: a given file absent or unreadable, a list of another length than the head,
    or one for a model that has no such head.
    """
    sizes = _sizes(architecture, config)
    found: Lists = {}
    for what, name in _NAMES.items():
        file = given.get(what)
        path = Path(source / name if file is None else file)
        if what not in sizes and file is not None:
            raise UserError(f"this {architecture} has no outputs for {what}: leave out {file}")
        if what not in sizes or (file is None and not path.is_file()):
            continue
        names = _READERS[what](path)
        if len(names) != sizes[what]:
            raise UserError(f"{path} has {len(names)} {what}, expected the model's {sizes[what]}")
        found[what] = path, names
    return found


def notes_about(lists: Lists, source: Path, architecture: str, config: Any) -> dict[str, str]:
    """What to say about each list that the model could have."""
    return {
        what: f"{len(lists[what][1])} of {lists[what][0]}" if what in lists else f"none in {source}: {_remedy(what)}"
        for what in _sizes(architecture, config)
    }


def write_lists(folder: Path, lists: Lists) -> None:
    """Write lists under the names that runs use."""
    for what, (_, names) in lists.items():
        _WRITERS[what](folder / _NAMES[what], names)


def known_framing(source: Path, origin: str) -> str | None:
    """How the clips of `source` were read: as it says, or squashed where it is ALPRO's release; None: nobody knows.

    Raises CheckpointError where it says something else.
    """
    return recorded_framing(source) or ("squash" if origin == "alpro" else None)


def _remedy(what: str) -> str:
    without = "they go by their numbers, unless you " if what == "classes" else ""
    return f"{without}give a list, one a line (--{what})"


def _sizes(architecture: str, config: Any) -> dict[str, int]:
    """How many of which the model tells apart. A head of one answer chooses among options."""
    if architecture == "alpro":
        return {"entities": config.num_entities}
    if hasattr(config, "num_classes"):
        return {"classes": config.num_classes}
    answers = getattr(config, "num_answers", 1)
    return {"answers": answers} if answers > 1 else {}
