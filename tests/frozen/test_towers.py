import dataclasses

import pytest
import torch

from fastvtp.errors import UserError
from fastvtp.frozen.towers import evenly_spaced, video_tower
from fastvtp.systems.alpro.towers import AlproTowers
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.videomae.classifier import VideoClassifierConfig
from fastvtp.systems.videoprism.encoder import PrismClassifierConfig
from fastvtp.systems.videoprism.video_text import VideoTextPrismConfig
from tests.frozen.towers import (
    CONFIGS,
    make_clips,
    make_tower_model,
)


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_are_those_of_the_model(name):
    model, video = make_tower_model(name), make_clips(2)
    tower = video_tower(model)
    seen = []
    for block in tower.blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        features = tower.encode_layers(video, (0, 2))
        output = model.video_tokens(video) if name == "videomae" else model(video)
    tokens = 32 if name == "videomae" else 64
    assert features.shape == (2, 3, tokens, 32)
    for place, layer in enumerate((0, 2)):
        torch.testing.assert_close(features[:, place].flatten(0, 1), seen[layer])
    torch.testing.assert_close(features[:, 2], output)
    assert features[:, 2].sub(features[:, 1]).abs().max() > 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_pooling_goes_by_time_slots(name):
    tower, video = video_tower(make_tower_model(name)), make_clips(1)
    with torch.no_grad():
        tokens, frames, mean = (tower.encode_layers(video, pool=pool) for pool in ("none", "frames", "mean"))
    time, height, width = tower.grid
    torch.testing.assert_close(frames[0, 0, -1], tokens[0, 0, -height * width :].mean(0))
    assert frames.shape == (1, 1, time, 32)
    torch.testing.assert_close(mean[0, 0, 0], tokens[0, 0].mean(0))


def test_the_tower_of_a_fine_tuned_and_of_a_video_text_model():
    classifier = build_model(
        VideoClassifierConfig(
            num_frames=4, image_size=32, tubelet=(2, 8, 8), width=32, depth=1, num_heads=2, num_classes=3
        )
    )
    assert video_tower(classifier).encode_layers(make_clips(1)).shape == (1, 1, 32, 32)
    sizes = dataclasses.asdict(CONFIGS["videoprism"])
    lvt = VideoTextPrismConfig(**sizes, vocab_size=20, text_depth=1, auxiliary_depth=1)
    for config, part in ((lvt, "video_encoder"), (PrismClassifierConfig(**sizes, num_classes=3), "encoder")):
        model = build_model(config)
        expected = getattr(model, part)(make_clips(1))
        assert torch.equal(video_tower(model).encode_layers(make_clips(1))[:, 0], expected)


def test_one_line_where_nothing_fits():
    tower = video_tower(make_tower_model())
    with pytest.raises(UserError, match=r"layers must ascend and be from 0 to 2, got \[0, 3\]"):
        tower.encode_layers(make_clips(1), (0, 3))
    with pytest.raises(UserError, match=r"must ascend .* got \[1, 0\]"):
        tower.check_layers((1, 0))
    with pytest.raises(UserError, match="pool must be one of none, frames, mean, got 'max'"):
        tower.encode_layers(make_clips(1), pool="max")
    with pytest.raises(UserError, match="AlproTowers has no tokens of a clip"):
        video_tower(AlproTowers.__new__(AlproTowers))


def test_layers_in_even_steps():
    assert evenly_spaced(12, 3) == (2, 5, 8)
    assert evenly_spaced(16, 3) == (3, 7, 11)
    assert evenly_spaced(4, 3) == (0, 1, 2)
    assert evenly_spaced(4, 0) == ()
    with pytest.raises(UserError, match="fewer layers than the tower's 3 blocks, got 3"):
        evenly_spaced(3, 3)
