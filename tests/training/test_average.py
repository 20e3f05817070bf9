import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastvtp.training.average import WeightAverage


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(7, 33), nn.Linear(33, 5)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("count", torch.zeros(2))
        self.second.weight.requires_grad_(False)


def step(model: Model, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator)
        model.count += 1


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_equals_that_of_torch_bit_for_bit(decay):
    torch.manual_seed(0)
    model, generator = Model(), torch.Generator().manual_seed(1)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average = WeightAverage(model, decay)
    for updates in range(1, 6):
        step(model, generator)
        theirs.update_parameters(model)
        average.update()
        assert average.updates == updates
        expected = dict(theirs.module.named_parameters())
        assert average.tensors.keys() == expected.keys() - {"second.weight"}
        for name, tensor in average.tensors.items():
            assert torch.equal(tensor, expected[name]), name
    assert not torch.equal(average.tensors["scale"], model.scale)

    average.copy_to_model()
    for name, tensor in theirs.module.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert not model.second.weight.requires_grad
    assert model.first.weight.requires_grad


def test_follows_the_definition():
    model = Model()
    average = WeightAverage(model, 0.75)
    for value in (4.0, 8.0, 16.0):
        with torch.no_grad():
            model.scale.fill_(value)
        average.update()
    assert average.tensors["scale"].item() == 0.75 * (0.75 * 4 + 0.25 * 8) + 0.25 * 16
    assert model.scale.item() == 16
