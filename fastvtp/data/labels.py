"""Labelled videos: lists of questions with answers, the vocabulary of answers, and lists of classes."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastvtp.data.annotations import VideoRecord, mentions_direction, read_lines, text_of, video_and_id, videos_under
from fastvtp.errors import UserError
from fastvtp.files import existing_file, lines_of, read_text, write_atomically

_MAX_CLASSES = 1_000_000
_LISTED = re.compile(r"(.+?)[\s,]+(\d+)")


@dataclass(frozen=True)
class QuestionSet:
    """Questions about videos, entry i of each tuple belonging to question i, the record with `sample_ids` i.

    Attributes:
        records: one a question, its caption the question; many may name the same video. None may be mirrored whose
            question, answer or options name a direction.
        answers: the right answers.
        kinds: what each asks for, "" where the list does not say.
        options: the answers to choose from, the right one among them; () for open-ended questions.
    """

    records: tuple[VideoRecord, ...]
    answers: tuple[str, ...]
    kinds: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ClassificationSet:
    """Videos with one class each, entry i of both tuples belonging to the record with `sample_ids` i.

    Attributes:
        records: the caption of each is the name of its class, which the loader needs, and by which a clip of the class
            "turning left" is not mirrored. Where classes are bare numbers, flipping is the caller's to decide.
        labels: places in `class_names`.
        class_names: all classes.
    """

    records: tuple[VideoRecord, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]

    @property
    def unnamed(self) -> bool:
        """Whether the classes are bare numbers, which do not say what they show."""
        return all(name.isdecimal() for name in self.class_names)


@dataclass(frozen=True)
class AnswerVocabulary:
    """The answers that an open-ended head tells apart; an answer's place in `answers` is its class."""

    answers: tuple[str, ...]

    @classmethod
    def build(cls, answers: Iterable[str], max_size: int) -> AnswerVocabulary:
        """The `max_size` most frequent answers, the most frequent first, equally frequent ones in alphabetical order.

        Raises:
            UserError: no answers, or `max_size` not positive.
        """
        if max_size < 1:
            raise UserError(f"max_size must be positive, got {max_size}")
        counts = Counter(answers)
        if not counts:
            raise UserError("cannot build an answer vocabulary without answers")
        return cls(tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[:max_size]))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AnswerVocabulary:
        """Read what `save` wrote, or ALPRO's `ans2label.json`: one object, `{answer: its class}`.

        Raises:
            FileNotFoundError: nothing there.
            UserError: another content, or classes that are not 0, 1, ... without a gap.
        """
        try:
            classes = json.loads(existing_file(path).read_bytes())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not JSON: {error}") from None
        if not isinstance(classes, dict) or not classes:
            raise UserError(f"{path}: expected an object {{answer: class}}")
        if any(type(number) is not int for number in classes.values()):
            raise UserError(f"{path}: expected classes that are integers")
        if sorted(classes.values()) != list(range(len(classes))):
            raise UserError(f"{path}: expected each class from 0 to {len(classes) - 1} once")
        return cls(tuple(sorted(classes, key=classes.__getitem__)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `{answer: class}` as JSON."""
        write_atomically(Path(path), json.dumps(self._classes, indent=0, ensure_ascii=False).encode())

    def __len__(self) -> int:
        return len(self.answers)

    def index(self, answer: str) -> int | None:
        """The class of `answer`, or None for an unknown one, which no prediction can get right."""
        return self._classes.get(answer)

    @cached_property
    def _classes(self) -> dict[str, int]:
        return {answer: number for number, answer in enumerate(self.answers)}


def load_questions(path: str | os.PathLike[str]) -> QuestionSet:
    """Read a `.jsonl` list of `{"video": path, "question": str, "answer": str}`, a line a question.

    Optional fields: "type", what the question asks for; "options", the answers of a multiple choice, the right one
    among them; "id". Paths are as in `load_annotations`, other fields are ignored.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a malformed line, with file, line number and field; no questions.
    """
    path = Path(path).absolute()
    if path.suffix != ".jsonl":
        raise UserError(f"{path}: expected a .jsonl file of questions")
    rows = [_question(fields, path.parent, place) for place, fields in read_lines(path)]
    if not rows:
        raise UserError(f"{path}: lists no questions")
    records, answers, kinds, options = zip(*rows, strict=True)
    return QuestionSet(records, answers, kinds, options)


def lists_questions(path: str | os.PathLike[str]) -> bool:
    """Whether the first line of a `.jsonl` list has the field "question"; False for what is no such file.

    Raises UserError where that line is not a JSON object.
    """
    path = Path(path)
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    _, fields = next(read_lines(path), ("", {}))
    return "question" in fields


def load_classes(
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    *,
    names_file: str | os.PathLike[str] | None = None,
) -> ClassificationSet:
    """Read videos with one class each.

    Args:
        path: a `.jsonl` list of `{"video": path, "label": str | int}` with an optional "id"; or a `.csv` list of lines
            `path label` or `path,label` with whole numbers, no header (VideoMAE's form); or a folder with one subfolder
            of videos per class. Relative paths start from the folder of the list.
        class_names: those of the training set, for a test set. None: here, the names sorted; where labels are numbers,
            the numbers from 0 to the largest.
        names_file: `class_names` by a file instead, see `read_class_names`.

    Returns:
        The videos in the order of the list, or of the sorted paths in a folder. A label that is a number is itself the
        place in `class_names`.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a malformed list, with file, line number and field; no videos; text among labels that are numbers; a
            class that `class_names` does not have.
    """
    if names_file is not None:
        class_names = read_class_names(names_file)
    path = Path(path).absolute()
    if path.is_dir():
        rows = list(_class_folders(path))
    elif path.suffix not in (".jsonl", ".csv"):
        raise UserError(f"{path}: expected a .jsonl or .csv file, or a folder with one subfolder per class")
    else:
        rows = list(_class_lines(path) if path.suffix == ".jsonl" else _listed_classes(path))
    if not rows:
        raise UserError(f"{path}: lists no videos")
    names = _names_of(rows) if class_names is None else tuple(class_names)
    places = {name: number for number, name in enumerate(names)}
    labels = []
    for place, _, _, label in rows:
        known = label in places if isinstance(label, str) else label < len(names)
        if not known:
            whose = "the training set" if names_file is None else names_file
            raise UserError(f"{place}: no class {label!r} among the {len(names)} classes of {whose}")
        labels.append(places[label] if isinstance(label, str) else label)
    records = (VideoRecord(name, video, (names[i],)) for (_, video, name, _), i in zip(rows, labels, strict=True))
    return ClassificationSet(tuple(records), tuple(labels), names)


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of classes 0, 1, ... from a file with one a line, or from a `.json` list or `{name: its number}` (the
    `labels.json` of Something-Something V2).

    Raises:
        FileNotFoundError: nothing there.
        UserError: another content; numbers with a gap; a name twice; no names.
    """
    text = read_text(path, "file of class names")
    try:
        content: Any = json.loads(text) if Path(path).suffix == ".json" else lines_of(text.rstrip())
    except ValueError as error:
        raise UserError(f"{path}: expected names of classes, one a line or as JSON: {error}") from None
    if isinstance(content, dict):
        numbers = {name: str(number) for name, number in content.items()}
        if sorted(numbers.values()) != sorted(map(str, range(len(numbers)))):
            raise UserError(f"{path}: expected each class from 0 to {len(numbers) - 1} once")
        content = sorted(numbers, key=lambda name: int(numbers[name]))
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of names or an object {{name: number}}, got {content!r}")
    names = tuple(text_of(name, f"{path}, class {number}") for number, name in enumerate(content))
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: expected class names, each once, got {len(names)} with {len(set(names))} different")
    return names


def _question(fields: dict[str, Any], folder: Path, place: str) -> tuple[VideoRecord, str, str, tuple[str, ...]]:
    video, name = video_and_id(fields, folder, place)
    question, answer = (text_of(fields.get(key), f"{place}: field '{key}'") for key in ("question", "answer"))
    kind = fields.get("type", "")
    if not isinstance(kind, str):
        raise UserError(f"{place}: field 'type': expected text, got {kind!r}")
    options: tuple[str, ...] = ()
    if "options" in fields:
        if not isinstance(fields["options"], list):
            raise UserError(f"{place}: field 'options': expected a list of texts, got {fields['options']!r}")
        options = tuple(text_of(option, f"{place}: field 'options'") for option in fields["options"])
        if options.count(answer) != 1:
            raise UserError(f"{place}: field 'options': expected the answer {answer!r} among them, once")
    mirrorable = not any(map(mentions_direction, (question, answer, *options)))
    return VideoRecord(name, video, (question,), mirrorable), answer, kind, options


_Row = tuple[str, str, str, str | int]  # place for error messages, path of the video, id, label


def _class_lines(path: Path) -> Iterator[_Row]:
    for place, fields in read_lines(path):
        label = fields.get("label")
        if type(label) is int:
            if not 0 <= label < _MAX_CLASSES:
                raise UserError(f"{place}: field 'label': expected a number from 0 to {_MAX_CLASSES - 1}, got {label}")
        else:
            label = text_of(label, f"{place}: field 'label'")
        yield place, *video_and_id(fields, path.parent, place), label


def _listed_classes(path: Path) -> Iterator[_Row]:
    for number, line in enumerate(lines_of(read_text(path)), start=1):
        if not line.strip():
            continue
        match = _LISTED.fullmatch(line.strip())
        if match is None or int(match[2]) >= _MAX_CLASSES:
            raise UserError(f"{path}, line {number}: expected 'path label', the label a whole number, got {line!r}")
        yield f"{path}, line {number}", os.path.join(path.parent, match[1]), match[1], int(match[2])


def _class_folders(folder: Path) -> Iterator[_Row]:
    for video in videos_under(folder):
        name = video.relative_to(folder)
        if len(name.parts) > 1:
            yield str(video), str(video), name.with_suffix("").as_posix(), name.parts[0]


def _names_of(rows: Sequence[_Row]) -> tuple[str, ...]:
    numbers = [label for *_, label in rows if isinstance(label, int)]
    if not numbers:
        return tuple(sorted({str(label) for *_, label in rows}))
    for place, _, _, label in rows:
        if isinstance(label, str):
            raise UserError(f"{place}: field 'label': expected a number as in other lines, got {label!r}")
    return tuple(map(str, range(max(numbers) + 1)))
