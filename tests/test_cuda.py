"""The road on a GPU. Skipped without one: every part also has its own test on the CPU."""

import pytest
import torch

from fastvtp import runs
from fastvtp.data.pipeline import has_nvdec
from fastvtp.systems.recipes import get_recipe
from fastvtp.training.config import apply_overrides
from fastvtp.training.loop import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def configure(settings, *more):
    return apply_overrides(get_recipe("simvtp_demo"), [*settings, "device=cuda", *more])


@pytest.mark.parametrize("decoder", ["pyav", "dali"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pretrain_and_score(tiny_settings, decoder, precision):
    if decoder == "dali" and not has_nvdec():
        pytest.skip("the driver has no libnvcuvid")
    config = configure(tiny_settings, f"data.decoder={decoder}", f"precision={precision}", "data.num_workers=1")
    report = runs.pretrain(config, progress_bar=False)
    assert report["num_test"] == 8
    assert report["bad_files"]["count"] == 0


def test_same_losses_as_on_the_cpu(tiny_settings, tmp_path):
    """Initialised alike, fed alike (PyAV decodes on both), masked alike: only rounding may differ."""
    settings = [*tiny_settings, "model.text_dropout=0", "data.decoder=pyav", "steps=2"]
    gpu = train(configure(settings, f"output_dir={tmp_path / 'gpu'}"), progress_bar=False)
    cpu_config = apply_overrides(get_recipe("simvtp_demo"), [*settings, f"output_dir={tmp_path / 'cpu'}"])
    cpu = train(cpu_config, progress_bar=False)
    assert gpu.metrics["loss"] == pytest.approx(cpu.metrics["loss"], rel=0.05)


def test_a_run_repeats_bit_for_bit(tiny_settings, tmp_path):
    weights = []
    for name in ("a", "b"):
        result = train(configure(tiny_settings, f"output_dir={tmp_path / name}"), progress_bar=False)
        weights.append((result.model_dir / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
