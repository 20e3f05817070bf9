"""The lists beside a model that say what its outputs mean: found, checked against the model, and written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvtp.architecture import architecture_of
from fastvtp.data.classes import read_class_names, write_class_names
from fastvtp.data.entities import read_entities, write_entities
from fastvtp.data.questions import AnswerVocabulary, read_answers
from fastvtp.errors import UserError
from fastvtp.model_folder import ANSWERS_NAME, CLASSES_NAME, ENTITIES_NAME


@dataclass(frozen=True)
class _List:
    """A list that says what a model's outputs mean: the name of its file, and how that is read and written."""

    file: str
    read: Callable[[Path], Sequence[str]]
    write: Callable[[Path, Sequence[str]], None]


_LISTS = {
    "answers": _List(
        ANSWERS_NAME,
        lambda path: read_answers(path).answers,
        lambda path, names: AnswerVocabulary(tuple(names)).save(path),
    ),
    "entities": _List(ENTITIES_NAME, read_entities, write_entities),
    "classes": _List(CLASSES_NAME, read_class_names, write_class_names),
}

Lists = Mapping[str, tuple[Path, Sequence[str]]]
""""answers", "entities" or "classes" -> where they were read, and themselves."""


def told_apart(config: Any) -> dict[str, int]:
    """Tell how many answers, entities or classes a model of this configuration tells apart. A head of one answer
    chooses among options, and has no list."""
    sizes = architecture_of(config).labels(config)
    return {what: size for what, size in sizes.items() if what != "answers" or size > 1}


def find_lists(source: Path, given: Mapping[str, str | Path | None], config: Any) -> Lists:
    """Find the lists of a model: of the files `given`, or else those in the folder `source`.

    Raises FileNotFoundError and UserError: a given file absent or unreadable, a list of another length than the head,
    or one for a model that has no such head.
    """
    sizes = told_apart(config)
    found: dict[str, tuple[Path, Sequence[str]]] = {}
    for what, known in _LISTS.items():
        file = given.get(what)
        path = Path(source / known.file if file is None else file)
        if what not in sizes and file is not None:
            raise UserError(f"this {architecture_of(config).name} has no outputs for {what}: leave out {file}")
        if what not in sizes or (file is None and not path.is_file()):
            continue
        names = known.read(path)
        if len(names) != sizes[what]:
            raise UserError(f"{path} has {len(names)} {what}, expected the model's {sizes[what]}")
        found[what] = path, names
    return found


def write_lists(folder: Path, lists: Lists) -> None:
    """Write lists under the names that runs use."""
    for what, (_, names) in lists.items():
        _LISTS[what].write(folder / _LISTS[what].file, names)
