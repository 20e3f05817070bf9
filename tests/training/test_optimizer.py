from itertools import pairwise

import pytest
import torch

from fastvtp.errors import ConfigError
from fastvtp.systems.alpro.finetuning import AlproRetrievalConfig
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.simvtp.config import SimVTPConfig
from fastvtp.systems.simvtp.question_answering import VideoQAConfig
from fastvtp.systems.simvtp.retrieval import DualEncoderConfig
from fastvtp.systems.videomae.classifier import VideoClassifierConfig
from fastvtp.systems.videomae.model import VideoMAEConfig
from fastvtp.training.config import OptimizerConfig
from fastvtp.training.optimizer import (
    build_optimizer,
    layer_scales,
    learning_rate_at,
    linear_rate,
    set_learning_rate,
)

TINY = {"width": 16, "depth": 2, "num_heads": 2, "num_frames": 2, "image_size": 32}
TEXT = {"vocab_size": 20, "max_text_length": 8}
IDS = {"mask_token_id": 4, "special_token_ids": (0, 1, 2, 3, 4)}
DECODER = {"decoder_width": 16, "decoder_num_heads": 2, "decoder_depth": 3}


def test_vectors_are_not_decayed():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if parameter.ndim > 1 else 1.0)
        torch.testing.assert_close(parameter.detach(), expected)


def test_schedule_rises_then_falls():
    config = OptimizerConfig(learning_rate=1.0, final_learning_rate=0.1, warmup_steps=5)
    rates = [learning_rate_at(step, 25, config) for step in range(25)]
    assert rates[0] == 0
    assert rates[4] == rates[5] == 1.0
    assert all(a > b for a, b in pairwise(rates[5:]))
    assert rates[15] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_one_step_of_warmup_and_a_run_shorter_than_its_warmup():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=1)
    assert learning_rate_at(0, 3, config) == 0
    assert learning_rate_at(1, 3, OptimizerConfig(learning_rate=1.0, warmup_steps=100)) == 0.5


@pytest.mark.parametrize(
    ("config", "towers", "top"),
    [
        (SimVTPConfig(**TINY, **TEXT, **IDS, **DECODER), ["encoder"], ["decoder.transformer.blocks.0.norm1.weight"]),
        (VideoMAEConfig(**TINY, **DECODER), ["encoder"], ["encoder.norm.weight", "decoder.mask_token"]),
        (DualEncoderConfig(**TINY, **TEXT), ["video_encoder", "text_encoder"], ["video_norm.weight"]),
        (DualEncoderConfig(**TINY, **TEXT, shared_encoder=True), ["video_encoder"], ["text_norm.weight"]),
        (VideoQAConfig(**TINY, **TEXT), ["encoder"], ["encoder.norm.weight", "head.1.weight"]),
        (VideoClassifierConfig(**TINY), ["encoder"], ["norm.weight", "head.weight"]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_rates_fall_with_depth(config, towers, top):
    """In the released SimVTP every parameter gets the top rate, whatever its layer_decay."""
    model = build_model(config)
    scales = layer_scales(model, 0.5)
    embeddings = [name for name in scales if name.startswith(("video_embeddings.", "text_embeddings."))]
    assert embeddings
    assert {scales[name] for name in embeddings} == {0.5**3}
    for tower in towers:
        for block, scale in enumerate((0.5**2, 0.5)):
            values = {scales[name] for name in scales if name.startswith(f"{tower}.blocks.{block}.")}
            assert values == {scale}
    assert {scales[name] for name in top} == {1.0}

    optimizer = build_optimizer(model, OptimizerConfig(layer_decay=0.5))
    set_learning_rate(optimizer, 0.8)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in model.named_parameters()} == {n: 0.8 * s for n, s in scales.items()}
    assert all((group["weight_decay"] > 0) == (p.ndim > 1) for group in optimizer.param_groups for p in group["params"])


def test_rates_of_alpro_rise_through_clips_and_through_text_and_fusion():
    sizes = {**TINY, "depth": 3, "text_depth": 2, "fusion_depth": 1, "text_num_heads": 2, "text_hidden": 32}
    scales = layer_scales(build_model(AlproRetrievalConfig(**sizes, **TEXT, **IDS)), 0.5)
    for layer, prefixes in enumerate((
        ("text_embeddings.", "video_encoder.weight", "video_encoder.bias", "video_encoder.cls_", "video_encoder.time_",
         "video_encoder.patch_"),
        ("video_encoder.blocks.0.", "text_encoder.layers.0."),
        ("video_encoder.blocks.1.", "text_encoder.layers.1."),
        ("video_encoder.blocks.2.", "fusion_encoder.layers.0."),
        ("video_encoder.norm.", "match_head.", "text_projection.", "temperature"),
    )):  # fmt: skip
        for prefix in prefixes:
            values = {scale for name, scale in scales.items() if name.startswith(prefix)}
            assert values == {0.5 ** (4 - layer)}, prefix


def test_linear_schedule_is_alpros():
    """`get_lr_sched` of 40 steps with a warm-up of 5 %, counted from 1 as its loop does."""
    config = OptimizerConfig(
        learning_rate=1e-4, final_learning_rate=1e-8, schedule="linear", warmup_share=0.05, warmup_steps=30
    )
    rates = [learning_rate_at(step, 40, config) for step in range(40)]
    assert rates[:3] == pytest.approx([5e-5, 1e-4, 1e-4 * 37 / 38])
    assert rates[-2:] == pytest.approx([1e-4 / 38, 1e-8])
    assert linear_rate(0, 40, config) == 1e-8


def test_a_share_takes_the_place_of_warmup_steps():
    cosine = {"learning_rate": 1.0, "final_learning_rate": 0.0}
    share, steps = OptimizerConfig(warmup_share=0.2, **cosine), OptimizerConfig(warmup_steps=8, **cosine)
    assert [learning_rate_at(step, 40, share) for step in range(40)] == [
        learning_rate_at(step, 40, steps) for step in range(40)
    ]
    assert learning_rate_at(0, 40, OptimizerConfig(schedule="linear", warmup_share=0.0)) > 0
    for wrong in ({"schedule": "linaer"}, {"warmup_share": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            OptimizerConfig(**wrong)


def test_without_decay_all_rates_are_equal():
    model = build_model(VideoClassifierConfig(**TINY))
    assert set(layer_scales(model, 1.0).values()) == {1.0}
    assert len(build_optimizer(model, OptimizerConfig()).param_groups) == 2


def test_a_decay_without_effect_is_an_error():
    with pytest.raises(ConfigError, match=r"layer_decay 0.75: Sequential has no encoder blocks"):
        build_optimizer(torch.nn.Sequential(torch.nn.Linear(4, 4)), OptimizerConfig(layer_decay=0.75))
