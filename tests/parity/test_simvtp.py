"""The model against arrays of the released code, where padding rows play no part.

The released text means include [PAD] rows, so VTC and VTM are compared through the joint pass they rest on.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastvtp.checkpoints.simvtp import rename_simvtp
from fastvtp.models.simvtp import SimVTP, SimVTPConfig
from fastvtp.models.videomae import IMAGENET_MEAN, IMAGENET_STD
from fastvtp.training.config import OptimizerConfig
from fastvtp.training.optimizer import learning_rate_at
from fastvtp_kernels import TubeMask

ARRAYS = Path(__file__).parent / "arrays" / "simvtp"


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def run():
    description = json.loads((ARRAYS / "config.json").read_text())
    inputs, expected = load_file(ARRAYS / "inputs.safetensors"), load_file(ARRAYS / "outputs.safetensors")
    config = SimVTPConfig(
        num_frames=description["frames"], image_size=description["img"],
        tubelet=(description["tubelet"], description["patch"], description["patch"]),
        width=description["dim"], depth=description["depth"], num_heads=description["heads"],
        decoder_width=description["ddim"], decoder_depth=description["ddepth"], decoder_num_heads=description["dheads"],
        vocab_size=description["vocab"], max_text_length=description["maxpos"],
        mask_token_id=description["special_ids"]["MASK"], special_token_ids=tuple(description["special_ids"].values()),
    )  # fmt: skip
    model = SimVTP(config)
    model.init_weights()
    model.load_state_dict(rename_simvtp(load_file(ARRAYS / "state_dict.safetensors")))
    model.eval()

    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    video = (inputs["video"] * std + mean).permute(0, 2, 3, 4, 1).contiguous()
    batch = len(video)
    tokens = torch.arange(inputs["video_mask"].shape[1], dtype=torch.int32).expand(batch, -1)
    tube = TubeMask(
        tokens[~inputs["video_mask"]].view(batch, -1).contiguous(),
        tokens[inputs["video_mask"]].view(batch, -1).contiguous(),
    )
    real = inputs["attention_mask"].bool()
    hidden = inputs["mlm_labels"] != -100
    plan = model.assemble_plan(
        tube,
        inputs["input_ids_unmasked"][real],
        hidden[real],
        real.sum(1).numpy(),
        inputs["vtm_neg_idx"].numpy(),
        torch.arange(batch),
    )
    output = model(video, plan)
    return model, plan, output, expected, hidden


def test_predictions(run):
    model, _, output, expected, hidden = run
    assert relative_error(output.pixel_prediction, expected["decoder_pred"]) < 1e-5
    assert relative_error(model.word_head(output.word_features), expected["mlm_logits"][hidden]) < 1e-5


def test_gradients_of_the_reconstruction_heads(run):
    """What the other two losses do not reach: the decoder and the word head."""
    model, _, output, expected, _ = run
    heads = {
        "grad.decoder.head.bias": model.decoder.head.bias,
        "grad.encoder_to_decoder.weight": model.decoder.project.weight,
        "grad.mask_token": model.decoder.mask_token,
        "grad.text_cls.weight": model.word_head.weight,
    }
    gradients = torch.autograd.grad(output.loss, list(heads.values()), retain_graph=True)
    for name, gradient in zip(heads, gradients, strict=True):
        assert relative_error(gradient.flatten(), expected[name].flatten()) < 1e-5, name


@pytest.mark.parametrize(("term", "name"), [("loss/pixel", "loss_video"), ("loss/word", "loss_text")])
def test_losses(run, term, name):
    _, _, output, expected, _ = run
    assert output.terms[term].item() == pytest.approx(expected[name].item(), rel=1e-5)


def test_learning_rate_schedule():
    expected = load_file(ARRAYS / "outputs.safetensors")["lr_schedule"].numpy()
    config = OptimizerConfig(learning_rate=1.5e-4, final_learning_rate=1e-5, warmup_steps=8)
    actual = [learning_rate_at(step, len(expected), config) for step in range(len(expected))]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-12)
