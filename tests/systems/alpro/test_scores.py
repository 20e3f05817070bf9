"""Scores by ALPRO's matching head."""

import json
import sys
from pathlib import Path

import pytest
import torch

from fastvtp import runs
from fastvtp.cli import main as cli
from fastvtp.data.annotations import load_annotations
from fastvtp.evaluation.matching import (
    encode_set,
    match_scores,
    matching_metrics,
)
from fastvtp.evaluation.scoring import evaluation_loader
from fastvtp.training.config import apply_overrides
from fastvtp.training.loop import train
from tests.systems.alpro.test_training import configure
from tests.training.labelled import several_captions


@pytest.fixture(scope="module")
def trained(captioned_videos, tmp_path_factory) -> dict[str, Path]:
    """Short runs, one with a matching head and one without; long steps, so that their scores differ."""
    root, found = tmp_path_factory.mktemp("scores"), {}
    for name in ("retrieval", "prompter"):
        found[name] = root / name
        config = configure(f"alpro_{name}_tiny", captioned_videos / "train.jsonl", root / name, "steps=8")
        train(apply_overrides(config, ["optimizer.learning_rate=0.03"]), progress_bar=False)
    return found


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["fastvtp", "evaluate", *map(str, arguments), "--num-workers", "0", "--quiet"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("top_k", [None, 5])
def test_similarities_are_added_where_the_command_says_so(trained, captioned_videos, monkeypatch, capsys, top_k):
    test = captioned_videos / "test.jsonl"
    opened = runs.open_model(trained["retrieval"], torch.device("cpu"))
    with evaluation_loader(opened, load_annotations(test), runs.EvaluationProtocol(num_workers=0)) as loader:
        encoded = encode_set(opened.model, loader, device="cpu", progress=False)
    reports = {}
    for added in (False, True):
        options = ["--add-similarity"] * added + (["--top-k", top_k] if top_k else [])
        status, out, error = run(monkeypatch, capsys, trained["retrieval"], test, *options)
        assert status == 0, error
        reports[added] = json.loads(out)
        assert (reports[added]["add_similarity"], reports[added]["top_k"]) == (added, top_k)
        scores = match_scores(opened.model, encoded, top_k=top_k, add_similarity=added, progress=False)
        expected = matching_metrics(*scores, video_of_text=encoded.video_of_text)
        assert reports[added]["retrieval"] == expected
    assert reports[True]["retrieval"] != reports[False]["retrieval"]


def test_a_model_without_a_matching_head_is_one_line(trained, captioned_videos, monkeypatch, capsys):
    arguments = (trained["prompter"], captioned_videos / "test.jsonl", "--add-similarity")
    expected = "fastvtp: add_similarity is for models with a matching head, not for alpro_prompter\n"
    assert run(monkeypatch, capsys, *arguments)[::2] == (2, expected)


def test_the_matching_head_scores_every_caption(captioned_videos, tmp_path):
    data = captioned_videos / "train.jsonl"
    test = f"data.test={several_captions(captioned_videos)}"
    config = configure("alpro_retrieval_tiny", data, tmp_path, "steps=1", test)
    for top_k in ("none", "3"):
        more = [f"data.test_top_k={top_k}", f"output_dir={tmp_path / top_k}"]
        report = runs.pretrain(apply_overrides(config, more), progress_bar=False)
        assert (report["num_test"], report["num_captions"], report["chance_R1"]) == (8, 15, 100 / 8)
        assert (tmp_path / top_k / "gallery.html").stat().st_size > 1000
