"""Released VideoMAE and VideoMAE V2 of every size: as many heads as released, and the released forward pass."""

import json
import logging
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fastvtp
from fastvtp.checkpoints.loading import load_checkpoint
from fastvtp.checkpoints.sizes import config_of_checkpoint
from fastvtp.errors import CheckpointError
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.conversion import convert
from fastvtp.systems.videomae import weights as videomae
from tests.checkpoints.released import (
    V1,
    V2,
    classifier_shapes,
    encoder_shapes,
    on_meta,
    pretraining_shapes,
    random_weights,
)
from tests.parity import replica

SIZES = [*((f"V1 {name}", size) for name, size in V1.items()), *((f"V2 {name}", size) for name, size in V2.items())]


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_heads_of_every_released_size(name, size):
    tuned = config_of_checkpoint(on_meta(classifier_shapes(size, 710)))
    assert (tuned.num_heads, tuned.width, tuned.depth, tuned.num_classes) == (
        size["heads"], size["dim"], size["depth"], 710,
    )  # fmt: skip
    pretrained = config_of_checkpoint(on_meta(pretraining_shapes(size)))
    assert (pretrained.num_heads, pretrained.decoder_num_heads) == (size["heads"], size["dheads"])
    assert (pretrained.decoder_width, pretrained.decoder_depth) == (size["ddim"], 4)
    patch = size.get("patch", 16)
    assert pretrained.tubelet == (2, patch, patch)
    assert pretrained.grid == (8, 224 // patch, 224 // patch)
    for width in (size["dim"], size["ddim"]):
        assert int(width * pretrained.mlp_ratio) == int(width * size.get("mlp", 4))


@pytest.mark.parametrize("width", [1280, 1408, 768, 64])
def test_other_sizes_demand_their_heads_by_name(width):
    """Nothing is guessed, not even where heads of the usual 64 would divide the width."""
    size = {"dim": width, "depth": 2, "ddim": 128}
    weights = on_meta(pretraining_shapes(size))
    with pytest.raises(CheckpointError, match=r"num_heads=\.\.\. .*decoder_num_heads=\.\.\.") as raised:
        config_of_checkpoint(weights)
    assert "\n" not in str(raised.value)
    with pytest.raises(CheckpointError, match="give decoder_num_heads=") as raised:
        config_of_checkpoint(weights, num_heads=16)
    assert " num_heads" not in str(raised.value)
    found = config_of_checkpoint(weights, num_heads=16, decoder_num_heads=2)
    assert (found.num_heads, found.decoder_num_heads) == (16, 2)


def _shrunk(monkeypatch, size, depth):
    """The released size with fewer layers, which the table is taught."""
    whole, shrunk = (size["dim"], size["depth"]), (size["dim"], depth)
    monkeypatch.setitem(videomae.ENCODERS, shrunk, videomae.ENCODERS[whole])
    monkeypatch.setitem(videomae.DECODERS, (*shrunk, size["ddim"]), videomae.DECODERS[(*whole, size["ddim"])])
    return size | {"depth": depth}


def _clip(size, frames=4, cells=2):
    side = cells * size.get("patch", 16)
    generator = torch.Generator().manual_seed(7)
    video = torch.randint(0, 256, (2, frames, side, side, 3), dtype=torch.uint8, generator=generator)
    pixels = video.permute(0, 4, 1, 2, 3).double() / 255
    return video, (pixels - replica.MEAN) / replica.STD


CASES = [
    ("ViT-H", V1["H"], 1, {"model": None}, torch.float32, False),
    ("V2 ViT-g", V2["g"], 1, {"module": None}, torch.float16, False),
    ("V2 ViT-S with layer scales", V2["S"], 3, {"model": None}, torch.float32, True),
]


@pytest.mark.parametrize(("name", "size", "depth", "wrapper", "dtype", "scaled"), CASES)
def test_a_converted_classifier_computes_the_released_logits(
    monkeypatch, tmp_path, name, size, depth, wrapper, dtype, scaled
):
    size = _shrunk(monkeypatch, size, depth)
    weights = {n: w.to(dtype) for n, w in random_weights(classifier_shapes(size, 11, scaled=scaled), 3).items()}
    torch.save(dict.fromkeys(wrapper, weights) | {"epoch": 1}, tmp_path / "tuned.pth")
    side = 2 * size.get("patch", 16)
    done = convert(
        tmp_path / "tuned.pth", tmp_path / "out", overrides=["num_frames=4", f"image_size={side}", "positions=rebuild"]
    )
    assert done.heads["num_heads"].startswith("16" if "S" not in name else "6")
    video, pixels = _clip(size)
    exact = {n: w.double() for n, w in weights.items()}
    embedded = replica.patches(exact, "", pixels)
    features = replica.tower(exact, size, "", embedded + replica.positions(*embedded.shape[1:]))
    expected = replica.linear(exact, "head", features)
    wrong = replica.tower(
        exact, size | {"heads": size["heads"] // 2}, "", embedded + replica.positions(*embedded.shape[1:])
    )
    with torch.no_grad():
        found = fastvtp.load_pretrained(tmp_path / "out")(video)
    assert (found - expected).abs().max() <= 1e-5
    assert (replica.linear(exact, "head", wrong) - expected).abs().max() > 1e-2  # heads matter here


@pytest.mark.parametrize(("name", "size", "depth", "wrapper", "dtype", "scaled"), CASES)
def test_a_converted_pretrained_model_predicts_the_released_pixels(
    monkeypatch, tmp_path, name, size, depth, wrapper, dtype, scaled
):
    size = _shrunk(monkeypatch, size, depth)
    weights = {n: w.to(dtype) for n, w in random_weights(pretraining_shapes(size, 2, scaled=scaled), 5).items()}
    torch.save(dict.fromkeys(wrapper, weights), tmp_path / "pretrained.pth")
    side = 2 * size.get("patch", 16)
    overrides = ["num_frames=4", f"image_size={side}", "video_mask_ratio=0.5", "positions=rebuild"]
    done = convert(tmp_path / "pretrained.pth", tmp_path / "out", overrides=overrides)
    assert set(done.heads) == {"num_heads", "decoder_num_heads"}
    model = fastvtp.load_pretrained(tmp_path / "out")
    video, pixels = _clip(size)
    plan = model.plan(torch.tensor([3, 8]), seed=1, step=2)
    mask = torch.ones(2, 8, dtype=torch.bool).scatter(1, plan.visible.long(), False)
    exact = {n: w.double() for n, w in weights.items()}
    embedded = replica.patches(exact, "encoder.", pixels)
    visible = (embedded + replica.positions(*embedded.shape[1:]))[~mask].view(2, -1, size["dim"])
    expected = replica.decode(exact, size, replica.encoder(exact, size, visible), mask)["decoder_pred"]
    with torch.no_grad():
        found = model(video, plan).pixel_prediction
    assert (found - expected).abs().max() <= 1e-5


def test_the_folder_says_where_heads_came_from(monkeypatch, tmp_path):
    monkeypatch.setitem(videomae.ENCODERS, (80, 1), (16, "VideoMAE ViT-H"))
    size = {"dim": 80, "depth": 1, "patch": 8}
    torch.save(random_weights(classifier_shapes(size, 3), 1), tmp_path / "tuned.pth")
    done = convert(tmp_path / "tuned.pth", tmp_path / "table")
    assert done.heads == {"num_heads": "16: released size VideoMAE ViT-H"}
    description = json.loads((tmp_path / "table/config.json").read_text())
    assert description["heads"] == done.heads
    done = convert(tmp_path / "tuned.pth", tmp_path / "given", overrides=["num_heads=20"])
    assert done.heads == {"num_heads": "20: given, 16: released size VideoMAE ViT-H"}
    assert fastvtp.load_pretrained(tmp_path / "given").config.num_heads == 20
    again = convert(tmp_path / "given", tmp_path / "again")
    assert again.heads == {"num_heads": "20: config.json"}
    assert convert(tmp_path / "given", tmp_path / "other", overrides=["num_heads=10"]).heads == {
        "num_heads": "10: given, 20: config.json"
    }


def hub_folder(folder, **changes):
    """A folder of VideoMAE V2 as the Hugging Face Hub has it: an encoder under "model.", sizes in "model_config"."""
    size = {"dim": 80, "depth": 2, "heads": 5, "patch": 8}
    shapes = encoder_shapes(size) | {"fc_norm.weight": (80,), "fc_norm.bias": (80,)}
    weights = random_weights(shapes, 9)
    folder.mkdir()
    save_file({f"model.{name}": weight for name, weight in weights.items()}, folder / "model.safetensors")
    stated = {
        "img_size": 16, "patch_size": 8, "embed_dim": 80, "depth": 2, "num_heads": 5, "num_frames": 4,
        "layer_norm_eps": 1e-6, "cos_attn": False, "use_learnable_pos_emb": False, "use_mean_pooling": True,
    }  # fmt: skip
    description = {"model_type": "VideoMAEv2_Base", "model_config": stated | changes}
    (folder / "config.json").write_text(json.dumps(description))
    return size, {name: weight.double() for name, weight in weights.items()}


def test_an_encoder_of_v2_from_the_hub_computes_the_released_features(tmp_path, caplog):
    size, exact = hub_folder(tmp_path / "hub")
    caplog.set_level(logging.INFO)
    model = fastvtp.load_pretrained(tmp_path / "hub")
    assert (model.config.num_heads, model.config.image_size, model.config.num_frames) == (5, 16, 4)
    assert "num_heads 5: config.json" in caplog.text
    assert "begin at random: head" in caplog.text
    video, pixels = _clip(size)
    embedded = replica.patches(exact, "", pixels)
    expected = replica.tower(exact, size, "", embedded + replica.positions(*embedded.shape[1:]))
    with torch.no_grad():
        assert (model.features(video) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cos_attn": True}, "cosine attention"),
        ({"use_learnable_pos_emb": True}, "positions"),
        ({"use_mean_pooling": False}, "first token"),
    ],
)
def test_what_no_model_here_computes_is_refused(tmp_path, changes, problem):
    hub_folder(tmp_path / "hub", **changes)
    with pytest.raises(CheckpointError, match=problem):
        fastvtp.load_pretrained(tmp_path / "hub")


@pytest.mark.parametrize(
    ("extra", "problem"), [("blocks.0.attn.scale", "cosine attention"), ("pos_embed", "learned positions")]
)
@pytest.mark.parametrize(("shapes", "prefix"), [(classifier_shapes, ""), (pretraining_shapes, "encoder.")])
def test_entries_that_no_model_here_has_are_named(extra, problem, shapes, prefix):
    size = {"dim": 32, "depth": 1, "ddim": 16, "patch": 8}
    weights = random_weights(shapes(size), 1) | {f"{prefix}{extra}": torch.ones(2, 1, 1)}
    heads: dict[str, Any] = {"num_heads": 2} | ({"decoder_num_heads": 2} if prefix else {})
    model = build_model(config_of_checkpoint(weights, **heads))
    with pytest.raises(CheckpointError, match=problem):
        load_checkpoint(model, weights)
