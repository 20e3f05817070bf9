"""Settings of ALPRO's recipes that do not fit, and what the published ones ask for."""

import pytest

from fastvtp.errors import ConfigError, UserError
from fastvtp.systems.recipes import recipe_config
from fastvtp.training.config import apply_overrides
from fastvtp.training.loop import train
from tests.data.clips import write_lines
from tests.systems.alpro.test_training import configure


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("alpro_pretrain_tiny", [], "pretrain_alpro needs prompter=PATH"),
        ("alpro_pretrain_tiny", ["prompter=somewhere"], "pretrain_alpro needs entities=PATH"),
        ("alpro_pretrain_tiny", ["prompter=somewhere", "entities=absent.txt"], r"absent.txt: no such file"),
        (
            "alpro_pretrain_tiny",
            ["model.max_text_length=14"],
            "model.max_text_length must be at least 15, the tokens of",
        ),
        ("alpro_pretrain_tiny", ["data.images=absent.jsonl"], r"absent.jsonl: no such file"),
        ("alpro_pretrain_tiny", ["data.image_share=1"], r"image_share must be in \(0, 1\), got 1"),
        ("alpro_pretrain_tiny", ["data.image_frames=two"], "data.image_frames must be 'one' or 'repeat', got 'two'"),
        ("alpro_prompter_tiny", ["entities=list.txt"], "entities is for pretrain_alpro, the task is pretrain_prompter"),
        ("alpro_retrieval_tiny", ["data.images=x.jsonl"], "data.images is for pretrain_alpro and pretrain_prompter"),
        ("alpro_retrieval_tiny", ["batch_size=1"], "batch_size must be at least 2"),
        ("alpro_retrieval_tiny", ["data.max_text_length=2"], "max_text_length must be at least 3, or none, got 2"),
        ("alpro_qa_tiny", ["model.num_answers=3"], "model.num_answers follows from the labels"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(captioned_videos, tmp_path, recipe, settings, message):
    with pytest.raises((UserError, FileNotFoundError), match=message):
        train(configure(recipe, captioned_videos / "train.jsonl", tmp_path / "run", *settings), progress_bar=False)
    assert not (tmp_path / "run").exists()


def test_a_span_among_pictures_is_one_line(captioned_videos, tmp_path):
    pictures = write_lines(tmp_path / "images.jsonl", {"video": "a.gif", "end": 2, "caption": "a red square"})
    config = configure("alpro_prompter_tiny", captioned_videos / "train.jsonl", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data.images=.*: expected pictures, got a span: .*a.gif 0-2 s"):
        train(apply_overrides(config, [f"data.images={pictures}"]), progress_bar=False)


def test_published_recipes_start_from_weights_or_say_so(captioned_videos):
    data = f"data.train={captioned_videos / 'train.jsonl'}"
    for recipe, source in (
        ("alpro_prompter", "init=models/vit_base"), ("alpro_pretrain", "init=models/vit_base"),
        ("alpro_msrvtt_retrieval", "init=runs/alpro_pretrain"), ("alpro_didemo_retrieval", "init=runs/alpro_pretrain"),
        ("alpro_msrvtt_qa", "init=runs/alpro_pretrain"), ("alpro_msvd_qa", "init=runs/alpro_pretrain"),
    ):  # fmt: skip
        with pytest.raises(
            ConfigError, match=f"{source} does not exist; give a checkpoint file or folder, or init=none"
        ):
            recipe_config(recipe, "official", [data])
    settings = [data, "init=none"]
    for setting, what in (
        ("text_init", "a checkpoint file or folder"), ("prompter", "a checkpoint file or folder"),
        ("entities", "a list from `fastvtp entities`"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{setting}=.* does not exist; give {what}, or {setting}=none"):
            recipe_config("alpro_pretrain", "official", settings)
        settings.append(f"{setting}=none")
    for preset, patches, frames in (("official", "black", "repeat"), ("fastvtp", "grey", "one")):
        config = recipe_config("alpro_pretrain", preset, settings)
        assert (config.model.hidden_patches, config.data.image_frames) == (patches, frames)
