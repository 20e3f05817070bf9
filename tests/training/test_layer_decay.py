"""Rates that fall with depth, of every system's models, by the names of their parameters alone."""

import re

import pytest
import torch
from torch import nn

from fastvtp.architecture import architectures, build_model
from fastvtp.errors import ConfigError
from fastvtp.modules.stacks import Stack
from fastvtp.systems.alpro.towers import AlproConfig, AlproPrompterConfig
from fastvtp.systems.simvtp.retrieval import DualEncoderConfig
from fastvtp.systems.videoprism.distillation import PrismStudentConfig
from fastvtp.systems.videoprism.encoder import PrismClassifierConfig, VideoPrismConfig
from fastvtp.systems.videoprism.video_text import VideoTextPrismConfig
from fastvtp.training.config import OptimizerConfig
from fastvtp.training.optimizer import build_optimizer, layer_scales, set_learning_rate

SIZES = {
    "num_frames": 4, "image_size": 18, "patch_size": 6, "width": 24, "depth": 3, "temporal_depth": 2, "num_heads": 3,
    "mlp_hidden": 40,
}  # fmt: skip
TEXT = {"vocab_size": 30, "max_text_length": 9, "text_depth": 4}
STUDENT = {"decoder_width": 16, "decoder_depth": 2, "decoder_num_heads": 2, "decoder_hidden": 32, "mask_min_cells": 2}


def exponents(model: nn.Module, decay: float = 0.8) -> dict[str, int]:
    """By parameter, how many times the decay is in its factor."""
    found = {}
    for name, scale in layer_scales(model, decay).items():
        (found[name],) = (power for power in range(40) if scale == pytest.approx(decay**power, rel=1e-12))
    return found


def expected_of_encoder(stem: str, name: str, above: int) -> int:
    """Of VideoPrism's encoder of 3 and 2 blocks, with `above` further blocks on it."""
    place = name.removeprefix(stem)
    if found := re.match(r"(spatial|temporal)\.blocks\.(\d+)\.", place):
        number = int(found[2]) + 3 * (found[1] == "temporal")
        return 5 - number + above
    if place.startswith("spatial.norm"):
        return 3 + above
    if place.startswith("temporal.norm"):
        return 1 + above if above else 0
    assert place in ("weight", "bias", "spatial_positions", "temporal_positions")
    return 6 + above


def test_the_encoder_has_one_depth_through_both_kinds_of_blocks():
    for stem, config in (("", VideoPrismConfig(**SIZES)), ("encoder.", PrismClassifierConfig(**SIZES, num_classes=5))):
        for name, power in exponents(build_model(config)).items():
            top = name.startswith(("pooler.", "head."))
            assert power == (0 if top else expected_of_encoder(stem, name, 0)), name


@pytest.mark.parametrize("joint", [0, 2])
def test_each_tower_of_the_video_text_model_counts_from_its_own_top(joint):
    model = build_model(VideoTextPrismConfig(**SIZES, **TEXT, auxiliary_depth=joint, learnable_temperature=True))
    for name, power in exponents(model).items():
        if name.startswith("video_encoder."):
            assert power == expected_of_encoder("video_encoder.", name, joint), name
        elif found := re.match(r"auxiliary\.blocks\.(\d)\.", name):
            assert power == 2 - int(found[1]), name
        elif found := re.match(r"text_encoder\.transformer\.blocks\.(\d)\.", name):
            assert power == 4 - int(found[1]), name
        elif name.startswith(("text_encoder.token_embeddings.", "text_encoder.cls_token")):
            assert power == 5, name
        else:
            assert name.startswith(("pooler.", "contrast.", "text_encoder.transformer.norm.")), name
            assert power == 0, name


def test_a_student_s_decoders_stand_above_its_encoder():
    model = build_model(PrismStudentConfig(**SIZES, **STUDENT))
    for name, power in exponents(model).items():
        if name.startswith("encoder."):
            assert power == expected_of_encoder("encoder.", name, 0), name
        else:
            assert power == 0, name
    optimizer = build_optimizer(model, OptimizerConfig(layer_decay=0.5))
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained.isdisjoint(map(id, model.teacher.parameters()))


def test_towers_of_unlike_depth_each_count_from_their_own_top():
    sizes = {"width": 16, "depth": 3, "num_heads": 2, "num_frames": 2, "image_size": 32, "vocab_size": 20}
    sizes |= {"max_text_length": 8, "mask_token_id": 4, "special_token_ids": (0, 1, 2, 3, 4)}
    text = {"text_depth": 1, "fusion_depth": 1, "text_num_heads": 2, "text_hidden": 32, "projection_dim": 8}
    alone, fused = (exponents(build_model(kind(**sizes, **text))) for kind in (AlproPrompterConfig, AlproConfig))
    for found in (alone, fused):
        assert found["video_encoder.blocks.2.mlp.fc1.weight"] == 1
        assert found["video_encoder.time_positions"] == 4
    assert alone["text_encoder.layers.0.mlp.fc1.weight"] == 1
    assert alone["text_embeddings.norm.weight"] == 2
    assert fused["fusion_encoder.layers.0.mlp.fc1.weight"] == 1
    assert fused["text_encoder.layers.0.mlp.fc1.weight"] == 2
    assert fused["text_embeddings.norm.weight"] == 3
    shared = exponents(build_model(DualEncoderConfig(**{k: v for k, v in sizes.items() if "_id" not in k})))
    assert shared["text_encoder.blocks.0.mlp.fc1.weight"] == 3


@pytest.mark.parametrize("name", sorted(set(architectures()) - {"video_captioner", "prism_teacher"}))
def test_every_model_with_blocks_tells_of_them(name):
    """At their released sizes, without memory: each stack ends right below the top, and names what there is."""
    architecture = architectures()[name]
    with torch.device("meta"):
        model = architecture.model(architecture.config())
    powers = set(exponents(model).values())
    assert powers == set(range(max(powers) + 1))
    assert max(powers) > 12


def test_the_optimizer_takes_the_rates():
    model = build_model(VideoPrismConfig(**SIZES))
    for algorithm in ("adamw", "adafactor"):
        optimizer = build_optimizer(model, OptimizerConfig(algorithm=algorithm, layer_decay=0.5))
        set_learning_rate(optimizer, 0.8)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in model.named_parameters():
            assert rates[id(parameter)] == 0.8 * 0.5 ** expected_of_encoder("", name, 0)


class Odd(nn.Module):
    """Names a block that it does not have."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(2, 2)])

    def stacks(self):
        return [Stack(()).under("blocks", 2)]


def test_a_stack_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"the stacks of Odd name blocks\.1, which has no parameters"):
        layer_scales(Odd(), 0.5)


def test_a_model_without_blocks_is_refused():
    sizes = SIZES | {"depth": 0, "temporal_depth": 0}
    with pytest.raises(ConfigError, match=r"layer_decay 0\.8: VideoPrismEncoder has no encoder blocks"):
        layer_scales(build_model(VideoPrismConfig(**sizes)), 0.8)
    assert set(layer_scales(build_model(VideoPrismConfig(**sizes)), 1.0).values()) == {1.0}
