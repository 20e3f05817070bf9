"""VideoPrism's poolers, text tower and video-text model; sizes and initialisation of all its models."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastvtp.architecture import architecture_of
from fastvtp.modules.pooler import AttentionPooler, scale_query
from fastvtp.modules.positions import sinusoid_positions
from fastvtp.systems.catalogue import (
    build_model,
    create_model,
    model_config,
)
from fastvtp.systems.videoprism.encoder import PrismClassifierConfig, VideoPrismConfig
from fastvtp.systems.videoprism.layers import unit_length
from fastvtp.systems.videoprism.video_text import VideoTextPrism, VideoTextPrismConfig
from tests.systems.videoprism.sizes import (
    SIDE,
    SIZES,
    TEXT,
)


@pytest.fixture
def video() -> Tensor:
    """uint8 [2, 4, 24, 24, 3]."""
    return torch.randint(0, 256, (2, 4, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize(("hidden", "plain"), [(32, True), (32, False), (128, False)])
def test_pooler_is_attention_with_keys_and_values(queries, hidden, plain):
    torch.manual_seed(0)
    pooler = AttentionPooler(32, 4, hidden, queries, plain=plain).double()
    for parameter in pooler.parameters():
        parameter.data.normal_(std=0.3)
    x, real = torch.randn(3, 9, 32, dtype=torch.float64), torch.arange(9) < torch.tensor([[9], [4], [1]])
    weights = torch.cat([pooler.query.weight, pooler.key.weight, pooler.value.weight])
    for mask in (None, real):
        keys = pooler.key(x).view(3, 9, 4, -1).transpose(1, 2)
        values = pooler.value(x).view(3, 9, 4, -1).transpose(1, 2)
        query = pooler.query(pooler.queries).view(queries, 4, -1)
        if pooler.per_dim_scale is not None:
            query = query * F.softplus(pooler.per_dim_scale) / F.softplus(torch.zeros(1, dtype=torch.float64))
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1).expand(3, -1, -1, -1),
            keys,
            values,
            attn_mask=None if mask is None else mask[:, None, None].expand(-1, 4, queries, -1),
        )
        wanted = pooler.norm(pooler.proj(out.transpose(1, 2).flatten(2)))
        torch.testing.assert_close(pooler(x, mask), wanted, rtol=0, atol=1e-5)  # its softmax is float32
        if plain:
            theirs, _ = F.multi_head_attention_forward(
                pooler.queries[:, None].expand(-1, 3, -1),
                x.transpose(0, 1),
                x.transpose(0, 1),
                32,
                4,
                weights,
                torch.cat([pooler.query.bias, pooler.key.bias, pooler.value.bias]),
                None,
                None,
                False,
                0.0,
                pooler.proj.weight,
                pooler.proj.bias,
                key_padding_mask=None if mask is None else ~mask,
            )
            torch.testing.assert_close(pooler(x, mask), theirs.transpose(0, 1), rtol=0, atol=1e-5)


def test_a_scale_of_zero_is_one():
    query = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(
        scale_query(query, torch.zeros(8, dtype=torch.float64)), query / 8**0.5, rtol=1e-9, atol=0
    )
    assert torch.equal(scale_query(query, None), query / 8**0.5)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("videoprism_base", 114_365_184),
        ("videoprism_large", 353_965_056),
        ("videoprism_giant", 1_112_755_072),
        ("videoprism_lvt_base", 247_623_424),
        ("videoprism_lvt_large", 579_877_120),
        ("videoprism_lvt_giant", 1_621_074_016),
    ],
)
def test_sizes(name, parameters):
    config = model_config(name)
    with torch.device("meta"):
        model = architecture_of(config).model(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    "config",
    [
        VideoPrismConfig(**SIZES),
        VideoTextPrismConfig(**SIZES, **TEXT),
        PrismClassifierConfig(**SIZES, pooler_hidden=64),
    ],
)
def test_every_parameter_is_initialised(config):
    with torch.device("meta"):
        model: Any = architecture_of(config).model(config)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(torch.nan)
    with torch.no_grad():
        model.init_weights()
    assert all(tensor.isfinite().all() for tensor in (*model.parameters(), *model.buffers()))


@pytest.fixture(scope="module")
def both() -> VideoTextPrism:
    torch.manual_seed(4)
    return build_model(VideoTextPrismConfig(**SIZES, **TEXT)).eval()


@torch.no_grad()
def test_a_text_is_encoded_as_if_alone(both):
    texts = [torch.tensor([5, 7, 5, 9, 1]), torch.tensor([3]), torch.tensor([8, 8, 8, 8, 8, 8, 8, 8, 2])]
    ends = torch.tensor([0, 5, 6, 15], dtype=torch.int32)
    together = both.embed_text(torch.cat(texts), ends, 9)
    for row, text in zip(together, texts, strict=True):
        alone = both.embed_text(text, torch.tensor([0, len(text)], dtype=torch.int32), len(text))[0]
        torch.testing.assert_close(row, alone, rtol=0, atol=1e-6)
    assert not torch.allclose(together[0], both.embed_text(torch.cat(texts).flip(0), ends, 9)[0], atol=1e-2)
    with pytest.raises(ValueError, match="texts have up to 10 tokens, max_text_length is 9"):
        both.embed_text(torch.ones(10, dtype=torch.int64), torch.tensor([0, 10], dtype=torch.int32), 10)


def test_positions_end_at_ten_thousand():
    table = sinusoid_positions(3, 8)
    assert table.shape == (3, 8)
    torch.testing.assert_close(
        table[1, 3].item(), torch.tensor(1e-4, dtype=torch.float64).sin().item(), rtol=1e-6, atol=0
    )
    assert sinusoid_positions(2, 5)[1, 4] == 0


@torch.no_grad()
def test_frames_are_pooled_one_by_one(both, video):
    tokens = both.video_tokens(video).view(2, 4, 16, 32)
    frames = both.encode_frames(video)
    for i in range(4):
        torch.testing.assert_close(frames[:, i], unit_length(both.pooler(tokens[:, i])[:, 0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(frames.norm(dim=-1), torch.ones(2, 4), rtol=0, atol=1e-5)


def test_the_loss_is_infonce(both, video):
    ids, ends = torch.tensor([5, 7, 1, 9]), torch.tensor([0, 3, 4], dtype=torch.int32)
    output = both(video, ids, ends, 3)
    logits = both.encode_text(ids, ends, 3) @ both.encode_video(video).T / 0.07
    target = torch.arange(2)
    wanted = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(output.loss, wanted, rtol=1e-5, atol=1e-6)
    assert output.terms["temperature"].item() == pytest.approx(0.07)


def test_every_parameter_has_a_gradient(both, video):
    """Data parallel training waits for the gradient of each; the pooler's key bias, which cancels, has one of zero."""
    both.zero_grad()
    ids, cu_seqlens = torch.arange(1, 6), torch.tensor([0, 2, 5], dtype=torch.int32)
    both(video, ids, cu_seqlens, 3).loss.backward()
    assert not [name for name, value in both.named_parameters() if value.requires_grad and value.grad is None]
    assert both.pooler.key.bias.grad.abs().max() < 1e-6
    both.zero_grad()


def test_frozen_video_tower_learns_nothing(video):
    model = create_model("videoprism_lvt_tiny", frozen_video=True, **SIZES, **TEXT)
    model(video, torch.tensor([5, 7, 1, 9]), torch.tensor([0, 3, 4], dtype=torch.int32), 3).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(("video_encoder.", "auxiliary.")), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 25}, "image_size 25 is not a multiple of patch_size 6"),
        ({"num_heads": 5}, "num_heads 5 does not divide the width 32"),
        ({"few_frames": "drop"}, "few_frames must be 'resize' or 'crop', got 'drop'"),
        ({"softcap": -1.0}, "softcap must not be negative"),
        ({"text_norm": "post"}, "text_norm must be 'pre' or 'primer_hybrid'"),
        ({"text_depth": -1}, "text_depth must not be negative"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        VideoTextPrismConfig(**{**SIZES, **TEXT, **changes})
    with pytest.raises(ValueError, match="pooler_hidden must be a multiple of num_heads 4, got 6"):
        PrismClassifierConfig(**SIZES, pooler_hidden=6)
