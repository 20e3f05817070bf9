"""Learned temperatures keep within their bounds, and come back from there."""

import json
import logging
import math
import shutil

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastvtp.model_folder import load_pretrained, write_model_folder
from fastvtp.modules.bounds import clamp_parameters, within_bounds
from fastvtp.modules.contrast import Contrast, ContrastConfig
from fastvtp.modules.losses import video_text_contrast
from fastvtp.systems.alpro.towers import AlproTowers
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.loop import train
from tests.checkpoints.names import tiny_model
from tests.evaluation.test_matching import CONFIG

BOUND = math.log(100)


def contrast(**settings) -> Contrast:
    torch.manual_seed(0)
    module = Contrast(ContrastConfig(projection_dim=6, contrastive_directions="mean", **settings), 6)
    module.init_weights()
    return module


def features(rows: int = 13) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 6, generator=generator), torch.randn(rows, 6, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [-30_000.0, -1.0, -0.3, 0.25, 20.0, 50.0])
def test_a_value_beyond_its_bounds_is_the_bound_itself_in_any_dtype(dtype, value):
    module = torch.nn.Module()
    module.parameter_bounds = {"scale": (0.001, 0.5)}
    module.scale = torch.nn.Parameter(torch.tensor(value, dtype=dtype))
    found = within_bounds(module, "scale")
    assert torch.equal(found, torch.tensor(value, dtype=dtype).clamp(0.001, 0.5))
    found.backward()
    assert module.scale.grad == 1


@pytest.mark.parametrize("beyond", [0.001, 0.4, 3.0])
def test_the_scale_comes_back_from_its_bound(beyond):
    """Unrelated pairs want a softer contrast: the derivative at 100 is that of plain cross-entropy there."""
    module, (text, video) = contrast(learnable_temperature=True), features()
    with torch.no_grad():
        module.log_logit_scale.fill_(BOUND + beyond)
    loss = module(text, video)
    loss.backward()
    cosines, scale = normalize(text, dim=1) @ normalize(video, dim=1).T, torch.tensor(100.0, requires_grad=True)
    rows = torch.arange(len(text))
    expected = (cross_entropy(scale * cosines, rows) + cross_entropy(scale * cosines.T, rows)) / 2
    (slope,) = torch.autograd.grad(expected, scale)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.log_logit_scale.grad, 100 * slope, rtol=1e-4, atol=1e-4)

    optimizer = torch.optim.SGD([module.log_logit_scale], lr=1e-3)
    optimizer.step()
    clamp_parameters(module)
    for _ in range(3):
        optimizer.zero_grad()
        module(text, video).backward()
        optimizer.step()
        clamp_parameters(module)
    assert module.logit_scale().item() < 99


def test_the_temperature_of_alpro_is_the_releases_at_every_forward():
    """The release brings the parameter itself back under no_grad at the beginning of each forward."""
    model = AlproTowers(CONFIG)
    model.init_weights()
    released = torch.nn.Parameter(torch.tensor(model.config.temperature))
    optimizers = [torch.optim.SGD([parameter], lr=0.3) for parameter in (model.temperature, released)]
    text = normalize(features(5)[0], dim=1)
    seen = set()
    for step in range(24):
        right = text.roll(1, 0) if step % 12 < 6 else text  # at first wrong clips are the nearest, then right ones
        with torch.no_grad():
            released.clamp_(0.001, 0.5)
        expected = video_text_contrast(text, right, 1 / released)
        loss = model.contrast(text, right, None)
        assert torch.equal(model.logit_scale(), 1 / released)
        assert torch.equal(loss, expected)
        for optimizer, value in zip(optimizers, (loss, expected), strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        clamp_parameters(model)
        seen.add(round(released.clamp(0.001, 0.5).item(), 4))
    assert {0.001, 0.5} <= seen


def test_a_forward_changes_no_parameter():
    model = AlproTowers(CONFIG)
    model.init_weights()
    with torch.no_grad():
        model.temperature.fill_(0.9)
    scale = model.logit_scale()
    assert scale.item() == pytest.approx(2.0)
    assert model.temperature.item() == pytest.approx(0.9)
    clamp_parameters(model)
    assert model.temperature.item() == 0.5


def test_the_average_of_bounded_weights_is_bounded():
    module = contrast(learnable_temperature=True)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.7))
    for _ in range(12):
        with torch.no_grad():
            module.log_logit_scale.add_(1.3)
        clamp_parameters(module)
        averaged.update_parameters(module)
        assert averaged.module.log_logit_scale.item() <= BOUND + 1e-6


def test_weights_beyond_the_bound_are_opened_as_they_are_and_count_as_it(tmp_path, caplog):
    source = tiny_model("simvtp", 1, projection_dim=6, learnable_temperature=True)
    with torch.no_grad():
        source.contrast.log_logit_scale.fill_(5.5)
    write_model_folder(tmp_path, source, "simvtp")
    with caplog.at_level(logging.WARNING):
        model = load_pretrained(tmp_path)
    assert model.contrast.log_logit_scale.item() == 5.5
    assert model.contrast.logit_scale().item() == pytest.approx(100)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.endswith("contrast.log_logit_scale is 5.5, and counts as the nearest of its bounds -inf, 4.60517")


def test_a_fixed_temperature_is_what_was_asked_for():
    assert contrast(temperature=0.004).logit_scale().item() == pytest.approx(250)
    with pytest.raises(ValueError, match=r"temperature must be at least 0\.01 where it is learned, got 0\.004"):
        ContrastConfig(temperature=0.004, learnable_temperature=True).check_contrast()


def test_a_run_brings_the_temperature_back_and_writes_it_down(tiny_settings, tmp_path, caplog):
    """From weights beyond the bound on, with a rate of 0.5 at which every step would leave it far behind."""
    settings = [*tiny_settings, "data.test=none", "steps=7", "ema_decay=0.5"]
    first = train(apply_overrides(get_recipe("simvtp_demo"), settings), progress_bar=False).model
    with torch.no_grad():
        first.contrast.log_logit_scale.fill_(7.0)
    write_model_folder(tmp_path / "start", first, "simvtp")
    shutil.copy(tmp_path / "run" / "model" / "tokenizer.json", tmp_path / "start")
    settings += [f"init={tmp_path / 'start'}", f"output_dir={tmp_path / 'second'}"]
    settings += ["optimizer.learning_rate=0.5", "optimizer.warmup_steps=1", "optimizer.clip_norm=none"]
    result = train(apply_overrides(get_recipe("simvtp_demo"), settings), progress_bar=False)
    assert "contrast.log_logit_scale is 7, and counts as" in caplog.text
    folder = result.model_dir.parent
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(record["temperature"] >= 0.01 * (1 - 1e-5) for record in records)
    assert len({record["temperature"] for record in records}) > 1
    assert result.model.contrast.log_logit_scale.item() <= BOUND + 1e-6
