"""Folders of transformers: saved ones always, freshly made ones where transformers is installed."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastvtp.checkpoints.loading import load_checkpoint
from fastvtp.checkpoints.sizes import config_of_checkpoint
from fastvtp.errors import CheckpointError
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.conversion import convert
from fastvtp.systems.videomae.model import VideoMAEPlan
from tests.checkpoints.make_hf_arrays import ARRAYS, write
from tests.checkpoints.names import tiny_model

TOLERANCE = 1e-5
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def check(folder) -> None:
    """The model of `folder` gives the outputs saved in it."""
    expected = load_file(folder / "expected.safetensors")
    model = build_model(config_of_checkpoint(folder)).eval()
    report = load_checkpoint(model, folder)
    assert report.fresh == ()
    with torch.no_grad():
        if "mask" not in expected:
            assert error(model(expected["video"]), expected["logits"]) <= TOLERANCE
            return
        tokens = torch.arange(expected["mask"].shape[1], dtype=torch.int32).expand_as(expected["mask"])
        plan = VideoMAEPlan(*(tokens[chosen].view(2, -1) for chosen in (~expected["mask"], expected["mask"])))
        output = model(expected["video"], plan)
    assert error(output.pixel_prediction, expected["logits"]) <= TOLERANCE
    assert error(output.loss, expected["loss"]) <= TOLERANCE


@pytest.mark.parametrize("name", ["hf_pretraining", "hf_classification"])
def test_saved_folders(name):
    check(ARRAYS / name)


@needs_transformers
@pytest.mark.parametrize("pretraining", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_norm_eps": 1e-6, "norm_pix_loss": False},
        {"use_mean_pooling": True},  # of pretraining: an encoder without its last LayerNorm
        {"qkv_bias": False, "qv_bias": False},  # called one or the other
        {"num_frames": 6, "image_size": 24, "patch_size": 8, "tubelet_size": 3, "intermediate_size": 56,
         "decoder_intermediate_size": 37},
    ],
)  # fmt: skip
def test_fresh_folders(tmp_path, pretraining, changes):
    write(tmp_path, pretraining=pretraining, seed=1, **changes)
    check(tmp_path)


@pytest.mark.parametrize("name", ["hf_pretraining", "hf_classification"])
def test_our_own_folder_computes_the_same(tmp_path, name):
    convert(ARRAYS / name, tmp_path / "ours")
    shutil.copy(ARRAYS / name / "expected.safetensors", tmp_path / "ours")
    check(tmp_path / "ours")


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(ARRAYS / "hf_pretraining", tmp_path / "folder")


def test_biases_by_their_other_names_and_a_bias_of_the_keys(folder):
    weights = load_file(folder / "model.safetensors")
    for name in list(weights):
        if name.endswith(("attention.q_bias", "attention.v_bias")):
            stem, part = name[: -len("q_bias")], {"q": "query", "v": "value"}[name[-6]]
            weights[f"{stem}{part}.bias"] = weights.pop(name)
            weights[f"{stem}key.bias"] = torch.randn(weights[f"{stem}{part}.bias"].shape)
    assert sum(name.endswith("key.bias") for name in weights) == 3
    save_file(weights, folder / "model.safetensors")
    check(folder)
    model = build_model(config_of_checkpoint(folder))
    assert len(load_checkpoint(model, folder).ignored) == 3


def test_pretraining_starts_simvtp():
    model = tiny_model(
        "simvtp", width=24, num_heads=3, tubelet=(2, 4, 4), layer_scale=0.0,
    )  # fmt: skip
    report = load_checkpoint(
        model, ARRAYS / "hf_pretraining", fresh=("text_embeddings", "word_head", "match_head", "contrast")
    )
    weights = load_file(ARRAYS / "hf_pretraining" / "model.safetensors")
    assert torch.equal(model.encoder.norm.weight, weights["videomae.layernorm.weight"])
    assert report.ignored == ()


def test_a_missing_part_of_attention_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    name = "videomae.encoder.layer.0.attention.attention.key.weight"
    del weights[name]
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(build_model(config_of_checkpoint(folder)), weights)
    assert "missing encoder.blocks.0.attn.qkv.weight" in str(raised.value)
    assert "unexpected videomae.encoder.layer.0.attention.attention.query.weight" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "uses relu in its MLPs, fastvtp the exact GELU"),
        ({"image_size": [16, 32]}, r"was made for frames of \[16, 32\], fastvtp takes square ones"),
    ],
)
def test_what_our_models_do_not_compute_is_refused(folder, change, message):
    model = build_model(config_of_checkpoint(folder))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        config_of_checkpoint(folder)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, folder)


def test_other_heads_are_refused(folder):
    model = build_model(config_of_checkpoint(folder, num_heads=4))
    with pytest.raises(CheckpointError, match="num_heads is 3, the model has 4"):
        load_checkpoint(model, folder)


def test_a_classifier_of_the_first_token_is_refused(folder):
    weights = load_file(ARRAYS / "hf_classification" / "model.safetensors")
    for part in ("weight", "bias"):
        weights[f"videomae.layernorm.{part}"] = weights.pop(f"fc_norm.{part}")
    with pytest.raises(CheckpointError, match="use_mean_pooling=false"):
        load_checkpoint(build_model(config_of_checkpoint(ARRAYS / "hf_classification")), weights)
