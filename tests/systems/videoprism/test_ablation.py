"""The ablation of VideoPrism's second stage: what its runs cost, what is asked, what lands on the disk."""

import json
from dataclasses import replace

import pytest
import torch

from fastvtp.ablation.runner import ablate
from fastvtp.data.synthetic.scene import (
    MOTIONS,
    OPPOSITE_MOTION,
    PAIR_MOTIONS,
)
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.recipes import find_study
from fastvtp.systems.videoprism import ablation as prism_scoring
from fastvtp.systems.videoprism import ablation as prism_studies
from fastvtp.systems.videoprism.ablation import (
    QUICK,
    base_config,
    first_motion,
    plan_runs,
    stage1_config,
    stage1_cost,
    stage2_cost,
)
from tests.training.labelled import rows_of


def test_a_study_of_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(prism_scoring, "_STEPS", 3)
    config = base_config("fastvtp", [f"output_dir={tmp_path}", "device=cpu", "steps=2"], quick=True)
    scale = replace(QUICK, num_train=24, num_test=12, probe_clips=16, stage1_steps=2)
    ablate(find_study("videoprism", []), config, scale, keep=True, command="fastvtp ablate", progress_bar=False)
    state = json.loads((tmp_path / "ablation.json").read_text())
    steps = {name: run["steps"] for name, run in state["runs"].items()}
    assert steps.pop("stage 1") == 0
    longer = steps.pop("stage 1 for longer")
    assert longer == round(2 * stage2_cost(config.model) / stage1_cost(stage1_config(config, 1).model))
    assert steps == {
        "base": 2, "base, seed +1": 2, "without shuffling": 2, "without global distillation": 2
    }  # fmt: skip
    assert len(state["claims"]) == 3
    assert (tmp_path / "ablation.png").stat().st_size > 1000
    assert "| stage 1 for longer |" in (tmp_path / "ablation.md").read_text()
    # all of them start from the one first stage
    teacher = json.loads((tmp_path / "runs/without_shuffling/train_config.json").read_text())["teacher"]
    again = json.loads((tmp_path / "runs/stage_1_for_longer/train_config.json").read_text())
    assert (again["init"], again["task"]) == (teacher, "pretrain_videoprism_contrastive")
    assert "teacher" not in again
    assert len(rows_of(tmp_path / "start/run/metrics.jsonl")) >= 1


def test_the_untrained_student_is_the_first_stage():
    runs = {run.name: run for run in plan_runs("all", base_config("fastvtp", [], quick=False).model, QUICK)}
    assert "untrained" not in runs
    assert runs["stage 1"].untrained
    assert runs["stage 1"].config(base_config("fastvtp", [], quick=False)).optimizer.final_learning_rate == 0
    assert not runs["without shuffling"].config(base_config("fastvtp", [], quick=False)).model.shuffle_tokens
    assert runs["without global distillation"].config(base_config("fastvtp", [], quick=False)).model.global_weight == 0


def test_costs_are_those_of_the_linear_layers_and_of_attention():
    """Against the products that torch counts in a forward pass of blocks."""
    config = base_config("fastvtp", [], quick=False)
    model = build_model(config.model)
    counted = []
    stacks = (model.encoder, model.local_decoder.transformer, model.global_decoder.transformer)
    for linear in (module for stack in stacks for module in stack.modules() if isinstance(module, torch.nn.Linear)):
        linear.register_forward_hook(lambda m, i, o: counted.append(m.weight.numel() * i[0].shape[:-1].numel()))
    video = torch.zeros(1, 8, 64, 64, 3, dtype=torch.uint8)
    with torch.no_grad():
        model(video, model.plan(torch.tensor([0]), seed=0, step=0))
    # the teacher's pass, which has no gradient, is not hooked; the products within attention are the tenth that is left
    without = stage2_cost(config.model) - prism_studies._encoder_cost(config.model, 1.0)
    assert 3 * sum(counted) == pytest.approx(without, rel=0.12)
    assert 3 * sum(counted) < without


def test_what_is_asked_of_motion_cannot_be_told_from_frames_in_any_order():
    assert set(OPPOSITE_MOTION) == set(MOTIONS)
    assert all({OPPOSITE_MOTION[motion] for motion in motions} == set(motions) for motions in PAIR_MOTIONS.values())
    scenes = [{"objects": [{"motion": "up"}, {"motion": "grow"}]}, {"objects": [{"motion": "vanish"}]}]
    assert [MOTIONS[place] for place in first_motion(scenes).tolist()] == ["up", "vanish"]
