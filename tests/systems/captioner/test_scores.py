"""Scores of captions and answers on texts that are written down beforehand; needs no `transformers`."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.questions import AnswerVocabulary
from fastvtp.errors import UserError
from fastvtp.systems.captioner.scores import (
    CaptionScore,
    QuestionForm,
    evaluate_answers,
    evaluate_captions,
    few_shot_examples,
    score_captions,
    word_overlap,
    write_captions,
)
from tests.evaluation.stubs import batches, question_set

RECORDS = [
    VideoRecord("a", "/a.mp4", ("a red ball", "a ball that is red")),
    VideoRecord("b", "/b.mp4", ("a blue box",)),
    VideoRecord("c", "/c.mp4", ("a red ball moves",)),
]


class StubLanguage:
    """Writes `alone` behind a prompt without a clip; likes candidates by their length."""

    def __init__(self, alone: str | None):
        self.alone = alone

    def tokenize(self, prompt, text):
        return ([] if self.alone is None else [1]), []

    def generate(self, prefix, prompts, **options):
        assert prefix is None
        return [self.alone for _ in prompts]

    def log_likelihoods(self, prefix, prompts, candidates, *, length):
        assert prefix is None
        return [torch.tensor([float(len(text)) for text in listed]) for listed in candidates]


class StubCaptioner(nn.Module):
    """Captions and candidates' scores by the clip's pixels, which are its place in `stubs.batches`."""

    config = SimpleNamespace(prompt="", max_tokens=8, question_template="{question}?")

    def __init__(self, captions=(), scores=(), alone="a red ball"):
        super().__init__()
        self.captions, self.scores, self.language = captions, scores, StubLanguage(alone)
        self.asked, self.prompts, self.beams = [], [], []

    def caption(self, video, prompts=None, *, num_beams=1):
        assert not self.training
        self.prompts.append(prompts)
        self.beams.append(num_beams)
        return [self.captions[place] for place in video[:, 0, 0, 0, 0].tolist()]

    def rank(self, video, prompts, candidates, *, length):
        self.asked += list(zip(prompts, candidates, strict=True))
        return [torch.tensor(self.scores[place]) for place in video[:, 0, 0, 0, 0].tolist()]


def test_a_caption_is_right_where_one_reference_has_its_words():
    captions = ["A red ball!", "a blue  box", "a red ball"]
    assert score_captions(captions, [record.captions for record in RECORDS]) == CaptionScore(
        exact=pytest.approx(200 / 3), overlap=pytest.approx(100 * (1 + 1 + 6 / 7) / 3)
    )


def test_words_in_common_count_as_often_as_both_have_them():
    assert word_overlap("a a b", "a c") == pytest.approx(2 / 5)
    assert word_overlap("", "a") == 0
    assert word_overlap("", "") == 0


def test_the_report_compares_with_others_clips_and_with_no_clip(tmp_path):
    model = StubCaptioner(captions=["a red ball", "a blue box", "a green box"])
    report = evaluate_captions(
        model, batches(RECORDS, [0, 1, 2], size=2), RECORDS, device="cpu", progress=False,
        predictions=tmp_path / "predictions.jsonl",
    )  # fmt: skip
    assert report.captions == CaptionScore(pytest.approx(200 / 3), pytest.approx(100 * (2 + 2 / 7) / 3))
    # against the next clip's: "a" alone; "a" alone; "a", of three and three or more words
    expected = 100 * (2 / 6 + 2 / 7 + max(2 / 6, 2 / 8)) / 3
    assert report.shuffled == CaptionScore(0, pytest.approx(expected))
    assert report.text_only == CaptionScore(pytest.approx(100 / 3), pytest.approx(100 * (1 + 2 / 6 + 6 / 7) / 3))
    assert (report.different, report.count, report.left_out) == (3, 3, [])
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert lines[1] == {"id": "b", "video": "/b.mp4", "caption": "a blue box", "references": ["a blue box"]}


def test_clips_that_are_left_out_are_named_and_no_start_means_no_baseline():
    model = StubCaptioner(captions=["a blue box", "a red ball"], alone=None)
    report = evaluate_captions(model, batches(RECORDS, [1, 2], size=1), RECORDS, device="cpu", progress=False)
    assert report.text_only is None
    assert (report.count, report.left_out) == (2, ["/a.mp4"])
    assert report.captions.exact == 50
    with pytest.raises(UserError, match="no clip could be decoded"):
        evaluate_captions(model, iter(()), RECORDS, device="cpu", progress=False)


def test_prompts_and_beams_are_handed_on():
    model = StubCaptioner(captions=["x", "y", "z"]).train()
    captions = write_captions(
        model, batches(RECORDS, [2, 0, 1], size=2), device="cpu", num_beams=3, prompt="now", progress=False
    )
    assert captions == {2: "x", 0: "y", 1: "z"}
    assert (model.prompts, model.beams) == ([["now", "now"], ["now"]], [3, 3])
    assert model.training


QUESTIONS = question_set(
    ("what colour", "red", "colour", ("red", "blue")),
    ("which way", "left", "way", ("right", "left", "up")),
    ("which colour", "blue", "colour", ("red", "blue")),
)


def test_options_are_ranked_with_and_without_the_clip(tmp_path):
    model = StubCaptioner(scores=[[0.0, -1.0], [0.0, -2.0, -3.0], [-1.0, 0.0]])
    loader, form = batches(QUESTIONS.records, [0, 1, 2], size=2), QuestionForm(examples=[("who", "me")])
    path = tmp_path / "answers.jsonl"
    report = evaluate_answers(model, loader, QUESTIONS, form, device="cpu", progress=False, predictions=path)
    assert report.answers.accuracy == pytest.approx(200 / 3)
    assert report.answers.by_kind["way"].accuracy == 0
    assert report.text_only == pytest.approx(100 / 3)  # the longest: blue, right, blue
    assert model.asked[1] == ("who? me\nwhich way?", ("right", "left", "up"))
    predictions = [json.loads(line)["prediction"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert predictions == ["red", "right", "blue"]


def test_open_questions_share_a_vocabulary():
    vocabulary = AnswerVocabulary.build(["red", "red", "blue"], 2)
    model = StubCaptioner(scores=[[0.0, -1.0], [0.0, -1.0], [-1.0, 0.0]])
    loader, form = batches(QUESTIONS.records, [0, 1, 2], size=3), QuestionForm(vocabulary)
    report = evaluate_answers(model, loader, QUESTIONS, form, device="cpu", progress=False)
    assert report.answers.accuracy == pytest.approx(200 / 3)
    assert report.answers.unknown_answers == 1
    assert report.text_only == pytest.approx(100 / 3)
    assert {candidates for _, candidates in model.asked} == {("red", "blue")}


def test_examples_are_of_different_kinds_first():
    assert few_shot_examples(QUESTIONS, 2) == [("what colour", "red"), ("which way", "left")]
    assert few_shot_examples(QUESTIONS, 3)[2] == ("which colour", "blue")
    assert few_shot_examples(QUESTIONS, 0) == []
    with pytest.raises(UserError, match="4 solved questions are wanted, the training list has 3"):
        few_shot_examples(QUESTIONS, 4)
