"""The ablation of ALPRO: what its runs vary, its scores, and a whole study of seconds."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastvtp.ablation.held_out import HeldOut, load_clips
from fastvtp.ablation.report import HOLDS, NOISE
from fastvtp.ablation.runner import ablate
from fastvtp.data.annotations import load_annotations
from fastvtp.data.synthetic.scene import ENTITIES
from fastvtp.data.wordpiece import CaptionTokenizer
from fastvtp.systems.alpro import ablation as alpro_scoring
from fastvtp.systems.alpro.ablation import (
    QUICK,
    AlproReport,
    AlproScale,
    base_config,
    entity_scores,
    loss_scores,
    plan_runs,
    score,
    shown_entities,
)
from fastvtp.systems.alpro.towers import AlproConfig
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.recipes import find_study

SCALE = replace(QUICK, num_train=24, num_test=8, probe_clips=16, prompter_steps=2)


def settings(folder, *more: str):
    return base_config("fastvtp", [f"output_dir={folder}", "device=cpu", "steps=2", *more], quick=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the whole study."""
    folder = tmp_path_factory.mktemp("ablation") / "alpro"
    ablate(find_study("alpro", []), settings(folder), SCALE, command="fastvtp ablate alpro", progress_bar=False)
    return folder


def test_runs_differ_in_the_weights_of_two_objectives():
    base = base_config("fastvtp", ["steps=7"], quick=False)
    configs = {run.name: run.config(base) for run in plan_runs("all", base.model, AlproScale())}
    weights = {name: (c.model.contrastive_weight, c.model.entity_weight, c.steps) for name, c in configs.items()}
    assert weights == {
        "base": (1, 1, 7), "base, seed +1": (1, 1, 7), "base, seed +2": (1, 1, 7), "untrained": (1, 1, 1),
        "without PEM": (1, 0, 7), "without VTC": (0, 1, 7), "without PEM and VTC": (0, 0, 7),
    }  # fmt: skip


def test_a_study_is_reported_and_starts_all_runs_from_one_prompter(finished):
    state = json.loads((finished / "ablation.json").read_text())
    assert len(state["runs"]) == 6
    assert all(np.isfinite(list(run["scores"].values())).all() for run in state["runs"].values())
    scores = {name: set(run["scores"]) for name, run in state["runs"].items()}
    assert scores["base"] - scores["without PEM"] == {"entity_loss", "entity_hit", "entity_hit/prompter"}
    assert state["about"]["steps of the prompter"] == 2
    text = (finished / "ablation.md").read_text()
    for title in ("# Ablation of ALPRO", "## Retrieval", "## What the video features know", "## The objectives"):
        assert title in text
    assert (finished / "ablation.png").stat().st_size > 1000
    for run in ("base", "without_PEM_and_VTC"):
        config = json.loads((finished / "runs" / run / "train_config.json").read_text())
        assert config["init"] == config["prompter"] == str(finished / "start/run")


def test_what_is_finished_is_not_trained_again(finished, monkeypatch):
    before = (finished / "ablation.json").read_bytes()
    monkeypatch.setattr("fastvtp.training.loop.train", None)
    ablate(find_study("alpro", []), settings(finished), SCALE, command="fastvtp ablate alpro", progress_bar=False)
    assert (finished / "ablation.json").read_bytes() == before


@pytest.fixture(scope="module")
def held_out(captioned_videos):
    tokenizer = CaptionTokenizer.train(
        [record.captions[0] for record in load_annotations(captioned_videos / "train.jsonl")], vocab_size=300
    )
    config = replace(
        settings("unused").model, vocab_size=tokenizer.vocab_size, mask_token_id=tokenizer.mask_id,
        special_token_ids=tuple(sorted(tokenizer.special_ids)), num_entities=len(ENTITIES),
    )  # fmt: skip
    train, test = (
        load_clips(captioned_videos / name, tokenizer, config, limit=8, num_workers=0, device=torch.device("cpu"))
        for name in ("train.jsonl", "test.jsonl")
    )
    return HeldOut(train, test, config)


@pytest.fixture
def model(held_out):
    torch.manual_seed(0)
    model = build_model(held_out.masks)
    model.video_prompts.normal_()
    return model


def test_scores_repeat_and_leave_the_model_in_its_mode(model, held_out):
    model.train()
    first = score(model, held_out)
    assert score(model, held_out) == first
    assert model.training
    assert {"transfer", "retrieval/R1", "contrast/R1", "matching_accuracy", "word_loss", "entity_loss"} <= first.keys()
    assert alpro_scoring.chance(held_out).keys() - {"transfer"} <= first.keys()


def test_a_hit_is_an_entity_that_the_clip_shows(model, held_out, monkeypatch):
    shown = shown_entities(held_out.test)
    assert shown.shape == (8, len(ENTITIES))
    captions = [caption for batch in held_out.test.batches for caption in batch.captions]
    for row, caption in zip(shown, captions, strict=True):
        assert {ENTITIES[place] for place in row.nonzero()[:, 0]} == {*ENTITIES} & {
            *re.findall("[a-z]+", caption.lower())
        }
    rows = [(row.index(True), row.index(False)) for row in shown.tolist()]
    examples = [SimpleNamespace(model={ENTITIES[yes]: 0.9}, prompter={ENTITIES[no]: 0.9}) for yes, no in rows]
    monkeypatch.setattr(alpro_scoring, "predict_entities", lambda *_, **__: examples)
    assert entity_scores(model, held_out) == {"entity_hit": 100, "entity_hit/prompter": 0}
    for example in examples[:2]:
        example.model = example.prompter
    assert entity_scores(model, held_out)["entity_hit"] == 75


def test_losses_are_those_of_the_training_forward_with_common_wrong_pairs(model, held_out):
    model.eval()
    with torch.no_grad():
        found = loss_scores(model, held_out)
        (batch,) = held_out.test.batches
        plan = model.plan(batch.input_ids, batch.text_lengths, batch.sample_ids, seed=alpro_scoring.MASK_SEED, step=0)
        terms = model(batch.video, plan).terms
    assert found["word_loss"] == pytest.approx(terms["loss/word"].item(), rel=1e-5)
    assert found["entity_loss"] == pytest.approx(terms["loss/entity"].item(), rel=1e-5)


def test_claims_compare_with_and_without():
    usual = {"retrieval/R1": 20.0, "transfer": 50.0}
    scores = {run.name: dict(usual) for run in plan_runs("all", AlproConfig(), AlproScale())}
    for place, name in enumerate(("base", "base, seed +1", "base, seed +2")):
        scores[name] = {score: value * (1 + 1e-4 * place) for score, value in usual.items()}
    scores["without VTC"]["retrieval/R1"] -= 5
    scores["without PEM"]["transfer"] -= 5
    state = {"runs": {name: {"scores": values} for name, values in scores.items()}}
    contrast, entities = AlproReport(state, None, AlproScale()).claims()
    assert [part.verdict for part in contrast.parts] == [HOLDS, NOISE]
    assert [part.verdict for part in entities.parts] == [NOISE, HOLDS]
