"""Which way patch positions take from `init` and `prompter` to another image size is a setting of the run."""

from pathlib import Path

import pytest
import torch

from fastvtp import runs
from fastvtp.errors import ConfigError
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.loop import train

SIZES = [
    "model.width=16",
    "model.depth=1",
    "model.num_heads=2",
    "model.text_depth=1",
    "model.fusion_depth=1",
    "model.text_num_heads=2",
    "model.text_hidden=16",
    "model.projection_dim=8",
    "model.num_frames=2",
    "model.patch_size=8",
    "model.image_size=16",
    "data.vocab_size=200",
    "data.test=none",
    "data.num_workers=0",
    "device=cpu",
    "tensorboard=false",
    "batch_size=4",
    "steps=1",
    "optimizer.learning_rate=1e-30",
    "optimizer.final_learning_rate=0",
    "optimizer.weight_decay=0",
]


def configure(recipe: str, data: Path, output_dir: Path, *more: str):
    settings = [f"data.train={data}", f"output_dir={output_dir}", "init=none", *SIZES, *more]
    return apply_overrides(get_recipe(recipe), settings)


@pytest.fixture(scope="module")
def prompter(captioned_videos, tmp_path_factory) -> Path:
    """A run of 2 x 2 patches a frame."""
    folder = tmp_path_factory.mktemp("positions") / "prompter"
    train(configure("alpro_prompter_tiny", captioned_videos / "train.jsonl", folder), progress_bar=False)
    return folder


@pytest.mark.parametrize("way", ["bicubic", "official"])
def test_init_and_prompter_are_resized_as_the_run_says(captioned_videos, prompter, tmp_path, way):
    (tmp_path / "entities.txt").write_text("circle\nstar\n")
    config = configure(
        "alpro_pretrain_tiny",
        captioned_videos / "train.jsonl",
        tmp_path / "run",
        "model.image_size=24",
        f"init={prompter}",
        f"prompter={prompter}",
        f"entities={tmp_path / 'entities.txt'}",
        f"position_resize={way}",
    )
    weights = train(config, progress_bar=False).model.state_dict()
    before = runs.open_model(prompter, torch.device("cpu")).model.video_encoder.patch_positions
    nearest = before[[0, 0, 0, 1, 1, 2, 2, 3, 3]]
    for name in ("video_encoder.patch_positions", "prompter.video_encoder.patch_positions"):
        assert weights[name].shape == nearest.shape
        assert torch.equal(weights[name], nearest) == (way == "official"), name


def test_the_official_preset_resizes_as_the_release_does():
    for recipe in ("alpro_prompter", "alpro_pretrain", "alpro_msrvtt_retrieval", "alpro_msvd_qa"):
        assert get_recipe(recipe, "official").position_resize == "official"
        assert get_recipe(recipe).position_resize == "bicubic"


def test_another_way_is_one_line(captioned_videos, tmp_path):
    with pytest.raises(ConfigError, match="position_resize must be 'bicubic' or 'official', got 'bilinear'"):
        configure("alpro_prompter_tiny", captioned_videos / "train.jsonl", tmp_path, "position_resize=bilinear")
