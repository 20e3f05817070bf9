import json
from dataclasses import asdict

import pytest
import torch

from fastvtp.data.questions import AnswerVocabulary, load_questions, option_texts
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.evaluation.question_answering import (
    KindScore,
    evaluate_multiple_choice,
    evaluate_open_ended,
)
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.simvtp.question_answering import VideoQAConfig
from tests.evaluation.stubs import (
    OptionModel,
    TableModel,
    batches,
    question_set,
)

VOCABULARY = AnswerVocabulary(("red", "two", "blue"))
QUESTIONS = question_set(
    ("what colour is the ball?", "red", "colour", ()),
    ("what colour is the cube?", "blue", "colour", ()),
    ("how many balls?", "two", "count", ()),
    ("how many cubes?", "seven", "count", ()),
)
TRAINING = question_set(
    ("a?", "red", "colour", ()),
    ("b?", "red", "colour", ()),
    ("c?", "blue", "colour", ()),
    ("d?", "two", "count", ()),
    ("e?", "two", "count", ()),
    ("f?", "one", "count", ()),
    ("g?", "red", "shape", ()),
)
RIGHT = [[9, 0, 0], [0, 0, 9], [0, 9, 0], [9, 0, 0]]

TOKENIZER = CaptionTokenizer.train(
    [record.captions[0] for record in QUESTIONS.records] + ["red two blue seven 1 3 4 7"], 300
)
CHOICES = question_set(
    ("what colour?", "red", "colour", ("blue", "red")), ("how many?", "two", "count", ("two", *"1347"))
)


def answered(table, sample_ids=(0, 1, 2, 3), size=3, vocabulary=VOCABULARY, **options):
    loader = batches(QUESTIONS.records, sample_ids, size, TOKENIZER)
    model = TableModel(table).train()
    report = evaluate_open_ended(model, loader, QUESTIONS, vocabulary, device="cpu", progress=False, **options)
    assert model.dropout.training
    return report


def test_unknown_answers_are_wrong_and_the_baselines_come_from_training():
    report = answered(RIGHT, training=TRAINING)
    assert report.accuracy == 75
    assert (report.unknown_answers, report.count, report.left_out) == (1, 4, [])
    assert report.majority == 25  # "red"
    assert report.majority_by_kind == 50  # "red" for colours, "two" for numbers
    assert report.by_kind == {"colour": KindScore(100, 50, 2), "count": KindScore(50, 50, 2)}
    json.dumps(asdict(report))


def test_without_a_training_set_the_vocabulary_tells_the_majority():
    report = answered(RIGHT)
    assert (report.majority, report.majority_by_kind) == (25, None)
    assert report.by_kind["count"].baseline == 0
    assert answered(RIGHT, training=question_set(("d?", "two", "count", ()))).majority_by_kind == 50


def test_equal_logits_for_all_answers_are_a_blind_guess():
    assert answered([[0, 0, 0]] * 4).accuracy == pytest.approx(100 / 3 * 3 / 4)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_logits_are_averaged_over_views(size):
    """Two of three views of question 1 say "red", the third one louder "blue"; votes or probabilities say "red"."""
    table = [[9, 0, 0]] * 3 + [[2, 0, 0], [2, 0, 0], [0, 0, 5]]
    report = answered(table, sample_ids=[0, 0, 0, 1, 1, 1], size=size)
    assert (report.accuracy, report.count) == (100, 2)


def test_questions_of_unreadable_videos_are_named_and_not_counted():
    report = answered(RIGHT, sample_ids=[0, 1])
    assert (report.accuracy, report.count, report.left_out) == (100, 2, ["/2.mp4", "/3.mp4"])


def test_predictions_are_written_in_the_form_of_a_list_of_questions(tmp_path):
    path = tmp_path / "predictions.jsonl"
    answered(RIGHT, predictions=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[3] == {
        "id": "q3",
        "video": "/3.mp4",
        "question": "how many cubes?",
        "type": "count",
        "answer": "seven",
        "prediction": "red",
        "credit": 0.0,
    }
    assert [line["credit"] for line in lines] == [1, 1, 1, 0]
    read = load_questions(path)
    assert (read.answers, read.kinds) == (QUESTIONS.answers, QUESTIONS.kinds)
    assert [record.video for record in read.records] == [record.video for record in QUESTIONS.records]


def test_faults_of_open_ended_answering_get_one_line():
    with pytest.raises(ValueError, match="question answering has nothing to score"):
        answered(RIGHT, sample_ids=[])
    with pytest.raises(ValueError, match=r"logits must be \[3, 2 answers\], got \[3, 3\]"):
        answered(RIGHT, vocabulary=AnswerVocabulary(("red", "two")))
    with pytest.raises(ValueError, match="scores must be finite"):
        answered([[torch.nan] * 3] * 4)


def chosen(scores, sample_ids=(0, 1), size=2, questions=CHOICES, **options):
    loader = batches(questions.records, sample_ids, size, TOKENIZER)
    return evaluate_multiple_choice(
        OptionModel(TOKENIZER, scores), loader, questions, TOKENIZER, device="cpu", progress=False, **options
    )


def colours(blue, red):
    return {"what colour? blue": blue, "what colour? red": red}


def numbers(two, *others):
    return {"how many? two": two} | {f"how many? {n}": score for n, score in zip("1347", others, strict=True)}


def test_the_options_of_a_question_are_compared_with_each_other():
    report = chosen([colours(5.0, 6.0), numbers(1.0, 0.0, 0.0, 2.0, 0.0)])
    assert report.accuracy == 50
    assert report.chance == pytest.approx(35)  # 1/2 and 1/5
    assert report.by_kind == {"colour": KindScore(100, 50, 1), "count": KindScore(0, 20, 1)}
    assert (report.count, report.left_out) == (2, [])


def test_equal_scores_for_all_options_come_to_chance():
    report = chosen([colours(1.0, 1.0), numbers(*[0.0] * 5)])
    assert report.accuracy == report.chance


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_scores_of_options_are_averaged_over_views(size, tmp_path):
    table = [colours(1.0, 0.0), colours(0.0, 3.0), numbers(0.0, 2.0, 0, 0, 0), numbers(1.0, 0.0, 2.0, 0, 0)]
    path = tmp_path / "predictions.jsonl"
    report = chosen(table, sample_ids=[0, 0, 1, 1], size=size, predictions=path)
    assert (report.accuracy, report.count) == (50, 2)
    assert [json.loads(line)["prediction"] for line in path.read_text().splitlines()] == ["red", "1"]


def test_faults_of_multiple_choice_get_one_line():
    with pytest.raises(ValueError, match="multiple choice has nothing to score"):
        chosen([], sample_ids=[])
    with pytest.raises(ValueError, match=r"question 'how many cubes\?' of /3.mp4 has no options"):
        chosen([], sample_ids=[3], questions=QUESTIONS)
    open_ended = TableModel([[0, 0, 0]])
    loader = batches(CHOICES.records, [0], 1, TOKENIZER)
    with pytest.raises(ValueError, match=r"scores must be \[2 options, 1\], got \[2, 3\]"):
        evaluate_multiple_choice(open_ended, loader, CHOICES, TOKENIZER, device="cpu", progress=False)


def tiny_model(num_answers):
    torch.manual_seed(0)
    return build_model(
        VideoQAConfig(
            num_frames=2,
            image_size=4,
            tubelet=(2, 2, 2),
            width=16,
            depth=1,
            num_heads=2,
            max_text_length=32,
            vocab_size=TOKENIZER.vocab_size,
            num_answers=num_answers,
        ),
        torch.device("cpu"),
    )


def test_the_open_ended_model_is_asked_as_it_wants_to_be():
    model, (batch,) = tiny_model(3).eval(), batches(QUESTIONS.records, range(4), 4, TOKENIZER)
    with torch.no_grad():
        logits = model(batch.video, model.plan(batch.input_ids, batch.text_lengths, range(4)))
    expected = [VOCABULARY.answers[i] == answer for i, answer in zip(logits.argmax(1), QUESTIONS.answers, strict=True)]
    report = evaluate_open_ended(model, [batch], QUESTIONS, VOCABULARY, device="cpu", progress=False)
    assert report.accuracy == 25 * sum(expected)


def test_the_multiple_choice_model_is_asked_as_it_wants_to_be(tmp_path):
    model, (batch,) = tiny_model(1).eval(), batches(CHOICES.records, range(2), 2, TOKENIZER)
    texts = option_texts(TOKENIZER, CHOICES, range(2), 32)
    with torch.no_grad():
        scores = model(batch.video, model.plan(texts.input_ids, texts.text_lengths, texts.video_of_text))[:, 0]
    best = [CHOICES.options[i][place] for i, place in enumerate(texts.by_question(scores).argmax(1))]
    path = tmp_path / "predictions.jsonl"
    evaluate_multiple_choice(model, [batch], CHOICES, TOKENIZER, device="cpu", progress=False, predictions=path)
    assert [json.loads(line)["prediction"] for line in path.read_text().splitlines()] == best
