"""ALPRO's step in the training-step benchmark: the plain side is the same model, the cost is what is computed."""

import dataclasses

import pytest
import torch

from benchmarks.harness.case import Options
from benchmarks.peers.plain_alpro import PlainAlpro
from benchmarks.steps.alpro_step import LONGEST_CAPTION, alpro_batch, alpro_case, alpro_config, alpro_flops, alpro_model
from benchmarks.steps.step import block_flops
from fastvtp.systems.alpro.model import Alpro
from tests.benchmarks.steps.counting import counted_flops

OPTIONS = Options(torch.device("cpu"), torch.float32, smoke=True)


@pytest.fixture(scope="module")
def sides():
    torch.manual_seed(0)
    model = alpro_model(alpro_config("alpro_base", OPTIONS), OPTIONS.device)
    return model, alpro_batch(model, OPTIONS)


def plain_of(model: Alpro, kernel: str) -> PlainAlpro:
    plain = PlainAlpro(model.config, kernel)
    plain.load_state_dict(model.state_dict())
    return plain


def test_both_sides_are_given_the_same_batch(sides):
    model, batch = sides
    clip, crops, inside, ids, masked_ids, labels, wrong_clip, wrong_text = batch.released
    clips, pad = len(batch.video), model.config.pad_token_id
    real = ids != pad
    assert ids.shape == (clips, LONGEST_CAPTION)
    assert real.sum(dim=1).min() < LONGEST_CAPTION
    assert torch.equal(torch.cat([ids[real], masked_ids[real]]), batch.plan.text_ids)
    hidden = labels != -100
    assert 0 < hidden.sum() == len(batch.plan.word_labels)
    assert torch.equal(labels[hidden], ids[hidden])
    assert torch.equal(ids[~hidden], masked_ids[~hidden])
    patches = crops.abs().amax(dim=(1, 2)).unflatten(1, (-1, 8)).unflatten(3, (-1, 8)).amax(dim=(2, 4))
    assert torch.equal(patches.flatten(1) > 0, inside)
    assert torch.equal(clip.where(crops != 0, 0), crops)
    for wrong in (wrong_clip, wrong_text):
        assert not (wrong == torch.arange(clips)).any()


@pytest.mark.parametrize("kernel", ["manual", "sdpa"])
def test_the_plain_model_has_loss_and_gradients_of_ours(sides, kernel):
    model, batch = sides
    plain = plain_of(model, kernel)
    ours = model(batch.video, batch.plan, negatives=batch.negatives)
    theirs = plain(batch.released)
    assert 0 < ours.terms["entities_ignored"] < 1, "both kinds of crops, or a rule is not tested"
    torch.testing.assert_close(theirs, ours.loss, rtol=1e-5, atol=0)
    model.zero_grad()
    ours.loss.backward()
    theirs.backward()
    expected = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        if name.startswith("prompter."):
            assert parameter.grad is expected[name].grad is None
            continue
        difference = (parameter.grad - expected[name].grad).norm() / expected[name].grad.norm()
        assert difference < 1e-4, name


def test_flops_are_the_products_that_our_model_computes():
    torch.manual_seed(0)
    config = dataclasses.replace(alpro_config("alpro_base", OPTIONS), depth=2, text_depth=2, fusion_depth=2)
    model = alpro_model(config, OPTIONS.device)
    batch = alpro_batch(model, OPTIONS)
    # the mismatched texts are only known on the device: rows for the longest captions stand ready
    lengths = batch.plan.packing.cu_seqlens.diff()[: len(batch.video)]
    spare = int((lengths.max() - lengths).sum())
    width, ratio = config.width, config.text_hidden / config.width
    unused = block_flops(spare, spare, 0, width, ratio) + block_flops(0, spare, 0, width, ratio)
    unused -= 2 * 3 * spare * width**2  # the first block projects no copies
    counted = counted_flops(lambda: model(batch.video, batch.plan, negatives=batch.negatives).loss)
    assert spare > 0
    assert counted == alpro_flops(config, batch) + 3 * unused


def test_the_sizes_are_those_of_the_registry():
    config = alpro_config("alpro_base", Options(OPTIONS.device, OPTIONS.dtype))
    assert (config.width, config.depth, config.num_frames, config.text_depth, config.fusion_depth) == (768, 12, 4, 6, 6)
    assert config.drop_path == config.text_dropout == 0, "they would give every variant a loss of its own"
    assert config.ignore_rule == "official"


def test_variants_share_their_weights():
    case = alpro_case("alpro_base", OPTIONS)
    assert case.shape == {"batch": 3, "frames": 2, "tokens": 33, "pairs": 12}
    for name in ("released", "fastvtp"):
        assert case.error(case.variants[name]()) < 1e-6
        assert case.error(case.variants[name]()) < 1e-6, "a step changed the weights"
