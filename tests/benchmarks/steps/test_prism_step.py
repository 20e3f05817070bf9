"""VideoPrism's training-step cases: every side computes the same, and the cost is that of the products."""

import json

import pytest
import torch

from benchmarks.harness import timing
from benchmarks.harness.case import Options
from benchmarks.harness.workload import boolean_mask
from benchmarks.peers.plain_prism import PlainStudent, plain_encoder
from benchmarks.steps import prism_step
from benchmarks.steps.prism_step import SMOKE, SMOKE_DECODERS
from benchmarks.steps.train_step import train_step_main
from fastvtp.systems.catalogue import build_model, model_config
from tests.benchmarks.steps.counting import counted_flops

OPTIONS = Options(torch.device("cpu"), torch.float32, smoke=True)


def assert_same_gradients(model, other):
    """other: the loss of the plain side, on the weights of `model`, whose gradients are there."""
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    other.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert (value - found[name]).norm() < 1e-4 * value.norm() + 1e-7, name


def test_the_plain_encoder_has_tokens_and_gradients_of_ours():
    torch.manual_seed(0)
    model = build_model(model_config("videoprism_base", **SMOKE))
    video = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    clip, noise = video.permute(0, 1, 4, 2, 3) / 255, torch.randn(2, 64, 32)
    tokens, others = model(video), plain_encoder(model, clip)
    torch.testing.assert_close(others, tokens, rtol=1e-4, atol=1e-5)
    (tokens - noise).square().mean().backward()
    assert_same_gradients(model, (others - noise).square().mean())


def test_the_unpacked_student_has_loss_and_gradients_of_ours():
    torch.manual_seed(0)
    model = build_model(model_config("prism_student_base", **SMOKE, **SMOKE_DECODERS)).train()
    video = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    plan = model.plan(torch.arange(2), seed=0, step=0)
    loss = model(video, plan).loss
    visible = plan.visible.index
    plain = PlainStudent(model)(
        video.permute(0, 1, 4, 2, 3) / 255, visible.long(), ~boolean_mask(visible, 64), plan.order
    )
    torch.testing.assert_close(plain, loss, rtol=1e-5, atol=0)
    loss.backward()
    assert_same_gradients(model, plain)


def test_flops_are_the_products_that_our_models_compute():
    depths = {"depth": 2, "temporal_depth": 2}
    case = prism_step.encoder_case("videoprism_base", OPTIONS)
    config = model_config("videoprism_base", **SMOKE)
    model, (video, _) = build_model(config), prism_step._video(config, OPTIONS, 2)
    assert case.cost.flops == counted_flops(lambda: model(video).sum())

    config = model_config("prism_student_base", **{**SMOKE, **SMOKE_DECODERS, **depths, "decoder_depth": 2})
    student = build_model(config).train()
    plan = student.plan(torch.arange(2), seed=0, step=0)
    expected = counted_flops(lambda: student(video, plan).loss)
    assert prism_step._student_flops(config, plan.visible, 2, 64) == expected


def test_smoke_run_gives_one_loss_and_a_peak_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "MIN_ROUNDS", 2)
    path = tmp_path / "rows.json"
    variants = ["plain", "unpacked", "fastvtp"]
    train_step_main(["--smoke", "--device", "cpu", "--case", "videoprism", "--json", str(path), "--only", *variants])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["case"], row["variant"]) for row in rows] == [
        ("videoprism_base", "plain"),
        ("videoprism_base", "fastvtp"),
        ("videoprism_stage2_base", "unpacked"),
        ("videoprism_stage2_base", "fastvtp"),
    ]
    assert all(row["error"] < 1e-5 and row["median_s"] > 0 and row["peak_bytes"] > 0 for row in rows)


def test_a_wrong_token_shows_in_the_loss(monkeypatch):
    """Tokens in another order are as large: only a target near the right ones tells."""
    case = prism_step.encoder_case("videoprism_base", OPTIONS)
    assert case.error(case.variants["plain"]()) < 1e-5
    monkeypatch.setattr(prism_step, "plain_encoder", lambda model, clip: plain_encoder(model, clip).roll(1, dims=1))
    wrong = prism_step.encoder_case("videoprism_base", OPTIONS)
    assert wrong.error(wrong.variants["plain"]()) > 100 * wrong.tolerance


def test_transformers_model_has_our_tokens():
    pytest.importorskip("transformers")
    case = prism_step.encoder_case("videoprism_base", OPTIONS)
    assert case.error(case.variants["hf, eager"]()) < 1e-5
