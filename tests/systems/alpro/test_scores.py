"""Scores by ALPRO's matching head."""

import json
import logging
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
from fastvtp.evaluation.retrieval import encode_retrieval
from fastvtp.evaluation.scoring import evaluation_loader
from fastvtp.training.config import apply_overrides
from fastvtp.training.loop import train
from tests.systems.alpro.test_training import configure
from tests.training.labelled import rows_of, several_captions, write_rows


@pytest.fixture(scope="module")
def trained(captioned_videos, tmp_path_factory) -> dict[str, Path]:
    """Short runs, one with a matching head and one without; long steps, so that their scores differ."""
    root, found = tmp_path_factory.mktemp("scores"), {}
    for name in ("retrieval", "prompter"):
        found[name] = root / name
        config = configure(f"alpro_{name}_tiny", captioned_videos / "train.jsonl", root / name, "steps=8")
        train(apply_overrides(config, ["optimizer.learning_rate=0.003"]), progress_bar=False)
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
    if top_k is None:  # of five each, ranks of eight clips may come out the same
        assert reports[True]["retrieval"] != reports[False]["retrieval"]


def test_a_model_without_a_matching_head_is_one_line(trained, captioned_videos, monkeypatch, capsys):
    arguments = (trained["prompter"], captioned_videos / "test.jsonl", "--add-similarity")
    expected = "fastvtp: add_similarity is for models with a matching head, not for alpro_prompter\n"
    assert run(monkeypatch, capsys, *arguments)[::2] == (2, expected)


@pytest.mark.parametrize("name", ["retrieval", "prompter"])
def test_a_caption_of_three_videos_is_right_with_each(trained, captioned_videos, monkeypatch, capsys, caplog, name):
    caplog.set_level(logging.INFO)
    rows = rows_of(captioned_videos / "test.jsonl")
    for place, row in enumerate(rows[:3]):
        row["caption"] = ["It moves." if place else " It  moves. ", row["caption"]]
    data = write_rows(captioned_videos / "shared.jsonl", rows)
    reports = {}
    for way in ("--shared-captions", "--own-captions"):
        status, out, error = run(monkeypatch, capsys, trained[name], data, way)
        assert status == 0, error
        reports[way] = json.loads(out)
        assert (reports[way]["num_captions"], reports[way]["captions_of_several_videos"]) == (11, 3)
    assert "3 of 11 captions are those of several videos: only a caption's own is right" in caplog.text
    together, apart = reports.values()
    assert together["chance_R1"] == pytest.approx(100 * (8 + 3 * 3) / (11 * 8))
    assert apart["chance_R1"] == 100 / 8
    opened = runs.open_model(trained[name], torch.device("cpu"))
    with evaluation_loader(opened, load_annotations(data), runs.EvaluationProtocol(num_workers=0)) as loader:
        if name == "retrieval":
            encoded = encode_set(opened.model, loader, device="cpu", progress=False)
            scores = match_scores(opened.model, encoded, progress=False)[0]
        else:
            scores = encode_retrieval(opened.model, loader, device="cpu", progress=False).similarity()
    of_shared = scores[0]  # the loader shows the first caption of each
    better = [int((of_shared > of_shared[own]).sum()) for own in range(3)]
    gained = 3 * (sum(1 + rank for rank in better) / 3 - (1 + min(better)))
    assert gained > 0
    assert 11 * (apart["retrieval"]["t2v"]["MnR"] - together["retrieval"]["t2v"]["MnR"]) == pytest.approx(gained)


def test_the_matching_head_scores_every_caption(captioned_videos, tmp_path):
    data = captioned_videos / "train.jsonl"
    test = f"data.test={several_captions(captioned_videos)}"
    config = configure("alpro_retrieval_tiny", data, tmp_path, "steps=1", test)
    for top_k in ("none", "3"):
        more = [f"data.test_top_k={top_k}", f"output_dir={tmp_path / top_k}"]
        report = runs.pretrain(apply_overrides(config, more), progress_bar=False)
        assert (report["num_test"], report["num_captions"]) == (8, 15)
        assert report["chance_R1"] == pytest.approx(100 * (13 + 2 * 2) / (15 * 8))  # two captions are the same
        assert (tmp_path / top_k / "gallery.html").stat().st_size > 1000
