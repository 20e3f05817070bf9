"""Questions about videos: lists of them, the vocabulary of their answers, and the texts of a multiple choice."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastvtp.data.annotations import record_of
from fastvtp.data.formats.listing import Listing
from fastvtp.data.formats.registry import QUESTIONS, text_of
from fastvtp.data.records import RecordTable, VideoRecord, mentions_direction
from fastvtp.data.text import Tokenizer
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import UserError, counted
from fastvtp.files import existing_file, lines_of, read_text, write_atomically

logger = logging.getLogger(__name__)


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

    records: Sequence[VideoRecord]
    answers: tuple[str, ...]
    kinds: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]


def load_questions(path: str | os.PathLike[str]) -> QuestionSet:
    """Read a `.jsonl` list of `{"video": path, "question": str, "answer": str}`, a line a question, or a published list
    of questions, by its content: docs/lists.md names them all.

    Optional fields: "type", what the question asks for; "options", the answers of a multiple choice, the right one
    among them; "start" and "end", the span of the video that the question is about, in seconds; "id". Paths, spans and
    ids are as in `record_of`, other fields are ignored. Of a published list, questions whose right answer stands twice
    among their options are left out with one warning, and so are those of videos that are not there.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a malformed line, with file, line number and field; no questions.
    """
    listing, rows, named = Listing(path, QUESTIONS), [], []
    for row, location in listing:
        said = row.fields
        with listing.faults:
            if "question" not in said:
                raise listing.lacks("question", row)
            if listing.entry.searched and said.get("options", ()).count(said["answer"]) > 1:
                listing.dropped_questions += 1
                continue
            rows.append(_question(said, listing.source.folder, row.place, location))
            named += [said["id"]] if isinstance(said.get("id"), str) else []  # others are called by their videos
    if listing.dropped_questions:
        number = counted(listing.dropped_questions, "question", "have")
        logger.warning("%s: %s the right answer twice among the options: left out", listing.path, number)
    listing.close(len({row[0].video for row in rows}), questions=len(rows))
    if not rows:
        raise listing.nothing("questions")
    listing.say_repeated_ids(lambda: named)
    records, answers, kinds, options = zip(*rows, strict=True)
    return QuestionSet(RecordTable(records), answers, kinds, options)


def lists_questions(path: str | os.PathLike[str]) -> bool:
    """Tell whether the first line of a list has the field "question"; False for what is no list.

    Raises UserError where that line is not a JSON object.
    """
    try:
        listing = Listing(path)
    except (FileNotFoundError, UserError):
        return False  # whoever reads it says what it should be
    return QUESTIONS in listing.entry.tells and "question" in listing.first()


def has_options(questions: QuestionSet, source: str) -> bool:
    """Tell whether the questions are multiple choice. Raises UserError where some are and some are not."""
    without = sum(not options for options in questions.options)
    if 0 < without < len(questions.options):
        counts = f"{without} of {len(questions.options)} questions"
        raise UserError(f"{source}: {counts} have no options: expected options in all or in none")
    return without == 0


@dataclass(frozen=True)
class AnswerVocabulary:
    """The answers that an open-ended head tells apart; an answer's place in `answers` is its class."""

    answers: tuple[str, ...]

    @classmethod
    def build(cls, answers: Iterable[str], max_size: int) -> AnswerVocabulary:
        """Take the `max_size` most frequent answers, the most frequent first, equally frequent ones in alphabetical
        order.

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
        """Find the class of `answer`, or None for an unknown one, which no prediction can get right."""
        return self._classes.get(answer)

    @cached_property
    def _classes(self) -> dict[str, int]:
        return {answer: number for number, answer in enumerate(self.answers)}


def read_answers(path: str | os.PathLike[str]) -> AnswerVocabulary:
    """Read answers by their classes: of a `.json` file as `AnswerVocabulary.load`, of any other one a line, from 0 on.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a folder, not UTF-8, an empty line, or an answer twice; of `.json` as `AnswerVocabulary.load`.
    """
    if Path(path).suffix == ".json":
        return AnswerVocabulary.load(path)
    answers = [line.strip() for line in lines_of(read_text(path))]
    if not answers:
        raise UserError(f"{path}: lists no answers")
    if "" in answers:
        raise UserError(f"{path}, line {answers.index('') + 1}: expected an answer, got an empty line")
    if repeated := next((answer for answer, count in Counter(answers).items() if count > 1), None):
        raise UserError(f"{path}: lists {repeated!r} more than once")
    return AnswerVocabulary(tuple(answers))


class OptionTexts(NamedTuple):
    """The texts of Q questions, `[CLS] question [SEP] option [SEP]`, all options of a question in a row.

    input_ids: int64 [N], one text after the other. text_lengths: tokens of each. video_of_text: which of the Q
    questions, or their clips, each belongs to. correct: int64 [Q], the place of the right option among its question's.
    """

    input_ids: Tensor
    text_lengths: tuple[int, ...]
    video_of_text: tuple[int, ...]
    correct: Tensor

    def by_question(self, scores: Tensor) -> Tensor:
        """Lay out a score of each text as [Q, most options of a question], -inf where a question has fewer: with
        `correct`, what cross-entropy takes."""
        counts = np.bincount(self.video_of_text).tolist()
        return pad_sequence(list(scores.split(counts)), batch_first=True, padding_value=-torch.inf)


def option_texts(tokenizer: Tokenizer, questions: QuestionSet, indices: Sequence[int], max_length: int) -> OptionTexts:
    """Encode the texts of the questions at `indices`, which may repeat; each at most `max_length` tokens long.

    Raises:
        UserError: a question without options; `max_length` too small; a tokenizer that has no form for two texts.
    """
    if not isinstance(tokenizer, CaptionTokenizer):
        raise UserError("questions with options need a BERT WordPiece vocabulary: SentencePiece's has no separator")
    firsts, seconds, video_of_text = [], [], []
    for place, index in enumerate(indices):
        (question,), options = questions.records[index].captions, questions.options[index]
        if not options:
            raise UserError(f"question {question!r} of {questions.records[index].source} has no options to choose from")
        firsts += [question] * len(options)
        seconds += options
        video_of_text += [place] * len(options)
    packed = tokenizer.encode_pairs(firsts, seconds, max_length)
    correct = [questions.options[index].index(questions.answers[index]) for index in indices]
    return OptionTexts(torch.from_numpy(packed.input_ids), packed.lengths, tuple(video_of_text), torch.tensor(correct))


def _question(
    fields: dict[str, Any], folder: Path, place: str, location: str
) -> tuple[VideoRecord, str, str, tuple[str, ...]]:
    record = record_of(fields, folder, place, location=location)
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
    return replace(record, captions=(question,), mirrorable=mirrorable), answer, kind, options
