"""The training-step benchmark: cost model against a counting reference, and every side computes the same loss."""

import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import timing
from benchmarks.harness.case import Options
from benchmarks.harness.workload import normalized_clip, normalized_frames
from benchmarks.peers.plain_models import PlainSimVTP, PlainTransformer, PlainVideoMAE
from benchmarks.steps import train_step
from benchmarks.steps.step import transformer_flops
from benchmarks.steps.train_step import CASES, config_of, make_batch, step_flops, train_step_main
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.videomae import model as videomae
from tests.benchmarks.steps.counting import counted_flops

OPTIONS = Options(torch.device("cpu"), torch.float32, smoke=True)
SMOKE = ("--smoke", "--device", "cpu")


def model_and_batch(name):
    torch.manual_seed(0)
    model = build_model(config_of(name, OPTIONS))
    return model, make_batch(model, OPTIONS)


@pytest.fixture(scope="module")
def batch():
    return model_and_batch("simvtp_base")[1]


def test_transformer_flops_are_those_of_one_sequence_after_the_other():
    width, depth, lengths = 16, 3, (5, 9, 1)
    model = PlainTransformer(width, depth, num_heads=2, mlp_ratio=4.0, kernel="manual")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for length in lengths:
            model(torch.randn(1, length, width))
    expected = transformer_flops(sum(lengths), sum(length**2 for length in lengths), width, depth, 4.0)
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", ["videomae_base", "simvtp_base"])
def test_step_flops_are_the_products_that_our_model_computes(name, depth):
    torch.manual_seed(0)
    config = dataclasses.replace(config_of(name, OPTIONS), depth=depth, decoder_depth=depth)
    model = build_model(config)
    batch = make_batch(model, OPTIONS)
    if isinstance(config, SimVTPConfig):
        assert (batch.captions[0] == config.pad_token_id).any(), "without padding nothing tells whether it is counted"
    assert counted_flops(lambda: model(batch.video, batch.plan).loss) == step_flops(config, batch)


def test_both_sides_are_given_the_same_batch(batch):
    _, labels, other = batch.captions
    words = batch.plan.word_labels
    assert torch.equal(labels[labels >= 0], words[words >= 0])
    assert not (other == torch.arange(len(other))).any()
    assert torch.equal(batch.hidden.nonzero()[:, 1].view(len(batch.video), -1), batch.plan.predicted.long())


@pytest.mark.parametrize("name", ["videomae_base", "simvtp_base"])
@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
def test_plain_models_have_loss_and_gradients_of_ours(name, kernel):
    model, batch = model_and_batch(name)
    plain = {"videomae_base": PlainVideoMAE, "simvtp_base": PlainSimVTP}[name](model.config, kernel)
    plain.load_state_dict(model.state_dict())
    for part in ("video_embeddings", "decoder"):
        getattr(plain, part).positions.copy_(getattr(model, part).positions)
    ours = model(batch.video, batch.plan).loss
    theirs = plain(batch.clip, batch.hidden, *batch.captions)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=0)
    ours.backward()
    theirs.backward()
    expected = dict(model.named_parameters())
    for parameter, value in plain.named_parameters():
        difference = (value.grad - expected[parameter].grad).norm() / expected[parameter].grad.norm()
        assert difference < 1e-4, parameter


def test_smoke_run_gives_one_loss_and_a_peak_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "MIN_ROUNDS", 2)
    variants = ["released", "released, sdpa", "fastvtp", "fastvtp, graph"]
    path = tmp_path / "rows.json"
    cases = ("videomae_base", "simvtp_base", "alpro_base")  # VideoPrism's have other variants
    train_step_main([*SMOKE, "--json", str(path), "--case", *cases, "--only", *variants])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["case"], row["variant"]) for row in rows] == [
        (case, variant) for case in cases for variant in variants
    ]
    for row in rows:
        if row["variant"] == "fastvtp, graph":
            assert row["note"] == "missing: CUDA graphs need a CUDA device"
        else:
            assert row["note"] == ""
            assert row["error"] < 1e-5
            assert row["median_s"] > 0
            assert row["peak_bytes"] > 0


@pytest.mark.parametrize("optimizer", [True, False])
def test_a_step_of_any_batch_with_or_without_the_optimizer(tmp_path, monkeypatch, optimizer):
    steps = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: steps.append(self))
    path = tmp_path / "rows.json"
    options = [
        "--case",
        "videomae_base",
        "--only",
        "fastvtp",
        "--batch",
        "2",
        *([] if optimizer else ["--no-optimizer"]),
    ]
    train_step_main([*SMOKE, "--json", str(path), *options])
    (row,) = json.loads(path.read_text())["rows"]
    assert row["direction"] == ("step" if optimizer else "forward+backward")
    assert row["shape"]["batch"] == 2
    assert bool(steps) == optimizer


def test_peer_from_frames_has_the_loss():
    pytest.importorskip("transformers")
    (build,) = train_step.cases(OPTIONS, ["videomae_base"])
    case = build()
    assert case.error(case.variants["hf, sdpa, from frames"]()) < 1e-5


def test_frames_and_clip_hold_the_same_values():
    video = torch.randint(0, 256, (2, 4, 6, 5, 3), dtype=torch.uint8)
    assert torch.equal(normalized_frames(video), normalized_clip(video).transpose(1, 2))


def test_cases_are_chosen_by_name():
    def chosen(options, *words):
        return [factory.args[0] for factory in train_step.cases(options, words)]

    full = Options(OPTIONS.device, OPTIONS.dtype)
    assert chosen(full) == list(CASES)
    assert chosen(full, "small") == ["videomae_small", "simvtp_small"]
    assert chosen(full, "simvtp_base", "videomae") == ["videomae_base", "simvtp_base", "videomae_small"]
    assert chosen(full, "alpro") == ["alpro_base"]
    assert chosen(OPTIONS) == list(train_step.SMOKE_CASES)
    assert chosen(OPTIONS, "small") == ["videomae_small", "simvtp_small"]


def test_an_unknown_case_is_named_before_anything_runs(capsys):
    with pytest.raises(SystemExit):
        train_step_main([*SMOKE, "--case", "base", "vidoemae"])
    assert "--case: no case contains 'vidoemae'; there are videomae_base, simvtp_base" in capsys.readouterr().err


def test_one_clip_is_enough_where_no_wrong_pair_is_needed(tmp_path, capsys):
    for case in ("videomae_base", "videoprism_base"):
        path = tmp_path / f"{case}.json"
        train_step_main([*SMOKE, "--case", case, "--batch", "1", "--only", "fastvtp", "--json", str(path)])
        (row,) = json.loads(path.read_text())["rows"]
        assert (row["shape"]["batch"], row["note"]) == (1, "")
    for cases, refusal in (
        (["--case", "videomae_base", "alpro"], "at least 2 for alpro_base (a wrong pair needs two clips), got 1"),
        ([], "at least 2 for simvtp_base (a wrong pair needs two clips), got 1"),
    ):
        with pytest.raises(SystemExit):
            train_step_main([*SMOKE, *cases, "--batch", "1"])
        assert f"--batch must be {refusal}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_step_main([*SMOKE, "--case", "videomae_base", "--batch", "0"])
    assert "--batch must be at least 1, got 0" in capsys.readouterr().err


def test_the_sizes_are_those_of_the_registry():
    full = Options(OPTIONS.device, OPTIONS.dtype)
    widths = {name: config_of(name, full).width for name in CASES if name.startswith(("videomae", "simvtp"))}
    assert widths == {"videomae_base": 768, "simvtp_base": 768, "videomae_small": 384, "simvtp_small": 384}
    config = config_of("simvtp_base", full)
    assert isinstance(config, SimVTPConfig)
    assert config.text_dropout == 0, "dropout would give every variant a loss of its own"
    assert config.pad_text


def test_a_wrong_loss_gets_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(videomae, "masked_pixel_loss", lambda prediction, *_, **__: prediction.square().mean())
    path = tmp_path / "rows.json"
    train_step_main([*SMOKE, "--case", "videomae_base", "--json", str(path), "--only", "fastvtp"])
    (row,) = json.loads(path.read_text())["rows"]
    assert row["note"].startswith("wrong: error")
    assert row["median_s"] is None
