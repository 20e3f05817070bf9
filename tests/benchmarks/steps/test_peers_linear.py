"""Peers of the training steps compute with torch's linear layers, ours with oneDNN's."""

import pytest
import torch

from benchmarks.harness.case import Missing, Options
from benchmarks.steps import train_step
from fastvtp.modules import linear

OPTIONS = Options(torch.device("cpu"), torch.float32, smoke=True)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch is built without oneDNN")
@pytest.mark.parametrize("name", train_step.SMOKE_CASES)
def test_only_ours_asks_onednn(name, monkeypatch):
    asked = []
    product = linear._product
    monkeypatch.setattr(linear, "LEAST_WORK", 0)
    monkeypatch.setattr(linear, "_product", lambda *inputs: asked.append(inputs) or product(*inputs))
    (build,) = train_step.cases(OPTIONS, [name])
    found = {}
    # what torch.compile traces is left to torch on both sides
    for variant, step in build().variants.items():
        if not isinstance(step, Missing) and "compiled" not in variant:
            asked.clear()
            step()
            found[variant] = len(asked)
    assert found.pop("fastvtp") > 0
    assert found, "no peer ran"
    assert found == dict.fromkeys(found, 0)
