"""The resampler against attention written out, and what a captioner takes and refuses; needs no `transformers`."""

import copy
import math
import re
import sys

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear

from fastvtp.errors import UserError
from fastvtp.modules.packing import Packing
from fastvtp.systems.captioner.features import attach_backbone, load_backbone
from fastvtp.systems.captioner.model import (
    PackedFeatures,
    PerceiverResampler,
    VideoCaptioner,
    VideoCaptionerConfig,
)
from fastvtp.systems.catalogue import build_model
from tests.frozen.towers import (
    CONFIGS,
    make_clips,
    make_tower_model,
)

CONFIG = VideoCaptionerConfig(
    feature_width=32, language_width=24, num_queries=6, num_heads=4, num_frames=4, image_size=32
)


@pytest.fixture
def captioner() -> VideoCaptioner:
    torch.manual_seed(0)
    return build_model(CONFIG)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def expected_queries(resampler: PerceiverResampler, tokens_ND: torch.Tensor) -> torch.Tensor:
    """One clip, after the text of the paper: separate norms, keys without queries, skips from the queries."""
    block, width = resampler.block, tokens_ND.shape[1]
    asked = layer_norm(resampler.queries, (width,), block.norm1.weight, block.norm1.bias, 1e-6)
    seen = layer_norm(tokens_ND, (width,), resampler.key_norm.weight, resampler.key_norm.bias, 1e-6)
    query = block.attn.query(asked)
    key, value = block.attn.key_value(seen).chunk(2, dim=1)
    heads = []
    for part in range(block.attn.num_heads):
        own = slice(part * width // block.attn.num_heads, (part + 1) * width // block.attn.num_heads)
        weights = (query[:, own] @ key[:, own].T / math.sqrt(own.stop - own.start)).softmax(-1)
        heads.append(weights @ value[:, own])
    x = resampler.queries + linear(torch.cat(heads, 1), block.attn.proj.weight, block.attn.proj.bias)
    hidden = gelu(block.mlp.fc1(layer_norm(x, (width,), block.norm2.weight, block.norm2.bias, 1e-6)))
    return x + block.mlp.fc2(hidden)


def shake(module: torch.nn.Module) -> None:
    """Norms and biases away from one and zero, so that leaving one out shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def test_resampler_is_one_layer_of_separate_norms(captioner):
    shake(captioner)
    features = tokens(3, 10, 32)
    found = captioner.prefix(features)
    expected = captioner.projection(torch.stack([expected_queries(captioner.resampler, clip) for clip in features]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.shape == (3, 6, 24)


def test_ragged_features_are_read_clip_by_clip(captioner):
    shake(captioner)
    packed, lengths = tokens(12, 32), [3, 1, 8]
    bounds = torch.tensor([0, 3, 4, 12], dtype=torch.int32)
    found = captioner.prefix(PackedFeatures(packed, Packing(bounds, 8)))
    for row, clip in zip(found, packed.split(lengths), strict=True):
        torch.testing.assert_close(row, captioner.prefix(clip[None])[0])


def test_only_resampler_and_projection_are_weights(captioner):
    backbone = make_tower_model("videoprism")
    captioner.attach(backbone=backbone)
    assert {name.split(".")[0] for name in captioner.state_dict()} == {"resampler", "projection"}
    captioner.prefix(make_clips(2)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in captioner.parameters())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    # averages of the weights are deep copies: the frozen parts are not copied along
    assert copy.deepcopy(captioner).backbone is captioner.backbone


@pytest.mark.parametrize("name", CONFIGS)
def test_clips_are_read_by_the_backbone_of_a_folder(captioner, name, tmp_path):
    from fastvtp.model_folder import write_model_folder

    model, clips = make_tower_model(name), make_clips(2)
    write_model_folder(tmp_path, model, name)
    features = load_backbone(tmp_path)(clips)
    expected = model(clips) if name == "videoprism" else model.video_tokens(clips)
    torch.testing.assert_close(features, expected)
    opened = build_model(VideoCaptionerConfig(**{**vars(CONFIG), "backbone": str(tmp_path)}))
    torch.testing.assert_close(attach_backbone(opened).prefix(clips), opened.prefix(features))


def test_other_precisions_of_features_are_taken(captioner):
    features = tokens(2, 5, 32)
    torch.testing.assert_close(captioner.prefix(features.half()), captioner.prefix(features.half().float()))


def test_what_does_not_fit_is_one_line(captioner, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"clips must be \[B, T, H, W, 3\] or features \[B, N, D\], got \[2, 3\]"):
        captioner.prefix(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"features must be 32 wide, got tokens \[8, 16\]"):
        captioner.prefix(torch.zeros(2, 4, 16))
    with pytest.raises(UserError, match="backbone is none: expected a function given to `attach`"):
        captioner.prefix(make_clips(1))
    with pytest.raises(UserError, match="language_model is none: expected a folder"):
        captioner.texts(["a"])
    with pytest.raises(ValueError, match="num_heads 5 does not divide the feature_width 32"):
        VideoCaptioner(VideoCaptionerConfig(**{**vars(CONFIG), "num_heads": 5}))
    for field, value, message in (
        ("num_queries", 0, "num_queries must be positive, got 0"),
        ("max_tokens", 0, "max_tokens must be positive, got 0"),
        ("language_dtype", "half", "language_dtype must be 'float32' or 'bfloat16', got 'half'"),
        ("question_template", "What?", "question_template must hold {question} once, got 'What?'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            VideoCaptionerConfig(**{field: value})
    monkeypatch.setitem(sys.modules, "transformers", None)
    absent = VideoCaptioner(VideoCaptionerConfig(**{**vars(CONFIG), "language_model": str(tmp_path)}))
    with pytest.raises(UserError, match=r"a language model needs transformers: pip install 'fastvtp\[captioning\]'"):
        absent.texts(["a"])
