"""Numbers of heads, which no shape shows: known of released sizes, asked for elsewhere, and told with what to set."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastvtp.architecture import architecture_of, model_config
from fastvtp.checkpoints.loading import load_checkpoint
from fastvtp.checkpoints.sizes import config_of_checkpoint
from fastvtp.errors import CheckpointError
from fastvtp.systems.catalogue import create_model
from fastvtp.systems.conversion import convert
from tests.checkpoints import names
from tests.systems.alpro import weight_names as alpro
from tests.systems.videoprism.test_weights import released


def on_meta(name: str, **settings) -> dict[str, Tensor]:
    """The names and shapes of a model of ours."""
    config = model_config(name, preset="official", **settings)
    with torch.device("meta"):
        return dict(architecture_of(config).model(config).state_dict())


def test_alpro_and_simvtp_as_released():
    found = config_of_checkpoint(alpro.official(on_meta("alpro_base"), text_depth=6))
    assert (found.num_heads, found.text_num_heads, found.text_depth, found.fusion_depth) == (12, 12, 6, 6)
    found = config_of_checkpoint(names.official("simvtp", on_meta("simvtp_base")))
    assert (found.num_heads, found.decoder_num_heads) == (12, 6)


def test_layers_of_a_bert_that_nobody_released():
    weights = alpro.official(on_meta("alpro_base", fusion_depth=3), text_depth=6)
    with pytest.raises(CheckpointError, match=r": give text_num_heads=\.\.\., which nothing in it shows"):
        config_of_checkpoint(weights)
    assert config_of_checkpoint(weights, text_num_heads=6).text_num_heads == 6


@pytest.mark.parametrize(("size", "heads"), [("base", 12), ("large", 16), ("giant", 16)])
def test_videoprism_of_ours_without_its_configuration(size, heads):
    assert config_of_checkpoint(on_meta(f"videoprism_{size}")).num_heads == heads


def test_arrays_that_show_their_heads_say_so(tmp_path):
    arrays = released("videoprism")
    torch.save(arrays, tmp_path / "arrays.pth")
    assert convert(tmp_path / "arrays.pth", tmp_path / "out").heads == {"num_heads": "4: shape of the arrays"}


def vit(width: int, depth: int, patch: int = 14) -> dict[str, Tensor]:
    """The names and shapes of timm's ViT."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width), "pos_embed": (1, 17, width), "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    for number in range(depth):
        stem = f"blocks.{number}."
        for part, rows, columns in (
            ("attn.qkv", 3 * width, width), ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width),
        ):  # fmt: skip
            shapes |= {f"{stem}{part}.weight": (rows, columns), f"{stem}{part}.bias": (rows,)}
        for part in ("norm1", "norm2"):
            shapes |= {f"{stem}{part}.weight": (width,), f"{stem}{part}.bias": (width,)}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def advice(model, weights) -> str:
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(model, weights)
    assert "\n" not in str(raised.value)
    return str(raised.value).split(": set ")[1]


@pytest.mark.parametrize(
    ("width", "depth", "heads"),
    [(192, 12, 3), (384, 12, 6), (1152, 27, 16), (1280, 32, 16), (1408, 40, 16), (1664, 48, 16)],
)
def test_an_image_tower_of_another_size_says_how_many_heads(width, depth, heads):
    model = create_model("videoprism_tiny", width=96, depth=1, num_heads=1, mlp_hidden=64)
    assert f"model.width={width} model.depth={depth} model.num_heads={heads}" in advice(model, vit(width, depth))


def test_an_image_tower_that_nobody_released_does_not_say():
    found = advice(create_model("videoprism_tiny"), vit(640, 3))
    assert "num_heads=" not in found
    assert found.endswith(", and model.num_heads as it was trained (nothing in it shows how many)")


@pytest.mark.parametrize(
    ("width", "layers", "hidden", "heads"),
    [(1024, 24, 4096, 16), (384, 12, 1536, 12), (312, 4, 1200, 12), (512, 8, 2048, 8), (384, 4, 1536, None)],
)
def test_a_bert_of_another_size_says_how_many_heads(width, layers, hidden, heads):
    sizes = {"width": width, "text_hidden": hidden, "num_heads": 1, "text_num_heads": 1}
    state = on_meta("alpro_tiny", text_depth=layers, fusion_depth=1, **sizes)
    weights = alpro.bert({n: t for n, t in state.items() if not n.startswith("fusion_encoder.")}, text_depth=layers)
    found = advice(create_model("alpro_tiny"), weights)
    if heads is None:
        assert "model.num_heads and model.text_num_heads as it was trained" in found
    else:
        assert f"model.text_num_heads={heads}" in found
        assert ", and model.num_heads as it was trained" in found


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("videomae_small", 6),
        ("videomae_base", 12),
        ("videomae_large", 16),
        ("videomae_huge", 16),
        ("videomae_giant", 16),
    ],
)
def test_our_names_of_released_sizes_have_the_released_heads(name, size):
    config = model_config(name)
    found = config_of_checkpoint(names.official("videomae", on_meta(name)))
    assert (found.num_heads, found.decoder_num_heads) == (config.num_heads, config.decoder_num_heads)
    assert replace(found, trained_frames=None, trained_image_size=None) == config
    assert found.num_heads == size
