"""Lists of answers that people write."""

import os
from collections import Counter
from pathlib import Path

from fastvtp.data.labels import AnswerVocabulary
from fastvtp.errors import UserError
from fastvtp.files import lines_of, read_text


def read_answers(path: str | os.PathLike[str]) -> AnswerVocabulary:
    """Answers by their classes: of a `.json` file as `AnswerVocabulary.load`, of any other one a line, from class 0 on.

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
