import pytest
import torch

from fastvtp.errors import UserError
from fastvtp.frozen.adapters import ProbedTower, TowerTap
from fastvtp.frozen.probes import ProbeConfig, build_probe
from fastvtp.frozen.towers import video_tower
from tests.frozen.towers import (
    CONFIGS,
    make_clips,
    make_tower_model,
)


def make(name="videoprism", adapter_dim=4, layers=(), **settings):
    tower = video_tower(make_tower_model(name))
    probe = build_probe(ProbeConfig(width=32, num_outputs=3, num_heads=2, head_dim=8, num_layers=len(layers) + 1))
    return tower, ProbedTower(tower, probe, TowerTap(layers, adapter_dim), **settings).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_it_starts_as_the_frozen_tower_and_learns_in_every_block(name):
    tower, probed = make(name, layers=(0,))
    video = make_clips(2)
    probe = probed.probe
    bare = probe(video_tower(make_tower_model(name)).encode_layers(video, (0,)))
    assert torch.equal(probed(video), bare)
    before = {key: value.clone() for key, value in tower.model.state_dict().items()}
    optimizer = torch.optim.Adam(probed.parameters(), lr=0.01)
    for _ in range(2):  # in the first step only the zeros of `up` move
        optimizer.zero_grad()
        probed(video).square().sum().backward()
        optimizer.step()
    assert len(probed.adapters) == 2 * len(tower.blocks)
    for adapter in probed.adapters:
        assert adapter.up.weight.grad.abs().max() > 0
        assert adapter.down.weight.grad.abs().max() > 0
    assert not torch.allclose(probed(video), bare)
    assert all(torch.equal(value, before[key]) for key, value in tower.model.state_dict().items())
    assert all(parameter.grad is None for parameter in tower.model.parameters())


def test_the_tower_is_no_part_of_it_and_is_left_as_it_was():
    tower, probed = make()
    video = make_clips(1)
    frozen = {id(parameter) for parameter in tower.model.parameters()}
    assert frozen.isdisjoint(id(parameter) for parameter in probed.parameters())
    assert {name.split(".")[0] for name in probed.state_dict()} == {"probe", "adapters"}
    torch.nn.init.normal_(probed.adapters[0].up.weight)
    adapted = tower.encode_layers(video)
    probed.detach()
    bare = video_tower(make_tower_model()).encode_layers(video)
    assert torch.equal(tower.encode_layers(video), bare)
    assert not torch.allclose(adapted, bare)


def test_without_adapters_the_probe_alone_learns():
    tower, probed = make(adapter_dim=None, pool="frames")
    seen = []
    probed.probe.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    probed(make_clips(2)).sum().backward()
    assert seen[0].shape == (2, 1, 4, 32)
    assert not seen[0].requires_grad
    assert probed.probe.head.weight.grad is not None
    assert not any(parameter.requires_grad for parameter in tower.model.parameters())


def test_wrong_settings_are_one_line():
    with pytest.raises(UserError, match="adapter_dim must be positive, got 0"):
        make(adapter_dim=0)
    with pytest.raises(UserError, match="layers must ascend"):
        make(layers=(7,))
