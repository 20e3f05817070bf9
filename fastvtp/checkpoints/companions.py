"""What lies beside converted weights: lists that say what their outputs mean, and how their clips were read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvtp.data.answers import read_answers
from fastvtp.data.entities import read_entities, write_entities
from fastvtp.data.labels import AnswerVocabulary
from fastvtp.errors import UserError
from fastvtp.training.alpro_tasks import ENTITIES_NAME
from fastvtp.training.finetuning_tasks import ANSWERS_NAME
from fastvtp.training.state import READING_NAME, read_fit

_NAMES = {"answers": ANSWERS_NAME, "entities": ENTITIES_NAME}

Lists = dict[str, tuple[Path, Sequence[str]]]
""""answers" or "entities" -> where they were read, and themselves."""


def find_lists(source: Path, given: Mapping[str, str | Path | None], architecture: str, config: Any) -> Lists:
    """The lists of a model: of the files `given`, or else those in the folder `source`.

    Raises FileNotFoundError and UserError: a given file absent or unreadable, a list of another length than the head,
    or one for a model that has no such head.
    """
    sizes = _sizes(architecture, config)
    found: Lists = {}
    for what, file in given.items():
        path = Path(source / _NAMES[what] if file is None else file)
        if what not in sizes and file is not None:
            raise UserError(f"this {architecture} has no outputs for {what}: leave out {file}")
        if what not in sizes or (file is None and not path.is_file()):
            continue
        names = read_answers(path).answers if what == "answers" else read_entities(path)
        if len(names) != sizes[what]:
            raise UserError(f"{path} has {len(names)} {what}, expected the model's {sizes[what]}")
        found[what] = path, names
    return found


def notes_about(lists: Lists, source: Path, architecture: str, config: Any) -> dict[str, str]:
    """What to say about each list that the model could have."""
    return {
        what: f"{len(lists[what][1])} of {lists[what][0]}" if what in lists
        else f"none in {source}: give a list, one a line (--{what})"
        for what in _sizes(architecture, config)
    }  # fmt: skip


def write_lists(folder: Path, lists: Lists) -> None:
    """Write lists under the names that runs use."""
    for what, (_, names) in lists.items():
        if what == "answers":
            AnswerVocabulary(tuple(names)).save(folder / ANSWERS_NAME)
        else:
            write_entities(folder / ENTITIES_NAME, names)


def known_fit(source: Path, origin: str) -> str | None:
    """How the clips of `source` were read: as it says, or squashed where it is ALPRO's release; None: nobody knows.

    Raises CheckpointError where it says something else.
    """
    if (source / READING_NAME).is_file():
        return read_fit(source)
    return "squash" if origin == "alpro" else None


def _sizes(architecture: str, config: Any) -> dict[str, int]:
    """How many of which the model tells apart. A head of one answer chooses among options."""
    if architecture == "alpro":
        return {"entities": config.num_entities}
    answers = getattr(config, "num_answers", 1)
    return {"answers": answers} if answers > 1 else {}
