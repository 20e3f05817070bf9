"""Multiple choice as texts: each option of a question is a text of its own, behind the question."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastvtp.data.labels import QuestionSet
from fastvtp.data.tokenization import CaptionTokenizer
from fastvtp.errors import UserError


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
        """A score of each text -> [Q, most options of a question], -inf where a question has fewer: with `correct`,
        what cross-entropy takes."""
        counts = np.bincount(self.video_of_text).tolist()
        return pad_sequence(list(scores.split(counts)), batch_first=True, padding_value=-torch.inf)


def option_texts(
    tokenizer: CaptionTokenizer, questions: QuestionSet, indices: Sequence[int], max_length: int
) -> OptionTexts:
    """The texts of the questions at `indices`, which may repeat; each at most `max_length` tokens long.

    Raises:
        UserError: a question without options; `max_length` too small.
    """
    firsts, seconds, video_of_text = [], [], []
    for place, index in enumerate(indices):
        (question,), options = questions.records[index].captions, questions.options[index]
        if not options:
            raise UserError(f"question {question!r} of {questions.records[index].video} has no options to choose from")
        firsts += [question] * len(options)
        seconds += options
        video_of_text += [place] * len(options)
    packed = tokenizer.encode_pairs(firsts, seconds, max_length)
    correct = [questions.options[index].index(questions.answers[index]) for index in indices]
    return OptionTexts(torch.from_numpy(packed.input_ids), packed.lengths, tuple(video_of_text), torch.tensor(correct))
