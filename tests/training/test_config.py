import json
from typing import Any

import pytest

from fastvtp.errors import UserError
from fastvtp.settings import setting_names, to_json
from fastvtp.systems.recipes import get_recipe, recipes
from fastvtp.training.config import (
    apply_overrides,
    differing_settings,
    save_config,
)


@pytest.fixture
def config():
    return get_recipe("simvtp_tiny")


@pytest.mark.parametrize("name", recipes())
@pytest.mark.parametrize("preset", ["official", "fastvtp"])
def test_recipes_build(name, preset):
    config = get_recipe(name, preset)
    if config.task == "pretrain_simvtp":
        assert (config.model.contrastive_text == "masked") == (preset == "official")
    if config.task == "finetune_retrieval":
        assert config.model.pad_text == (preset == "official")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.flip=false", False),
        ("batch_size=32", 32),
        ("optimizer.learning_rate=3e-4", 3e-4),
        ("data.crop_scale=0.5,1", (0.5, 1.0)),
        ("data.crop_scale=[0.5, 1.0]", (0.5, 1.0)),
        ("model.tubelet=2,8,8", (2, 8, 8)),
        ("data.test=none", None),
        ("optimizer.clip_norm=1", 1.0),
        ("output_dir=7", "7"),
        ("data.train=a=b.jsonl", "a=b.jsonl"),
        ("data.crop_ratio=1,1", (1.0, 1.0)),
        ("data.augmentation.rand_augment=rand-m9-n2-inc1", "rand-m9-n2-inc1"),
        ("data.test_sampling=starts", "starts"),
        ("data.augmentation.rand_augment=none", None),
        ("data.test_views=3,3", (3, 3)),
        ("init=none", None),
        ("ema_decay=0.9", 0.9),
    ],
)
def test_overrides(config, override, value):
    name = override.partition("=")[0]
    changed: Any = to_json(apply_overrides(config, [override]))
    for part in name.split("."):
        changed = changed[part]
    changed = tuple(changed) if isinstance(changed, list) else changed
    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.flipp=false", "no setting 'data.flipp'; did you mean 'data.flip'"),
        ("flip=false", "no setting 'flip'; did you mean 'data.flip'"),
        ("learning_rat=1", "did you mean 'optimizer.learning_rate'"),
        ("batch_size=many", "batch_size expects int, got 'many'"),
        ("batch_size=0", "batch_size must be at least 1"),
        ("batch_size=1", "batch_size must be at least 2"),
        ("batch_size", "expected key=value, got 'batch_size'"),
        ("--batch-size=3", "no option --batch-size (see --help); a setting is given without dashes: batch_size=3"),
        ("data.crop_scale=1", "data.crop_scale expects"),
        ("data.crop_ratio=2,1", "data.crop_ratio must be two shapes, 0 < narrowest <= widest, got (2.0, 1.0)"),
        ("data.test_sampling=start", "data.test_sampling must be one of strided, uniform"),
        ("data.augmentation.rand_augment=2,15", "data.augmentation.rand_augment: 2,15 is now spelled as in timm"),
        ("model.image_size=33", "image_size 33 is not a multiple"),
        ("model.num_heads=5", "model.num_heads 5 does not divide the width 192"),
        ("model.vocab_size=9", "follows from the tokenizer"),
        ("optimizer.clip_norm=0", "optimizer.clip_norm must be positive"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate must be positive"),
        ("model.num_heads=0", "model.num_heads must be positive"),
        ("model.tubelet=0,16,16", "model.tubelet must be three positive sizes"),
        ("model.temperature=-1", "model.temperature must be positive"),
        ("model.text_dropout=2", "model.text_dropout must be in [0, 1)"),
        ("model.depth=-1", "model.depth must not be negative"),
        ("model.projection_dim=0", "model.projection_dim must be positive"),
        ("model.pixel_weight=nan", "model.pixel_weight must be finite"),
        ("model.video_mask_ratio=0.01", "hides none of the 6 x 6 cells"),
        ("optimizer.betas=2,2", "optimizer.betas must be in [0, 1)"),
        ("optimizer.final_learning_rate=nan", "optimizer.final_learning_rate must be finite"),
        ("seed=99999999999999999999", "seed must be from 0"),
        ("precision=fp8", "precision must be"),
        ("task=finetune_qa", "task finetune_qa trains a model of VideoQAConfig, got SimVTPConfig"),
        ("task=finetune_qas", "no task 'finetune_qas'; did you mean 'finetune_qa'"),
        ("mixup=0.8", "mixup is for finetune_classification"),
        ("ema_decay=1", "ema_decay must be in (0, 1)"),
        ("micro_batch=0", "micro_batch must be at least 1"),
        ("optimizer.layer_decay=0", "optimizer.layer_decay must be in (0, 1]"),
        ("data.augmentation.erasing=2", "data.augmentation.erasing: expected a share from 0 to 1"),
    ],
)
def test_wrong_overrides_get_one_line(config, override, message):
    with pytest.raises(UserError) as raised:
        apply_overrides(config, [override])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["qa_finetune", "classification_finetune"])
def test_sizes_of_heads_follow_from_the_labels(name):
    setting = {"qa_finetune": "model.num_answers", "classification_finetune": "model.num_classes"}[name]
    with pytest.raises(UserError, match=f"{setting} follows from the labels"):
        apply_overrides(get_recipe(name), [f"{setting}=3"])


def test_overrides_may_come_in_any_order(config):
    pair = ["model.image_size=60", "model.tubelet=2,12,12"]  # each of them alone does not fit the other's default
    assert apply_overrides(config, pair) == apply_overrides(config, pair[::-1])


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'simvtp_base'"):
        get_recipe("simvtp_bas")


def test_saved_config_shows_what_differs(config, tmp_path):
    save_config(config, tmp_path / "c.json")
    assert differing_settings(config, tmp_path / "c.json") == {}
    names = setting_names(config)
    written = json.loads((tmp_path / "c.json").read_text())
    assert list(written["data"])[:3] == ["train", "more", "shares"]
    assert {"sampling", "crop_scale", "flip", "augmentation"} < set(written["data"])
    assert {"data.sampling", "data.crop_scale", "data.flip", "data.augmentation.erasing"} < set(names)
    changed = apply_overrides(config, ["optimizer.betas=0.9,0.99", "model.depth=2"])
    differing = differing_settings(changed, tmp_path / "c.json")
    assert differing == {"model.depth": (config.model.depth, 2), "optimizer.betas": ([0.9, 0.95], [0.9, 0.99])}


def test_a_run_of_an_earlier_version_differs_in_nothing(config, tmp_path):
    """It called the framing of frames "fit"."""
    save_config(config, tmp_path / "c.json")
    text = (tmp_path / "c.json").read_text()
    (tmp_path / "c.json").write_text(text.replace('"framing"', '"fit"'))
    assert differing_settings(config, tmp_path / "c.json") == {}
    squashed = apply_overrides(config, ["data.framing=squash"])
    assert differing_settings(squashed, tmp_path / "c.json") == {"data.framing": ("crop", "squash")}


def test_every_setting_is_reachable(config):
    names = setting_names(config)
    assert {"steps", "data.train", "model.width", "optimizer.clip_norm"} <= set(names)
    assert not {"data", "model", "optimizer"} & set(names)
