"""The training-step benchmark: cost model against a counting reference, and every side computes the same loss."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import timing, train_step
from benchmarks.harness import Options
from benchmarks.plain_models import PlainTransformer
from benchmarks.train_step import config_of, make_batch, step_flops, transformer_flops
from fastvtp.models.registry import build_model

OPTIONS = Options(torch.device("cpu"), torch.float32, smoke=True)


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    return make_batch(build_model(config_of(OPTIONS)), OPTIONS)


def test_transformer_flops_are_those_of_one_sequence_after_the_other():
    width, depth, lengths = 16, 3, (5, 9, 1)
    model = PlainTransformer(width, depth, num_heads=2, mlp_ratio=4.0, kernel="manual")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for length in lengths:
            model(torch.randn(1, length, width))
    expected = transformer_flops(sum(lengths), sum(length**2 for length in lengths), width, depth, 4.0)
    assert counter.get_total_flops() == expected


def test_step_flops_count_every_product_of_the_step(batch):
    config = config_of(OPTIONS)
    values, tokens = 3 * 2 * 8 * 8, 2 * 4 * 4
    clips, visible = batch.plan.visible.shape
    decoder = transformer_flops(clips * tokens, clips * tokens**2, 16, 1, 4.0)
    encoder = transformer_flops(clips * visible, clips * visible**2, 32, 1, 4.0)
    heads = 2 * clips * visible * 32 * 16 + 2 * clips * (tokens - visible) * 16 * values
    embedding = 2 * clips * visible * values * 32
    assert step_flops(config, batch, text=False) == 3 * (decoder + encoder + heads) + 2 * embedding
    lengths = batch.plan.packing.cu_seqlens.diff().tolist()
    assert len(lengths) == 4 * clips
    text = transformer_flops(sum(lengths), sum(length**2 for length in lengths), 32, 1, 4.0)
    words = 2 * len(batch.plan.word_labels) * 32 * config.vocab_size
    assert step_flops(config, batch, text=True) == 3 * (decoder + text + heads + words) + 2 * embedding


def test_both_sides_are_given_the_same_batch(batch):
    assert (batch.labels >= 0).sum() == len(batch.plan.word_labels)
    assert torch.equal(batch.labels[batch.labels >= 0], batch.plan.word_labels)
    assert not (batch.other == torch.arange(len(batch.other))).any()
    assert torch.equal(batch.hidden.nonzero()[:, 1].view(len(batch.video), -1), batch.plan.masked.long())


def test_smoke_run_gives_one_loss_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "MIN_ROUNDS", 2)
    variants = ["released", "released, sdpa", "fastvtp", "fastvtp, graph"]
    path = tmp_path / "rows.json"
    train_step.main(train_step.cases, None, ["--smoke", "--device", "cpu", "--json", str(path), "--only", *variants])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["case"], row["variant"]) for row in rows] == [
        (case, variant) for case in ("videomae_base", "simvtp_base") for variant in variants
    ]
    for row in rows:
        if row["variant"] == "fastvtp, graph":
            assert row["note"] == "missing: CUDA graphs need a CUDA device"
        else:
            assert row["note"] == ""
            assert row["error"] < 1e-5
            assert row["median_s"] > 0


def test_a_wrong_loss_gets_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(train_step, "masked_pixel_loss", lambda prediction, *_, **__: prediction.square().mean())
    path = tmp_path / "rows.json"
    arguments = ["--smoke", "--device", "cpu", "--json", str(path), "--only", "fastvtp"]
    train_step.main(train_step.cases, None, arguments)
    row = json.loads(path.read_text())["rows"][0]
    assert row["note"].startswith("wrong: error")
    assert row["median_s"] is None
