"""Captions, answers and their scores of two processes (gloo, CPU) against those of one, on stubs; needs no
`transformers`."""

from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from fastvtp.systems.captioner.scores import QuestionForm, evaluate_answers, evaluate_captions, write_captions
from tests.evaluation.stubs import batches, dealt
from tests.ranks import run_ranks
from tests.systems.captioner.test_scores import QUESTIONS, RECORDS, StubCaptioner

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
CPU: dict[str, Any] = {"device": "cpu", "progress": False}


def scored(_: int, folder: str) -> dict[str, Any]:
    """Captions and reports; and how many prompts without a clip this process asked the language model."""
    output = Path(folder)
    captioner = StubCaptioner(captions=["a red ball", "a blue box", "a green box"])
    captions = write_captions(captioner, dealt(batches(RECORDS, [0, 1, 2], size=2)), **CPU)
    written = dealt(batches(RECORDS, [0, 1, 2], size=1))
    report = evaluate_captions(captioner, written, RECORDS, predictions=output / "captions.jsonl", **CPU)
    answerer = StubCaptioner(scores=[[0.0, -1.0], [0.0, -2.0, -3.0], [-1.0, 0.0]])
    asked, likelihoods = [], answerer.language.log_likelihoods
    answerer.language.log_likelihoods = lambda *a, **k: (asked.append(a[1]), likelihoods(*a, **k))[1]
    questions = dealt(batches(QUESTIONS.records, [0, 1, 2], size=2))
    answers = evaluate_answers(
        answerer, questions, QUESTIONS, QuestionForm(), predictions=output / "answers.jsonl", **CPU
    )  # fmt: skip
    return {"captions": captions, "report": astuple(report), "answers": astuple(answers), "asked": len(asked)}


def test_captions_and_answers_of_two_processes_are_those_of_one(tmp_path):
    (tmp_path / "alone").mkdir()
    alone = scored(0, str(tmp_path / "alone"))
    assert list(alone["captions"].values()) == ["a red ball", "a blue box", "a green box"]
    asked = alone.pop("asked")
    (tmp_path / "together").mkdir()
    ranks = run_ranks(scored, tmp_path, str(tmp_path / "together"), processes=2)
    assert [found.pop("asked") for found in ranks] == [2, 1]
    assert asked == 3
    assert ranks == [alone, alone]
    assert [list(found["captions"]) for found in ranks] == [[0, 1, 2]] * 2
    for name in ("captions.jsonl", "answers.jsonl"):
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
