import json
from collections import Counter

import pytest

from fastvtp.data.annotations import VideoRecord, annotations_digest
from fastvtp.data.questions import AnswerVocabulary, load_questions
from fastvtp.data.reading import ClipReading, ClipShape
from fastvtp.data.sampling import sample_rng
from fastvtp.data.source import ClipSource
from fastvtp.data.stream import Batches, SampleStream
from fastvtp.errors import UserError
from tests.data.clips import write_clip, write_lines


def question(**fields):
    return {"video": "a.mp4", "question": "What is it?", "answer": "a cat", **fields}


def test_every_question_is_a_record_of_its_own(tmp_path):
    path = write_lines(
        tmp_path / "list.jsonl",
        question(id="one", type="thing", scene=3),
        question(question=" How many? ", answer="two", options=["one", "two", "three"]),
        {"video": "/else/b.mp4", "question": "Where to?", "answer": "up"},
    )
    made = load_questions(path)
    assert made.records == (
        VideoRecord("one", str(tmp_path / "a.mp4"), ("What is it?",), True),
        VideoRecord("a.mp4", str(tmp_path / "a.mp4"), ("How many?",), True),
        VideoRecord("/else/b.mp4", "/else/b.mp4", ("Where to?",), True),
    )
    assert made.answers == ("a cat", "two", "up")
    assert made.kinds == ("thing", "", "")
    assert made.options == ((), ("one", "two", "three"), ())


def test_the_synthetic_questions_are_read(captioned_videos):
    made = load_questions(captioned_videos / "test_questions.jsonl")
    assert len(made.records) == len(made.answers) == 3 * 8
    assert set(Counter(record.video for record in made.records).values()) == {3}
    assert {"colour", "order"} & set(made.kinds)
    for record, answer in zip(made.records, made.answers, strict=True):
        directed = {"left", "right"} & set(f"{record.captions[0]} {answer}".lower().rstrip("?").split())
        assert not (directed and record.mirrorable)
    assert {record.mirrorable for record in made.records} == {True, False}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{not json", "line 2: not JSON"),
        ("[1]", "line 2: expected an object, got list"),
        ({"question": "x", "answer": "y"}, "line 2: field 'video': there is none among 'question', 'answer'; "),
        (question(question=""), "line 2: field 'question': expected non-empty text, got ''"),
        (question(answer=3), "line 2: field 'answer': expected non-empty text, got 3"),
        (question(type=3), "line 2: field 'type': expected text, got 3"),
        (question(options="a cat"), "line 2: field 'options': expected a list of texts, got 'a cat'"),
        (question(options=["a cat", 3]), "line 2: field 'options': expected non-empty text, got 3"),
        (question(options=["a dog"]), "line 2: field 'options': expected the answer 'a cat' among them, once"),
        (question(options=["a cat"] * 2), "line 2: field 'options': expected the answer 'a cat' among them, once"),
    ],
)
def test_a_malformed_question_is_named_by_file_line_and_field(tmp_path, row, complaint):
    path = write_lines(tmp_path / "list.jsonl", question(), row)
    with pytest.raises(UserError) as caught:
        load_questions(path)
    assert str(caught.value).startswith(f"{path}, {complaint}")
    assert "\n" not in str(caught.value)


def test_no_questions_are_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_questions(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="lists no questions"):
        load_questions(write_lines(tmp_path / "empty.jsonl"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match=r"expected a \.jsonl file of questions"):
        load_questions(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("fields", "mirrorable"),
    [
        ({}, True),
        ({"question": "What is left of the cat?"}, False),
        ({"answer": "leftwards"}, False),
        ({"options": ["a cat", "a cat on the right"]}, False),
    ],
)
def test_a_direction_in_question_answer_or_options_keeps_a_clip_from_being_mirrored(tmp_path, fields, mirrorable):
    write_clip(tmp_path / "a.mp4", num_frames=2)
    records = load_questions(write_lines(tmp_path / "list.jsonl", question(**fields))).records
    stream = SampleStream(1, Batches(batch_size=1, train=True))
    source = ClipSource(records, stream, reading=ClipReading(), shape=ClipShape(1, 32))
    rngs = [sample_rng(0, 0, number) for number in range(20)]
    assert {source._window(0, (32, 32), rng).flip for rng in rngs} == ({False, True} if mirrorable else {False})


def test_the_mirror_rule_is_part_of_the_digest():
    records = [VideoRecord("a", "/a.mp4", ("x",), rule) for rule in (None, True, False)]
    assert len({annotations_digest([record]) for record in records}) == 3


def test_the_vocabulary_holds_the_most_frequent_answers(tmp_path):
    vocabulary = AnswerVocabulary.build(["red", "two", "red", "blue", "green", "green"], max_size=3)
    assert vocabulary.answers == ("green", "red", "blue")
    assert len(vocabulary) == 3
    assert [vocabulary.index(answer) for answer in ("green", "blue", "two", "Blue")] == [0, 2, None, None]
    vocabulary.save(tmp_path / "answers.json")
    assert AnswerVocabulary.load(tmp_path / "answers.json") == vocabulary
    assert json.loads((tmp_path / "answers.json").read_text()) == {"green": 0, "red": 1, "blue": 2}


def test_alpros_vocabulary_loads_in_the_order_of_its_classes(tmp_path):
    (tmp_path / "ans2label.json").write_text('{"two": 1, "one": 0, "blå": 2}')
    assert AnswerVocabulary.load(tmp_path / "ans2label.json").answers == ("one", "two", "blå")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not JSON"),
        ('["a"]', "expected an object"),
        ("{}", "expected an object"),
        ('{"a": 0, "b": 2}', "expected each class from 0 to 1 once"),
        ('{"a": 0, "b": 0}', "expected each class from 0 to 1 once"),
        ('{"a": true, "b": 0}', "expected classes that are integers"),
    ],
)
def test_a_bad_vocabulary_is_refused(tmp_path, content, complaint):
    (tmp_path / "answers.json").write_text(content)
    with pytest.raises(UserError, match=rf"answers\.json: {complaint}"):
        AnswerVocabulary.load(tmp_path / "answers.json")


def test_a_vocabulary_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="without answers"):
        AnswerVocabulary.build([], 10)
    with pytest.raises(UserError, match="max_size must be positive, got 0"):
        AnswerVocabulary.build(["a"], 0)
    with pytest.raises(FileNotFoundError, match="no such file"):
        AnswerVocabulary.load(tmp_path / "missing.json")
