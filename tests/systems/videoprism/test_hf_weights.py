"""VideoPrism folders of transformers, and image towers as a start: a saved folder always, fresh ones where transformers
is installed."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fastvtp.architecture import find_architecture
from fastvtp.checkpoints.loading import absent_parts, load_checkpoint
from fastvtp.checkpoints.sizes import config_of_checkpoint
from fastvtp.errors import CheckpointError
from fastvtp.modules.packing import Packing
from fastvtp.modules.pixels import CLIP_MEAN, CLIP_STD
from fastvtp.modules.positions import sinusoid_positions
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.conversion import convert
from fastvtp.systems.videoprism.encoder import VideoPrismConfig
from tests.systems.videoprism.make_hf_arrays import (
    ARRAYS,
    expected,
    write,
)

FOLDER = ARRAYS / "hf_videoprism"
TOLERANCE = 1e-5
WIDE = {"intermediate_size": 96}  # its pooler is as wide as the MLPs, the released one four times the tokens


def error(actual: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((actual - wanted).norm() / wanted.norm()).item()


def load(folder):
    model = build_model(config_of_checkpoint(folder)).eval()
    report = load_checkpoint(model, folder, fresh=absent_parts(model, folder))
    return model, report


def test_saved_vision_model(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        model, report = load(FOLDER)
    assert not caplog.records  # its vision tower is the released one
    assert (report.fresh, report.ignored) == ((), ())
    saved = load_file(FOLDER / "expected.safetensors")
    with torch.no_grad():
        assert error(model(saved["video"]), saved["tokens"]) <= TOLERANCE
    convert(FOLDER, tmp_path / "ours")
    ours, _ = load(tmp_path / "ours")
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu_new"}, "has hidden_act gelu_new, fastvtp's VideoPrism gelu"),
        ({"layer_norm_eps": 1e-5}, "has layer_norm_eps 1e-05, fastvtp's VideoPrism 1e-06"),
        ({"num_attention_heads": 5}, "num_heads 5 does not divide the width 24"),
    ],
)
def test_what_a_config_states_otherwise_is_one_line(changes, message, tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "folder")
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        load(folder)
    model = build_model(config_of_checkpoint(FOLDER))
    if "hidden_act" not in changes and "layer_norm_eps" not in changes:
        with pytest.raises(CheckpointError, match="num_heads is 5, the model has 3"):
            load_checkpoint(model, folder)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("spatial_layers.0.attention.k_proj.weight", (1, 24, 24), "k_proj.weight, .* are .*, expected one shape"),
        ("temporal_layers.0.attention.v_proj.bias", None, "unexpected temporal_layers.0.attention.q_proj.bias"),
        ("temporal_embeddings.position_embeddings", (0, 3, 24), "no patch embedding|position_embeddings is"),
        ("layernorm1.weight", (23,), r"layernorm1\.weight is \[23\], the model's spatial\.norm\.weight \[24\]"),
    ],
)
def test_odd_entries_are_one_line(name, shape, message):
    weights = load_file(FOLDER / "model.safetensors")
    model = build_model(config_of_checkpoint(FOLDER))
    del weights[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(model, weights if shape is None else {**weights, name: torch.zeros(shape)})
    assert "\n" not in str(caught.value)


def test_softcap_is_stated(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "folder")
    stated = json.loads((folder / "config.json").read_text()) | {"attn_logit_softcapping": 20.0}
    (folder / "config.json").write_text(json.dumps(stated))
    assert config_of_checkpoint(folder).softcap == 20.0
    with pytest.raises(CheckpointError, match=r"softcap is 20\.0, the model has 50\.0"):
        load_checkpoint(build_model(config_of_checkpoint(FOLDER)), folder)


@pytest.mark.parametrize(("frames", "size"), [(3, 24), (2, 18), (5, 36)])
def test_fresh_vision_and_video_models(frames, size, tmp_path):
    pytest.importorskip("transformers")
    saved = expected(write(tmp_path / "vision", "VideoPrismVisionModel", seed=1), frames, size)
    encoder, _ = load(tmp_path / "vision")
    theirs = write(tmp_path / "video", "VideoPrismVideoModel", seed=2, **WIDE)
    pooled = expected(theirs, frames, size)
    model, report = load(tmp_path / "video")
    assert {name.split(".")[0] for name in report.fresh} == {"text_encoder"}
    with torch.no_grad():
        assert error(encoder(saved["video"]), saved["tokens"]) <= TOLERANCE
        assert error(model.video_tokens(pooled["video"]), pooled["tokens"]) <= TOLERANCE
        assert error(model.encode_video(pooled["video"]), pooled["pooled"]) <= TOLERANCE


@torch.no_grad()
def test_text_positions_are_the_released_ones(tmp_path, caplog):
    """With transformers' table in the place of ours the towers are equal; it is the only difference."""
    pytest.importorskip("transformers")
    theirs = write(tmp_path / "clip", "VideoPrismClipModel", **WIDE)
    with caplog.at_level(logging.WARNING):
        model, report = load(tmp_path / "clip")
    assert [record for record in caplog.records if "table of text positions is not the released one" in record.message]
    assert report.fresh == ()
    assert sorted(report.ignored) == [f"text_model.embeddings.position_{name}" for name in ("embedding", "ids")]
    lengths = torch.tensor([9, 4, 1])
    mask = torch.arange(9) < lengths[:, None]
    ids = torch.randint(1, 30, mask.shape) * mask
    packed = ids[mask], torch.tensor([0, 9, 13, 14], dtype=torch.int32), 9
    wanted = theirs.text_model(input_ids=ids, attention_mask=mask.long()).pooler_output
    assert torch.equal(model.text_encoder.positions, sinusoid_positions(9, 24))
    assert error(model.encode_text(*packed), wanted) > 1e-3
    model.text_encoder.positions.copy_(theirs.text_model.embeddings.position_embedding)
    assert error(model.encode_text(*packed), wanted) <= TOLERANCE
    found = expected(theirs.video_model, 3, 24)
    assert error(model.encode_video(found["video"]), found["pooled"]) <= TOLERANCE

    write(tmp_path / "text", "VideoPrismTextModel", seed=3)
    with pytest.raises(CheckpointError, match="is a text tower"):
        config_of_checkpoint(tmp_path / "text")
    report = load_checkpoint(model, tmp_path / "text")
    assert {name.split(".")[0] for name in report.loaded} == {"text_encoder"}
    assert len(report.loaded) == len(model.text_encoder.state_dict())


@torch.no_grad()
def test_classifier_with_its_wide_pooler(tmp_path, caplog):
    pytest.importorskip("transformers")
    theirs = write(tmp_path, "VideoPrismForVideoClassification", num_labels=5, intermediate_size=60)
    with caplog.at_level(logging.WARNING):
        model, report = load(tmp_path)
    assert [record for record in caplog.records if "pools with a hidden layer as wide as its MLPs" in record.message]
    assert (report.fresh, model.config.pooler_hidden, model.config.num_classes) == ((), 60, 5)
    video = torch.rand(2, 3, 24, 24, 3)
    assert error(model(video), theirs(video.permute(0, 1, 4, 2, 3)).logits[:, 0]) <= TOLERANCE


@pytest.mark.parametrize("stem", ["", "encoder.", "video_encoder."])
@pytest.mark.parametrize("kind", ["vit", "vit_head", "clip", "clip_both"])
@torch.no_grad()
def test_image_tower_becomes_blocks_within_frames(kind, stem, tmp_path):
    """Its blocks compute the same without the cap and with GELU, its patch embedding the same of other pixels."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "image_size": 24,
        "patch_size": 6, "hidden_act": "gelu",
    }  # fmt: skip
    if kind.startswith("vit"):
        config = transformers.ViTConfig(**sizes)
        theirs = (transformers.ViTModel if kind == "vit" else transformers.ViTForImageClassification)(config)
        tower, mean, std = getattr(theirs, "vit", theirs), (0.5,) * 3, (0.5,) * 3
    else:
        config, mean, std = transformers.CLIPVisionConfig(**sizes), CLIP_MEAN, CLIP_STD
        text = transformers.CLIPTextConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=9)
        both = transformers.CLIPConfig(vision_config=config.to_dict(), text_config=text.to_dict())
        theirs = transformers.CLIPVisionModel(config) if kind == "clip" else transformers.CLIPModel(both)
        tower = getattr(theirs, "vision_model", theirs)
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.2)
    theirs.eval().save_pretrained(tmp_path)
    name = {"": "videoprism", "encoder.": "prism_classifier", "video_encoder.": "video_text_prism"}[stem]
    shared = {"num_frames": 3, "image_size": 24, "patch_size": 6, "width": 24, "depth": 2, "temporal_depth": 1,
              "num_heads": 3, "mlp_hidden": 40, "softcap": 0.0}  # fmt: skip
    more = {"vocab_size": 9, "text_depth": 1} if stem == "video_encoder." else {}
    model = build_model(find_architecture(name).config(**shared, **more)).eval()
    report = load_checkpoint(model, tmp_path)
    encoder = model.get_submodule(stem.rstrip("."))
    filled = {f"{stem}{n}" for n in encoder.state_dict() if not n.startswith("temporal")}
    assert set(report.loaded) == filled
    left = [
        n for n in report.ignored if not n.startswith(("text_", "visual_", "logit_", "classifier", "pooler", "vit."))
    ]
    assert {n.split(".")[0] for n in left} <= {"cls_token", "cls_position", "pre_norm"}
    assert "cls_token" in left

    x = torch.randn(2, 16, 24)
    layers = tower.layers if kind.startswith("vit") else tower.encoder.layers
    for layer, block in zip(layers, encoder.spatial.blocks, strict=True):
        wanted = layer(x) if kind.startswith("vit") else layer(x, None)
        wanted = wanted[0] if isinstance(wanted, tuple) else wanted
        assert error(block(x.flatten(0, 1), Packing.uniform(2, 16)).view_as(x), wanted) <= TOLERANCE
        x = wanted
    pixels = torch.rand(2, 1, 24, 24, 3)
    scaled = ((pixels - torch.tensor(mean)) / torch.tensor(std))[:, 0].permute(0, 3, 1, 2)
    if kind.startswith("vit"):
        embedded = tower.embeddings.patch_embeddings(scaled)
        table, last = tower.embeddings.position_embeddings[0, 1:], tower.layernorm
    else:
        embedded = tower.embeddings.patch_embedding(scaled).flatten(2).mT
        table, last = tower.embeddings.position_embedding.weight[1:], tower.post_layernorm
    seen = []
    hook = encoder.spatial.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    encoder(pixels)
    hook.remove()
    assert error(seen[0].view(2, 16, 24), embedded + table) <= TOLERANCE
    assert torch.equal(encoder.spatial.norm.weight, last.weight)


def test_image_tower_of_another_size_is_one_line(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40, image_size=24, patch_size=6
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    model = build_model(
        VideoPrismConfig(image_size=24, patch_size=6, width=24, depth=2, num_heads=3, mlp_hidden=40, temporal_depth=1)
    )
    with pytest.raises(CheckpointError, match="num_heads is 4, the model has 3"):
        load_checkpoint(model, tmp_path)
    with pytest.raises(CheckpointError, match=r"set model\.depth=1 model\.num_heads=4|set model\.depth=1"):
        load_checkpoint(model, tmp_path)
