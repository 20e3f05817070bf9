import pytest
import torch
from tokenizers import Tokenizer as Library
from tokenizers.models import Unigram

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.questions import QuestionSet, option_texts
from fastvtp.data.sentencepiece import SentencePieceTokenizer
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.errors import UserError

TEXTS = ["what colour is it?", "how many?", "is it a ball?"]
TOKENIZER = CaptionTokenizer.train([*TEXTS, "red blue green one two"], 200)
QUESTIONS = QuestionSet(
    records=tuple(VideoRecord(str(i), f"/{i}.mp4", (text,)) for i, text in enumerate(TEXTS)),
    answers=("green", "one", "yes"),
    kinds=("", "", ""),
    options=(("red", "blue", "green"), ("one", "two"), ()),
)


def test_every_option_is_a_text_behind_its_question():
    texts = option_texts(TOKENIZER, QUESTIONS, [1, 0, 1], 32)
    parts = texts.input_ids.split(list(texts.text_lengths))
    numbers = [f"[CLS] how many? [SEP] {option} [SEP]" for option in ("one", "two")]
    colours = [f"[CLS] what colour is it? [SEP] {option} [SEP]" for option in ("red", "blue", "green")]
    read = [TOKENIZER.decode(part.numpy(), skip_special=False) for part in parts]
    assert read == [*numbers, *colours, *numbers]
    assert texts.video_of_text == (0, 0, 1, 1, 1, 2, 2)
    assert texts.correct.tolist() == [0, 2, 0]
    assert texts.input_ids.dtype == texts.correct.dtype == torch.int64


def test_scores_are_laid_out_by_question_with_gradients():
    texts = option_texts(TOKENIZER, QUESTIONS, [1, 0], 32)
    scores = torch.arange(5.0, requires_grad=True)
    table = texts.by_question(scores)
    assert table.tolist() == [[0, 1, -torch.inf], [2, 3, 4]]
    torch.nn.functional.cross_entropy(table, texts.correct).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert (scores.grad < 0).tolist() == [True, False, False, False, True]


def test_texts_are_cut_but_their_options_are_not():
    texts = option_texts(TOKENIZER, QUESTIONS, [0], 6)
    assert max(texts.text_lengths) <= 6
    decoded = [TOKENIZER.decode(part.numpy()) for part in texts.input_ids.split(list(texts.text_lengths))]
    assert [text.split()[-1] for text in decoded] == ["red", "blue", "green"]


def test_a_tokenizer_without_a_separator_is_refused():
    pieces = Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("a", -1.0)], unk_id=2)
    tokenizer = SentencePieceTokenizer.from_unigram(Library(pieces))
    with pytest.raises(UserError, match="need a BERT WordPiece vocabulary: SentencePiece's has no separator"):
        option_texts(tokenizer, QUESTIONS, [0], 32)


def test_a_question_without_options_is_named():
    with pytest.raises(UserError, match=r"question 'is it a ball\?' of /2.mp4 has no options"):
        option_texts(TOKENIZER, QUESTIONS, [0, 2], 32)
