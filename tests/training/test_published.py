"""What recipes follow: batches, clips and rates as published, and a source for every setting."""

import dataclasses
import json

import pytest

from fastvtp.errors import ConfigError
from fastvtp.systems.recipes import describe_recipe, get_recipe, recipe_summaries, recipes
from fastvtp.training.config import find_task
from fastvtp.training.published import ORIGINS, Published, published_of, sourced_settings

FOLLOWING = sorted(name for name, recipe in recipes().items() if published_of(recipe) is not None)
AT_RANDOM = ("videomae_pretrain", "videoprism_stage1", "videoprism_captioning")  # the last is told its backbone
STARTED = [name for name in FOLLOWING if not name.startswith(AT_RANDOM)]
# name -> clips a step, clips of the whole training in millions, peak rate: worked out from the released scripts (rate
# for 256 x videos a step / 256) and the papers
SCHEDULES = {
    "videomae_pretrain_small": (1024, 1600 * 0.24, 6e-4),
    "videomae_pretrain_base": (2048, 1600 * 0.24, 1.2e-3),
    "videomae_pretrain_large": (512, 1600 * 0.24, 3e-4),
    "videomae_pretrain_huge": (1024, 1600 * 0.24, 6e-4),
    "videomae_pretrain_ssv2": (2048, 2400 * 0.168913, 1.2e-3),
    "videomae_pretrain_ssv2_small": (1024, 2400 * 0.168913, 6e-4),
    "videomae_pretrain_ucf101": (192, 3200 * 0.009537, 2.25e-4),
    "classification_finetune_small": (768, 150 * 0.48, 7.5e-4),
    "classification_finetune": (768, 75 * 0.48, 7.5e-4),
    "classification_finetune_large": (256, 35 * 0.48, 1e-3),
    "classification_finetune_huge": (1024, 50 * 0.48, 2e-3),
    "classification_finetune_ssv2": (768, 30 * 0.337826, 7.5e-4),
    "classification_finetune_ssv2_small": (768, 40 * 0.337826, 1.5e-3),
    "classification_finetune_ucf101": (256, 100 * 0.019074, 2.5e-4),
    "simvtp_base": (1024, 200 * 2.49, 6e-4),
    "retrieval_finetune": (64, 0.9, 7.5e-5),
    "qa_finetune": (192, 1.58581, 5e-5),
    "alpro_prompter": (256, 55.0, 1e-4),
    "alpro_pretrain": (256, 55.0, 1e-4),
    "alpro_msrvtt_retrieval": (64, 0.701, 2.5e-5),
    "alpro_didemo_retrieval": (96, 0.08395, 4e-5),
    "alpro_msrvtt_qa": (192, 1.58581, 5e-5),
    "alpro_msvd_qa": (192, 0.463995, 5e-5),
    "videoprism_stage1": (4096, 819.2, 5e-4),
    "videoprism_stage2": (4096, 1228.8, 5e-4),
    "videoprism_video_text": (4096, 819.2, 5e-4),
    "videoprism_classification": (256, 150 * 0.235693, 1e-4),
    "videoprism_classification_ssv2": (256, 50 * 0.168913, 1e-4),
    "videoprism_captioning": (256, 51.2, 5e-4),
}
WARMUP_SHARES = {"simvtp_base": 0.2, "videomae_pretrain_base": 0.025, "classification_finetune_large": 1 / 7}


def settings_of(name, preset):
    """The settings of a recipe, with their sources."""
    published = published_of(recipes()[name])
    return sourced_settings(get_recipe(name, preset), get_recipe(name, "official"), published, name)


@pytest.mark.parametrize("preset", ["official", "fastvtp"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_recipe_has_the_published_schedule(name, preset):
    config = get_recipe(name, preset)
    clips_a_step, millions, rate = SCHEDULES[name]
    published = published_of(recipes()[name])
    assert published is not None
    assert config.batch_size == clips_a_step == published.batch
    assert config.steps * clips_a_step == pytest.approx(millions * 1e6, rel=0.02)  # the last batch of an epoch is lost
    assert config.steps * clips_a_step == pytest.approx(published.clips, rel=1e-3)
    assert config.optimizer.learning_rate == pytest.approx(rate)
    if name in WARMUP_SHARES:
        assert config.optimizer.warmup_share == pytest.approx(WARMUP_SHARES[name])


# clips at a time, and among how many a clip is contrasted and matched, as the scripts of the releases have it
COMPARED = {
    ("simvtp_base", "official"): (16, 16, 16),  # on 64 GPUs
    ("simvtp_base", "fastvtp"): (64, 1024, 1024),
    ("retrieval_finetune", "official"): (8, 8, None),  # 8 GPUs, whose features are not gathered
    ("retrieval_finetune", "fastvtp"): (64, 64, None),
    ("alpro_prompter", "official"): (128, 128, None),  # 8 GPUs of 16, twice
    ("alpro_prompter", "fastvtp"): (64, 256, None),
    ("alpro_pretrain", "official"): (16, 256, 16),
    ("alpro_pretrain", "fastvtp"): (64, 256, 64),
    ("alpro_msrvtt_retrieval", "official"): (8, 64, 8),
    ("alpro_msrvtt_retrieval", "fastvtp"): (64, 64, 64),
    ("alpro_didemo_retrieval", "official"): (12, 96, 12),
    ("alpro_didemo_retrieval", "fastvtp"): (96, 96, 96),
    ("videoprism_stage1", "official"): (64, 4096, None),
    ("videoprism_video_text", "fastvtp"): (64, 4096, None),
}


@pytest.mark.parametrize(("name", "preset"), COMPARED)
def test_a_recipe_compares_the_published_clips(name, preset):
    config = get_recipe(name, preset)
    at_a_time, contrasted, matched = COMPARED[name, preset]
    assert config.clips_at_a_time == at_a_time
    clips = {"global": config.batch_size, "micro_batch": at_a_time}
    contrast, matching = config.scopes
    assert clips[contrast] == contrasted
    assert find_task(config.task).matches == (matched is not None)
    assert matched in (None, clips[matching])


def test_large_and_huge_models_are_the_released_ones():
    large, huge = (get_recipe(f"videomae_pretrain_{size}").model for size in ("large", "huge"))
    sizes = ("width", "depth", "num_heads", "decoder_width", "decoder_depth", "decoder_num_heads")
    assert [getattr(large, size) for size in sizes] == [1024, 24, 16, 512, 12, 8]
    assert [getattr(huge, size) for size in sizes] == [1280, 32, 16, 640, 12, 8]
    tuned = get_recipe("classification_finetune_huge").model
    assert [tuned.width, tuned.depth, tuned.num_heads, tuned.head_dropout, tuned.drop_path] == [1280, 32, 16, 0.5, 0.2]


def test_the_third_run_of_videoprism_trains_under_the_second_stage():
    first, third = get_recipe("videoprism_stage1"), get_recipe("videoprism_video_text")
    assert (third.init, third.options.video_init) == (first.output_dir, get_recipe("videoprism_stage2").output_dir)
    assert third.model.frozen_video
    assert not first.model.frozen_video
    assert third.model.grid == get_recipe("videoprism_stage2").model.grid


@pytest.mark.parametrize("name", STARTED)
def test_what_does_not_begin_at_random_names_its_weights(name):
    assert describe_recipe(name)["starts_from"], name


@pytest.mark.parametrize("preset", ["official", "fastvtp"])
@pytest.mark.parametrize("name", recipes())
def test_every_setting_has_a_source(name, preset):
    rows = settings_of(name, preset)
    assert {row.source.partition(":")[0] for row in rows} <= set(ORIGINS)
    config = get_recipe(name, preset)
    found = {row.name: row.value for row in rows}
    assert found["optimizer.learning_rate"] == config.optimizer.learning_rate
    assert found["data.flip"] == config.data.reading.flip
    assert (published_of(recipes()[name]) is not None) == any(not row.source.startswith("ours") for row in rows)


def test_a_departure_of_the_preset_is_ours():
    rows = {row.name: row.source for row in settings_of("simvtp_base", "fastvtp")}
    assert rows["model.matching_negatives"] == "ours: the preset official has random"
    assert rows["model.text_mask_ratio"] == "release"
    official = {row.name: row.source for row in settings_of("simvtp_base", "official")}
    assert official["model.matching_negatives"] == "release"


def test_a_source_of_no_setting_is_refused():
    published = Published(data="nothing", batch=1, clips=1, settings={"model.": "paper", "data.flipp": "release"})
    config = get_recipe("simvtp_tiny")
    with pytest.raises(ConfigError, match=r"simvtp_tiny says where data\.flipp comes from and has no such setting"):
        sourced_settings(config, config, published, "simvtp_tiny")


def test_a_source_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="must begin with one of paper, release, ours, got 'blog'"):
        Published(data="nothing", batch=1, clips=1, settings={"model.": "blog"})


def test_descriptions_are_json():
    assert json.loads(json.dumps(describe_recipe("simvtp_base")))["clips"] == get_recipe("simvtp_base").steps * 1024
    summaries = recipe_summaries()
    assert [summary["name"] for summary in summaries] == list(recipes())
    for summary in summaries:
        assert summary["clips"] == summary["steps"] * summary["clips_a_step"]
        assert summary["what"]
    assert dataclasses.is_dataclass(Published)
