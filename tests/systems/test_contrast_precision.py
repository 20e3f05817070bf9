"""`contrast_precision` reaches whatever compares the features of a batch."""

import sys

import pytest
import torch
from torch.nn.functional import normalize

import fastvtp
from fastvtp.modules import losses
from fastvtp.modules.rest_of_step import ALONE
from fastvtp.systems.alpro.finetuning import AlproRetrievalConfig
from fastvtp.systems.alpro.fusion import AlproFusion
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.simvtp.model import SimVTP
from tests.systems.alpro.test_negatives import SIZES as ALPRO
from tests.systems.simvtp.test_model import SMALL as SIMVTP


def simvtp(**overrides):
    return fastvtp.create_model("simvtp_tiny", **SIMVTP, matching_negatives="hard", **overrides)


def alpro(**overrides):
    return build_model(AlproRetrievalConfig(**ALPRO, **overrides))


def noting(run, asked):
    def noted(*args, precision=None, **options):
        asked.append(precision)
        return run(*args, precision=precision, **options)

    return noted


@pytest.mark.parametrize(("build", "kind"), [(simvtp, SimVTP), (alpro, AlproFusion)])
@pytest.mark.parametrize(("setting", "expected"), [("auto", None), ("float32", "float32"), ("bf16x3", "bf16x3")])
def test_the_contrast_and_its_hard_negatives_multiply_as_the_setting_says(build, kind, setting, expected, monkeypatch):
    model, asked = build(contrast_precision=setting), []
    for module, name in ((losses, "contrastive_loss"), (sys.modules[kind.__module__], "hard_negatives")):
        monkeypatch.setattr(module, name, noting(getattr(module, name), asked))
    compared = (model.contrast if kind is SimVTP else model).compared(
        *(normalize(torch.randn(4, 16), dim=1) for _ in range(2))
    )
    ALONE.contrast(compared, torch.arange(4))
    model.draw_wrong(compared, torch.arange(4), seed=0, step=0)
    assert asked == [expected, expected]


@pytest.mark.parametrize("build", [simvtp, alpro])
def test_another_precision_is_one_line(build):
    with pytest.raises(ValueError, match=r"contrast_precision must be .*, got 'half'"):
        build(contrast_precision="half")
