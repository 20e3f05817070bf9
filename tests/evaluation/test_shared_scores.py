"""Scores of two processes (gloo, CPU) against those of one: equal reports and files, to the last digit."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastvtp import processes
from fastvtp.architecture import architecture_of
from fastvtp.data.classes import write_class_names
from fastvtp.data.questions import AnswerVocabulary, load_questions
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.evaluation import scoring
from fastvtp.evaluation.protocol import EvaluationProtocol
from fastvtp.evaluation.scoring import evaluate
from fastvtp.evaluation.zero_shot import zero_shot
from fastvtp.model_folder import ANSWERS_NAME, CLASSES_NAME, write_model_folder
from fastvtp.systems.alpro.finetuning import AlproRetrievalConfig
from fastvtp.systems.catalogue import build_model, open_model
from fastvtp.systems.simvtp.question_answering import VideoQAConfig
from fastvtp.systems.simvtp.retrieval import DualEncoderConfig
from fastvtp.systems.videomae.classifier import VideoClassifierConfig
from tests.ranks import run_ranks
from tests.training.labelled import choices, classes, rows_of, several_captions, write_rows

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
VIDEO: dict[str, Any] = {"num_frames": 4, "image_size": 32, "width": 32, "depth": 1, "num_heads": 2}
TEXT: dict[str, Any] = {"max_text_length": 16, "vocab_size": 300}
ALPRO: dict[str, Any] = {"text_depth": 1, "fusion_depth": 1, "text_num_heads": 2, "text_hidden": 64}
# name -> model folder, list, and how it is scored: 8 records of which one is no video, in batches that do not divide
# them, and whose views lie in two of them
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "retrieval": ("dual", "several.jsonl", {"batch_size": 3}),
    "views": ("dual", "several.jsonl", {"batch_size": 5, "views": (2, 2)}),
    "matching": ("alpro", "several.jsonl", {"batch_size": 3, "top_k": 2}),
    "choices": ("choosing", "test_choices.jsonl", {"batch_size": 4}),
    "open": ("answering", "test_questions.jsonl", {"batch_size": 4, "views": (3, 1)}),
    "classes": ("classifier", "test_classes.jsonl", {"batch_size": 3, "views": (2, 1)}),
    "zero-shot": ("dual", "test_classes.jsonl", {"batch_size": 3}),
    "one clip": ("classifier", "one.jsonl", {"batch_size": 3}),
}


def write_models(root: Path, captioned: Path) -> None:
    """Models of random weights, whose scores differ from clip to clip."""
    questions = load_questions(captioned / "test_questions.jsonl")
    texts = [record.captions[0] for record in questions.records]
    tokenizer = CaptionTokenizer.train([*texts, *(row["caption"] for row in rows_of(captioned / "test.jsonl"))], 300)
    answers = AnswerVocabulary.build(questions.answers, 6)
    configs = {
        "dual": DualEncoderConfig(**VIDEO, **TEXT, tubelet=(2, 8, 8)),
        "alpro": AlproRetrievalConfig(**{**VIDEO, "num_frames": 2}, **TEXT, **ALPRO, patch_size=8, projection_dim=16),
        "choosing": VideoQAConfig(**VIDEO, **TEXT, tubelet=(2, 8, 8)),
        "answering": VideoQAConfig(**VIDEO, **TEXT, tubelet=(2, 8, 8), num_answers=len(answers)),
        "classifier": VideoClassifierConfig(**VIDEO, tubelet=(2, 8, 8), num_classes=2),
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        model = build_model(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        write_model_folder(root / name, model, architecture_of(model).name)
        tokenizer.save(root / name / "tokenizer.json")
    answers.save(root / "answering" / ANSWERS_NAME)
    write_class_names(root / "classifier" / CLASSES_NAME, ["cold", "warm"])


def with_a_bad_video(rows: list[dict], video: str, path: Path) -> Path:
    """The rows, the third of whose videos is no video."""
    gone = list(dict.fromkeys(row["video"] for row in rows))[2]
    return write_rows(path, [{**row, "video": video if row["video"] == gone else row["video"]} for row in rows])


@pytest.fixture(scope="module")
def root(tmp_path_factory, captioned_videos) -> Path:
    """A folder with the models and the lists of `CASES`."""
    root = tmp_path_factory.mktemp("shared_scores")
    write_models(root, captioned_videos)
    bad = root / "bad.mp4"
    bad.write_text("a letter, and no film")
    made = (several_captions(captioned_videos), choices(captioned_videos, "test"), classes(captioned_videos, "test"))
    for path in (*made, captioned_videos / "test_questions.jsonl"):
        rows = [{**row, "video": str(captioned_videos / row["video"])} for row in rows_of(path)]
        with_a_bad_video(rows, str(bad), root / path.name)
    write_rows(root / "one.jsonl", rows_of(root / "test_classes.jsonl")[:1])
    return root


class CountingLoader(scoring.VideoTextLoader):
    """Counts the clips that it hands out, in `seen`."""

    seen = 0

    def __iter__(self):
        for batch in super().__iter__():
            CountingLoader.seen += len(batch.captions)
            yield batch


def scored(_: int, root: str, output: str) -> dict[str, tuple[str, int]]:
    """The report of each case, and how many views of clips this process read for it."""
    found, read = {}, {}
    scoring.VideoTextLoader, original = CountingLoader, scoring.VideoTextLoader
    for name, (model, data, protocol) in CASES.items():
        opened = open_model(Path(root) / model, torch.device("cpu"))
        reading = EvaluationProtocol(num_workers=0, **protocol)
        before = CountingLoader.seen
        if name == "zero-shot":
            found[name] = zero_shot(opened, Path(root) / data, protocol=reading, progress_bar=False)
        else:
            train = f"{root}/test_questions.jsonl" if name == "open" else None
            folder = Path(output) / name
            options = {"output": folder, "train_data": train, "progress_bar": False}
            found[name] = evaluate(opened, f"{root}/{data}", protocol=reading, **options)
        read[name] = CountingLoader.seen - before
    scoring.VideoTextLoader = original
    return {name: (json.dumps(report), read[name]) for name, report in found.items()}


@pytest.fixture(scope="module")
def reports(root, tmp_path_factory) -> list[dict[str, tuple[str, int]]]:
    """What `scored` returns on one process, and on both of two."""
    alone = scored(0, str(root), str(root / "alone"))
    ranks = run_ranks(scored, tmp_path_factory.mktemp("ranks"), str(root), str(root / "together"), processes=2)
    return [alone, *ranks]


@pytest.mark.parametrize("name", CASES)
def test_all_processes_get_the_report_of_one(reports, name):
    alone, *ranks = (json.loads(report[name][0]) for report in reports)
    assert ranks == [alone, alone]
    if name != "one clip":
        assert [Path(path).name for path in alone["bad_files"]["files"]] == ["bad.mp4"]
    views = math.prod(CASES[name][2].get("views", (1, 1)))
    every, *shares = (report[name][1] for report in reports)
    assert sum(shares) == every == alone["num_test"] * views
    assert max(shares) - min(shares) <= CASES[name][2]["batch_size"] + views  # those of the bad video


@pytest.mark.parametrize("name", ["retrieval", "views", "matching", "choices", "open"])
def test_the_first_process_writes_what_one_process_writes(reports, root, name):
    folders = [root / kind / name for kind in ("alone", "together")]
    assert [path.name for path in folders[1].iterdir()] == [path.name for path in folders[0].iterdir()]
    (written,), (expected,) = ([path.read_bytes() for path in folder.iterdir()] for folder in reversed(folders))
    assert written == expected


def failing(rank: int, root: str) -> list[str]:
    """What is raised where a file is missing on one process, and where one process cannot compute."""
    said = []
    opened = open_model(Path(root) / "classifier", torch.device("cpu"))
    for data, break_model in ((f"{root}/absent.jsonl", False), (f"{root}/test_classes.jsonl", True)):
        if rank == 1 and break_model:
            opened.model.head.register_forward_hook(lambda *_: 1 / 0)
        try:
            evaluate(
                opened,
                data if rank == 1 else f"{root}/test_classes.jsonl",
                protocol=EvaluationProtocol(num_workers=0, batch_size=2),
                progress_bar=False,
            )
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return [*said, str(processes.gather(rank))]


def test_what_fails_on_one_process_fails_on_all(root, tmp_path):
    first, second = run_ranks(failing, tmp_path, str(root), processes=2)
    assert second[0] == f"FileNotFoundError: {root}/absent.jsonl: no such file or folder"
    assert first[0] == f"FailedElsewhereError: process 1: {root}/absent.jsonl: no such file or folder"
    assert [said.partition(": ")[0] for said in (first[1], second[1])] == ["FailedElsewhereError", "ZeroDivisionError"]
    assert first[2] == second[2] == "[0, 1]"  # and they are still together
