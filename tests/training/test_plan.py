"""The plan of a run of many processes, against numbers that are computed here by hand."""

import pytest

from fastvtp.errors import ConfigError
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import TrainConfig, apply_overrides
from fastvtp.training.plan import Assumptions, describe, option_of, plan

# VideoMAE-B: 12 blocks of 12 D² + 12 D values, 4 in the decoder, and embeddings, norms, mask token and head
BLOCK = 12 * 768**2 + 12 * 768
BLOCKS = 12 * BLOCK + 4 * (12 * 384**2 + 12 * 384)
TUBELET = 3 * 2 * 16 * 16
ROOT = (TUBELET + 1) * 768 + 2 * 768 + 768 * 384 + 384 + 2 * 384 + (384 + 1) * TUBELET
WHOLE = BLOCKS + ROOT


def videomae(*settings: str) -> TrainConfig:
    return apply_overrides(get_recipe("videomae_pretrain_base"), ["batch_size=2048", "micro_batch=64", *settings])


def test_parameters_are_counted():
    found = plan(videomae(), Assumptions(gpus=16))["run"]
    assert found["parameters"] == found["trained"] == WHOLE == 94_210_944
    assert (found["micro_batches_a_process"], found["machines"]) == (2, 2)
    assert found["strategy"] == "ddp"
    assert plan(videomae("parallel.strategy=fsdp2"), Assumptions(gpus=16))["run"]["strategy"] == "fsdp2"
    assert plan(videomae(), Assumptions(gpus=16, gpu_memory=2.8))["run"]["strategy"] == "fsdp2"  # 1.4 GiB of state


def test_memory_of_a_process():
    """Two micro-batches a process: FSDP2 then adds up gradients of whole matrices."""
    found = plan(videomae(), Assumptions(gpus=16))["strategies"]
    ddp, fsdp2, hsdp = (found[name]["memory"] for name in ("ddp", "fsdp2", "hsdp"))
    assert [ddp[name] for name in ("weights", "gradients", "optimizer")] == [4 * WHOLE, 4 * WHOLE, 8 * WHOLE]
    assert (ddp["gathered"], ddp["summed"], ddp["average"]) == (0, 0, 0)
    # every first dimension is cut into 16 or 8 equal parts, all of them even but the mask token's and such
    assert fsdp2["weights"] == pytest.approx(4 * WHOLE / 16, rel=1e-3)
    assert (hsdp["weights"], hsdp["optimizer"]) == (4 * WHOLE / 8, 8 * WHOLE / 8)
    assert fsdp2["gathered"] == hsdp["gathered"] == 4 * (2 * BLOCK + ROOT)
    assert fsdp2["summed"] == 4 * WHOLE
    # encoder: 160 visible rows, 16 D values a block, 2 of them in float32; decoder: all 1568
    rows = 160 * 12 * 36 * 768 + 1568 * 4 * 36 * 384
    assert ddp["activations"] == 64 * rows
    matrices = 12 * 12 * 768**2 + 4 * 12 * 384**2 + 768 * 384 + 384 * TUBELET
    assert ddp["casts"] == fsdp2["casts"] == 2 * matrices
    assert ddp["total"] == 16 * WHOLE + 64 * rows + 2 * matrices


def test_memory_follows_from_the_settings():
    (alone,) = plan(videomae(), Assumptions(gpus=1))["strategies"].items()
    assert alone[0] == "none"
    one_each = plan(videomae("micro_batch=128", "ema_decay=0.999"), Assumptions(gpus=16))["strategies"]["fsdp2"]
    assert one_each["memory"]["summed"] == 0
    assert one_each["memory"]["average"] == one_each["memory"]["weights"]
    half = plan(videomae("parallel.strategy=fsdp2", "parallel.param_dtype=bfloat16"), Assumptions(gpus=16))
    assert half["strategies"]["fsdp2"]["memory"]["gathered"] == 2 * 2 * BLOCK + 4 * ROOT
    assert half["strategies"]["fsdp2"]["memory"]["casts"] == 0
    kept = plan(videomae("recompute=blocks"), Assumptions(gpus=16))["strategies"]["ddp"]["memory"]["activations"]
    assert kept == 64 * (4 * (160 * 12 * 768 + 1568 * 4 * 384) + 36 * 1568 * 384)


def test_the_largest_micro_batch_fits_and_the_next_does_not():
    assumed = Assumptions(gpus=16, gpu_memory=8)
    size = plan(videomae(), assumed)["strategies"]["ddp"]["largest_micro_batch"]
    assert 128 % size == 0
    totals = {
        clips: plan(videomae(f"micro_batch={clips}"), assumed)["strategies"]["ddp"]["memory"]["total"]
        for clips in (size, 2 * size)
    }
    assert totals[size] <= 8 * 2**30 < totals[2 * size]
    assert plan(videomae(), Assumptions(gpus=16, gpu_memory=1))["strategies"]["ddp"]["largest_micro_batch"] == 0


def test_what_is_sent_in_a_step():
    """Each process computes two micro-batches: two gathers of each, one sum of all gradients."""
    found = plan(videomae(), Assumptions(gpus=16, network=10))["strategies"]
    gradients = 4 * WHOLE
    gathered = 2 * (2 * 4 * BLOCKS + 4 * ROOT)
    assert found["ddp"]["sent_by_process"] == pytest.approx(2 * 15 / 16 * gradients)
    assert found["ddp"]["sent_by_machine"] == pytest.approx(2 * 1 / 2 * gradients)
    assert found["ddp"]["network_seconds"] == pytest.approx(gradients / 10e9)
    assert found["fsdp2"]["sent_by_process"] == pytest.approx(15 / 16 * (gathered + gradients))
    assert found["fsdp2"]["sent_by_machine"] == pytest.approx(1 / 2 * (gathered + gradients))
    # a copy on each of two machines: only the sums of the shards leave a machine
    assert found["hsdp"]["sent_by_process"] == pytest.approx(7 / 8 * (gathered + gradients) + gradients / 8)
    assert found["hsdp"]["sent_by_machine"] == pytest.approx(gradients)
    assert plan(videomae(), Assumptions(gpus=8))["strategies"]["ddp"]["sent_by_machine"] == 0


def test_losses_that_look_around_send_features_and_clips():
    """SimVTP draws wrong clips from the whole step: its features, of 256 values, are computed beforehand."""
    settings = ["batch_size=4096", "micro_batch=4"]
    config = apply_overrides(get_recipe("simvtp_base"), settings)
    found = plan(config, Assumptions(gpus=1024))
    from_others = 1023 / 1024 * 4096
    assert found["exchange"]["features"] == pytest.approx(from_others * 2 * 256 * 4)
    assert found["exchange"]["wrong_clips"] == pytest.approx(from_others / 1024 * 16 * 224 * 224 * 3)
    near = apply_overrides(config, ["contrast_scope=micro_batch"])
    alone = plan(near, Assumptions(gpus=1024))
    assert alone["exchange"] == {"features": 0, "wrong_clips": 0}
    sent, less = (each["strategies"]["fsdp2"]["sent_by_process"] for each in (found, alone))
    assert sent > 1.3 * less  # once more through the blocks
    assert plan(videomae(), Assumptions(gpus=16))["exchange"] == {"features": 0, "wrong_clips": 0}


def test_reading_checkpoints_and_failures():
    config = videomae("steps=1000", "checkpoint_every=500")
    assumed = Assumptions(gpus=16, step_seconds=2.0, clips=100_000, clip_mb=0.5, storage=2.0, failures=3.0)
    found = plan(config, assumed)
    reading, checkpoints, failures = found["reading"], found["checkpoints"], found["failures"]
    assert (reading["clips_a_second"], reading["clips_a_second_a_machine"]) == (1024, 512)
    assert (reading["bytes_a_step"], reading["bytes_a_second"]) == (2048 * 0.5e6, 1024 * 0.5e6)
    assert reading["frames_a_step"] == 2048 * 61  # 16 frames, 4 apart
    assert (reading["seconds"], reading["epochs"], reading["stored_bytes"]) == (2000, 20.48, 50e9)
    assert (checkpoints["bytes"], checkpoints["write_seconds"]) == (12 * WHOLE, 12 * WHOLE / 2e9)
    assert checkpoints["period_seconds"] == 1000
    between = 365.25 / 12 * 86_400 / (2 * 3)
    assert failures["between_seconds"] == pytest.approx(between)
    assert failures["expected"] == pytest.approx(2000 / between)
    assert failures["lost_share"] == pytest.approx((500 + 600) / between)


def test_nothing_that_needs_a_time_is_made_up():
    found = plan(videomae(), Assumptions(gpus=16))
    for section, name in (
        ("reading", "seconds"),
        ("reading", "clips_a_second"),
        ("checkpoints", "period_seconds"),
        ("failures", "expected"),
        ("failures", "lost_share"),
    ):
        assert found[section][name] is None
    whole = plan(apply_overrides(videomae(), ["data.sampling=uniform"]), Assumptions(gpus=16, step_seconds=1))
    assert whole["reading"]["frames_a_second"] is None
    by_clips = plan(videomae(), Assumptions(gpus=16, clips_per_second_per_gpu=64.0))
    assert by_clips["reading"]["clips_a_second"] == 16 * 64
    assert by_clips["reading"]["seconds"] == 2.0 * videomae().steps


def test_models_without_a_model_of_activations_say_so():
    found = plan(get_recipe("videoprism_captioning_tiny"), Assumptions(gpus=1))["strategies"]["none"]
    assert (found["memory"]["activations"], found["largest_micro_batch"]) == (None, None)


def test_adafactor_is_planned_whole():
    config = apply_overrides(get_recipe("videoprism_stage1"), ["micro_batch=8"])
    assert list(plan(config, Assumptions(gpus=16))["strategies"]) == ["ddp"]


def test_every_assumption_is_stated_with_its_option():
    stated = describe(videomae(), Assumptions(gpus=16, network=25.0))["assumptions"]
    assert stated["network"] == {
        "what": "GB a second that a machine sends to the others",
        "value": 25.0,
        "option": "--network",
    }
    assert stated["decoded_frames"]["value"] == 61
    assert {assumption["option"] for assumption in stated.values()} == {option_of(name) for name in stated}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gpus": 12}, "--gpus=12 is no multiple of --gpus-per-node=8"),
        ({"network": 0.0}, "--network must be positive, got 0"),
        ({"failures": -1.0}, "--failures must be positive, got -1"),
        ({"step_seconds": 1.0, "clips_per_second_per_gpu": 1.0}, "say the same: give one of them"),
    ],
)
def test_assumptions_that_cannot_be_are_named(settings, said):
    with pytest.raises(ConfigError, match=said):
        Assumptions(**settings)
    assert Assumptions(failures=0.0, words=0.0).failures == 0


def test_processes_that_cannot_share_the_step_are_refused():
    with pytest.raises(ConfigError, match="24 processes cannot share the 32 micro-batch"):
        plan(videomae(), Assumptions(gpus=24))
