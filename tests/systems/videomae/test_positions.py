"""Models of tubelets at other frames and image sizes than those of their training: what they see stays alike, their
folders keep the size of the training, and what is done is said.

The models are random, their queries and keys three times as large, so that attention goes by content and by position
much rather than evenly.
"""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate, layer_norm

import fastvtp
from fastvtp.architecture import build_model
from fastvtp.checkpoints.loading import load_checkpoint
from fastvtp.checkpoints.sizes import config_of_checkpoint
from fastvtp.errors import CheckpointError
from fastvtp.frozen.features import model_digest
from fastvtp.frozen.towers import video_tower
from fastvtp.model_folder import open_model, write_model_folder
from fastvtp.modules.positions import grid_positions, sincos_positions
from fastvtp.systems.conversion import convert
from fastvtp.systems.recipes import get_recipe
from fastvtp.systems.videomae.classifier import VideoClassifierConfig
from fastvtp.systems.videomae.model import VideoMAEConfig
from fastvtp.training.config import apply_overrides
from fastvtp.training.loop import train
from tests.checkpoints.names import hugging_face, official, tiny_model
from tests.training.labelled import DECODER, classes, settings

WIDTH = 64
SIZES: dict[str, Any] = {
    "num_frames": 16, "image_size": 224, "tubelet": (2, 28, 28), "width": WIDTH, "depth": 2, "num_heads": 2,
    "positions": "interpolate",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a model that was trained at 16 frames of 224 pixels, 8 x 8 x 8 tubelets."""
    torch.manual_seed(0)
    model = build_model(VideoClassifierConfig(**SIZES, num_classes=3))
    for block in model.encoder.blocks:
        block.attn.qkv.weight.data[: 2 * WIDTH] *= 3
    folder = tmp_path_factory.mktemp("trained") / "model"
    write_model_folder(folder, model, "video_classifier")
    return folder


@pytest.fixture(scope="module")
def clips() -> Tensor:
    """A smooth random clip, uint8 [1, 16, 224, 224, 3]."""
    coarse = torch.rand(1, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    smooth = interpolate(coarse, size=(16, 224, 224), mode="trilinear")
    return (smooth * 255).byte().permute(0, 2, 3, 4, 1).contiguous()


@torch.no_grad()
def tokens_of(model: Any, video: Tensor) -> Tensor:
    """Encoded tokens [B, T, H, W, D], each normalised."""
    tower = video_tower(model)
    tokens = tower.encode_layers(video, pool="none")[:, -1]
    return layer_norm(tokens, tokens.shape[-1:]).unflatten(1, tower.grid)


def likeness(one: Tensor, other: Tensor) -> float:
    """The mean cosine of tokens, less what all tokens have in common."""
    common = one.flatten(0, -2).mean(0)
    return cosine_similarity(one - common, other - common, dim=-1).mean().item()


def cells(tokens: Tensor, *sizes: int) -> Tensor:
    """Means over cells of so many tokens along time, height and width."""
    for axis, size in enumerate(sizes, 1):
        tokens = tokens.unflatten(axis, (-1, size)).mean(axis + 1)
    return tokens


def resized(video: Tensor, size: int) -> Tensor:
    frames = video.permute(0, 1, 4, 2, 3).flatten(0, 1).float()
    frames = interpolate(frames, size=(size, size), mode="nearest" if size > video.shape[2] else "area")
    return frames.round().byte().unflatten(0, video.shape[:2]).permute(0, 1, 3, 4, 2).contiguous()


# other sizes, how the clip comes to them, numbers of the training's tokens and of theirs that show the same, and the
# least likeness with the training's, of tokens and of pooled features. Measured over three seeds, the least: tokens
# 0.955, 0.839, 0.945, 0.932, pooled 0.991, 0.959, 0.993, 0.984; the most of rebuilt ones: 0.608, 0.596, 0.699, 0.723,
# pooled 0.764, 0.773, 0.926, 0.929.
CASES = [
    ({"image_size": 448}, lambda clip: resized(clip, 448), (1, 1, 1), (1, 2, 2), 0.93, 0.98),
    ({"image_size": 112}, lambda clip: resized(clip, 112), (1, 2, 2), (1, 1, 1), 0.80, 0.93),
    ({"num_frames": 32}, lambda clip: clip.repeat_interleave(2, 1), (1, 1, 1), (2, 1, 1), 0.92, 0.98),
    ({"num_frames": 8}, lambda clip: clip[:, ::2].contiguous(), (2, 1, 1), (1, 1, 1), 0.90, 0.96),
]


@pytest.mark.parametrize(("sizes", "change", "own", "theirs", "least", "least_pooled"), CASES)
def test_what_a_model_sees_stays_alike_at_another_size(trained, clips, sizes, change, own, theirs, least, least_pooled):
    expected = tokens_of(fastvtp.load_pretrained(trained), clips)
    found, pooled = {}, {}
    for way in ("interpolate", "rebuild"):
        seen = tokens_of(fastvtp.load_pretrained(trained, positions=way, **sizes), change(clips))
        found[way] = likeness(cells(expected, *own), cells(seen, *theirs))
        pooled[way] = cosine_similarity(expected.mean((1, 2, 3)), seen.mean((1, 2, 3))).item()
    assert found["interpolate"] > least
    assert pooled["interpolate"] > least_pooled
    # a rebuilt table hands a token the position that the training gave to another: row 1 begins where row 2 did
    assert found["rebuild"] < least - 0.1
    assert pooled["rebuild"] < least_pooled


def table(model: Any) -> Tensor:
    return model.video_embeddings.positions


TUBELETS = {"num_frames": 4, "image_size": 24, "tubelet": (2, 8, 8), "positions": "interpolate"}
CONFIGS = ("videomae", "video_classifier", "simvtp", "dual_encoder", "video_qa")


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_folder_keeps_the_size_of_the_training(tmp_path, caplog, architecture):
    """Opened at another size, saved, opened again, and brought back to the first one."""
    model = tiny_model(architecture, **TUBELETS)
    write_model_folder(tmp_path / "first", model, architecture)
    assert fastvtp.load_pretrained(tmp_path / "first").config == model.config
    assert not caplog.records
    other = fastvtp.load_pretrained(tmp_path / "first", num_frames=10, image_size=56)
    line = "positions of 5 x 7 x 7 tokens: interpolated from those of the training, 2 x 3 x 3 (linear, bicubic)"
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path / 'first'}: {line}"]
    assert torch.equal(table(other), grid_positions((5, 7, 7), 32, (2, 3, 3)))
    if hasattr(other, "decoder"):
        assert torch.equal(other.decoder.positions, grid_positions((5, 7, 7), 16, (2, 3, 3)))

    write_model_folder(tmp_path / "second", other, architecture)
    stated = json.loads((tmp_path / "second/config.json").read_text())["config"]
    assert (stated["positions"], stated["trained_frames"], stated["trained_image_size"]) == ("interpolate", 4, 24)
    again = fastvtp.load_pretrained(tmp_path / "second")
    assert again.config == other.config
    assert torch.equal(table(again), table(other))
    back = fastvtp.load_pretrained(tmp_path / "second", num_frames=4, image_size=24)
    assert torch.equal(table(back), sincos_positions(2 * 3 * 3, 32))
    third = fastvtp.load_pretrained(tmp_path / "second", num_frames=2)
    assert torch.equal(table(third), grid_positions((1, 7, 7), 32, (2, 3, 3)))


def test_as_released_the_table_is_rebuilt_which_is_said(tmp_path, caplog):
    write_model_folder(tmp_path, tiny_model("videomae", **TUBELETS), "videomae")
    model = open_model(tmp_path, torch.device("cpu"), image_size=40, positions="rebuild").model
    assert torch.equal(table(model), sincos_positions(2 * 5 * 5, 32))
    assert torch.equal(model.decoder.positions, sincos_positions(2 * 5 * 5, 16))
    assert "positions of 2 x 5 x 5 tokens: rebuilt, and not those of the training, 2 x 3 x 3" in caplog.text
    assert (model.config.trained_frames, model.config.trained_image_size) == (None, 24)


def test_presets_differ():
    for name in ("videomae_tiny", "simvtp_tiny"):
        assert fastvtp.create_model(name).config.positions == "interpolate"
        assert fastvtp.create_model(name, preset="official").config.positions == "rebuild"
    for recipe in ("simvtp_base", "videomae_pretrain_base", "retrieval_finetune", "qa_finetune"):
        assert get_recipe(recipe).model.positions == "interpolate"
        assert get_recipe(recipe, "official").model.positions == "rebuild"


def test_folders_of_earlier_versions_are_interpolated(tmp_path):
    write_model_folder(tmp_path, tiny_model("videomae", **TUBELETS), "videomae")
    description = json.loads((tmp_path / "config.json").read_text())
    for name in ("positions", "trained_frames", "trained_image_size"):
        del description["config"][name]
    (tmp_path / "config.json").write_text(json.dumps(description))
    model = fastvtp.load_pretrained(tmp_path, num_frames=8)
    assert torch.equal(table(model), grid_positions((4, 3, 3), 32, (2, 3, 3)))


# --- Checkpoints of others


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    """A slim ViT-S under the authors' names."""
    sizes = {"num_frames": 2, "image_size": 16, "tubelet": (2, 16, 16)}
    slim = {"width": 384, "depth": 12, "num_heads": 6, "mlp_ratio": 0.05}
    return official("video_classifier", tiny_model("video_classifier", **slim, **sizes).state_dict())


def test_a_released_size_was_trained_at_16_frames_of_224_pixels(released, tmp_path, caplog):
    torch.save(released, tmp_path / "released.pth")
    convert(tmp_path / "released.pth", tmp_path / "own", overrides=["num_heads=6"])
    assert not caplog.records
    model = fastvtp.load_pretrained(tmp_path / "own")
    assert torch.equal(table(model), sincos_positions(8 * 14 * 14, 384))
    done = convert(tmp_path / "released.pth", tmp_path / "out", overrides=["num_heads=6", "num_frames=6"])
    line = "positions of 3 x 14 x 14 tokens: interpolated from those of the training, 8 x 14 x 14 (linear, bicubic)"
    assert done.report.resized == (line,)
    assert caplog.text.count(line) == 1
    model = fastvtp.load_pretrained(tmp_path / "out")
    assert (model.config.trained_frames, model.config.trained_image_size) == (16, 224)
    assert torch.equal(table(model), grid_positions((3, 14, 14), 384, (8, 14, 14)))
    # a model whose configuration was made otherwise is brought there, too
    config = replace(model.config, trained_frames=None, trained_image_size=None, image_size=80)
    for way, expected in (
        ("interpolate", grid_positions((3, 5, 5), 384, (8, 14, 14))),
        ("rebuild", sincos_positions(3 * 5 * 5, 384)),
    ):
        model = build_model(replace(config, positions=way))
        load_checkpoint(model, released)
        assert torch.equal(table(model), expected)
        assert (model.config.trained_frames, model.config.trained_image_size) == (16, 224)


def test_a_user_may_know_better(released, caplog):
    model = build_model(config_of_checkpoint(released, num_heads=6, num_frames=6, trained_frames=4))
    load_checkpoint(model, released)
    assert torch.equal(table(model), grid_positions((3, 14, 14), 384, (2, 14, 14)))
    assert "trained_frames 4 is kept, the checkpoint has 16" in caplog.text


def test_a_checkpoint_of_no_released_size_counts_as_trained_at_the_models(caplog):
    source = official("videomae", tiny_model("videomae").state_dict())
    model = tiny_model("videomae", 1, num_frames=6, image_size=40, positions="interpolate")
    with caplog.at_level(logging.INFO):
        load_checkpoint(model, source)
    assert torch.equal(table(model), sincos_positions(3 * 5 * 5, 32))
    assert "taken as trained at the model's 6 frames of 40 pixels" in caplog.text


def test_transformers_state_the_size_of_the_training(tmp_path):
    source = hugging_face("videomae", tiny_model("videomae", layer_scale=0.0).state_dict())
    save_file({name: tensor.contiguous() for name, tensor in source.items()}, tmp_path / "model.safetensors")
    stated = {"num_frames": 4, "image_size": 16, "num_attention_heads": 2, "decoder_num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    config = config_of_checkpoint(tmp_path, num_frames=10, image_size=24, video_mask_ratio=0.75)
    assert (config.positions, config.trained_frames, config.trained_image_size) == ("interpolate", 4, 16)
    model = build_model(config)
    load_checkpoint(model, tmp_path)
    assert torch.equal(table(model), grid_positions((5, 3, 3), 32, (2, 2, 2)))
    assert torch.equal(model.decoder.positions, grid_positions((5, 3, 3), 16, (2, 2, 2)))


# --- Runs, features, settings


@pytest.fixture(scope="module")
def pretrained(captioned_videos, tmp_path_factory) -> Path:
    """A run at 4 frames of 32 pixels, 2 x 4 x 4 tubelets."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    overrides = settings(captioned_videos / "train.jsonl", folder, *DECODER, "steps=1")
    train(apply_overrides(get_recipe("videomae_pretrain_tiny"), overrides), progress_bar=False)
    return folder


@pytest.mark.parametrize("preset", ["fastvtp", "official"])
def test_a_run_from_weights_of_another_size_keeps_that_size(captioned_videos, pretrained, tmp_path, caplog, preset):
    overrides = settings(
        classes(captioned_videos, "train"), tmp_path / "run", "model.image_size=48", "model.num_frames=6", "steps=2",
        "checkpoint_every=1", f"init={pretrained}",
    )  # fmt: skip
    config = apply_overrides(get_recipe("classification_finetune_tiny", preset), overrides)
    model = train(config, progress_bar=False).model
    expected = grid_positions((3, 6, 6), 32, (2, 4, 4)), sincos_positions(3 * 6 * 6, 32)
    assert torch.equal(table(model), expected[preset == "official"])
    said = "interpolated from those of the training, 2 x 4 x 4", "rebuilt, and not those of the training, 2 x 4 x 4"
    assert caplog.text.count(said[preset == "official"]) == 1
    # rebuilt positions are those that the run teaches its weights
    native = (None, None) if preset == "official" else (4, 32)
    assert (model.config.trained_frames, model.config.trained_image_size) == native
    (tmp_path / "run/checkpoints/step_00000002/manifest.json").unlink()
    resumed = train(config, resume=True, progress_bar=False)
    assert torch.equal(table(resumed.model), table(model))
    assert torch.equal(resumed.model.head.weight, model.head.weight)
    assert fastvtp.load_pretrained(resumed.model_dir).config == model.config


def test_features_of_other_positions_are_of_another_model(tmp_path):
    write_model_folder(tmp_path, tiny_model("videomae", **TUBELETS), "videomae")
    own, other, rebuilt = (
        model_digest(fastvtp.load_pretrained(tmp_path, **changes))
        for changes in ({}, {"image_size": 48}, {"image_size": 48, "positions": "rebuild"})
    )
    assert own == rebuilt != other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "bicubic"}, "positions must be 'interpolate' or 'rebuild', got 'bicubic'"),
        ({"trained_frames": 3}, "trained_frames 3 is not a multiple of the tubelet's 2"),
        ({"trained_image_size": 20}, "trained_image_size 20 is not a multiple of the tubelet's 8"),
        ({"trained_frames": 0}, "trained_frames 0 is not a multiple"),
        ({"image_size": (224, 398)}, "image_size must be an integer, the side of square frames in pixels, got"),
    ],
)
def test_settings_that_cannot_be(tmp_path, changes, message):
    model = tiny_model("videomae", **TUBELETS)
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(model.config, **changes)
    write_model_folder(tmp_path, model, "videomae")
    with pytest.raises(CheckpointError, match=message):
        fastvtp.load_pretrained(tmp_path, **changes)


def test_as_many_positions_as_tubelets():
    config = VideoMAEConfig(**TUBELETS, width=32, num_heads=2, trained_frames=8)
    assert (config.grid, config.trained_grid, config.table_grid) == ((2, 3, 3), (4, 3, 3), (4, 3, 3))
    assert replace(config, positions="rebuild").table_grid == (2, 3, 3)
    assert len(table(build_model(config))) == math.prod(config.grid) == config.num_tokens
