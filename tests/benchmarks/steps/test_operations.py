"""What a step dispatches, counted on fake tensors."""

import pytest

pytest.importorskip("triton")

from benchmarks.steps.operations import PRESETS, count
from fastvtp.systems.catalogue import model_config

SMALL = {"width": 32, "depth": 2, "num_heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_num_heads": 1}


@pytest.mark.parametrize("preset", PRESETS)
def test_no_backward_pass_of_simvtp_sorts(preset):
    """Gradients of rows find back by the lists of a plan, and not by a look-up's own backward, which sorts on CUDA."""
    config = model_config("simvtp_base", preset=preset, **SMALL, text_dropout=0.0)
    found = count(config, 16)
    assert found.named("sum_rows_reference") >= 5
    assert found.named("masked_pixel_loss") == 1
    unwanted = ("embedding_dense_backward", "sort", "argsort", "index_put_", "scatter_add_")
    assert {name: found.backward[f"aten::{name}"] for name in unwanted} == dict.fromkeys(unwanted, 0)
