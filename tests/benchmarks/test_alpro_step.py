"""ALPRO's step in the training-step benchmark: the plain side is the same model, the cost is what is computed."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.alpro_step import (
    LONGEST_CAPTION,
    alpro_batch,
    alpro_case,
    alpro_config,
    alpro_flops,
    alpro_model,
    divided_flops,
)
from benchmarks.harness import Options
from benchmarks.plain_alpro import PlainAlpro, PlainTimeSformer
from benchmarks.step import transformer_flops
from fastvtp.models.alpro import Alpro

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
    theirs = plain(*batch.released)
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


def test_flops_of_divided_blocks_are_those_of_the_plain_ones(sides):
    config = sides[0].config
    tower = PlainTimeSformer(config, "manual")
    tokens = torch.zeros(3, 1 + config.num_frames * config.num_patches, config.width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for block in tower.blocks:
            tokens = block(tokens, config.num_frames)
    assert counter.get_total_flops() == divided_flops(config, 3)


def test_flops_are_the_plain_models_less_its_padding(sides):
    """Counted on the plain model with captions that need no padding, whose words are predicted on every row."""
    model, batch = sides
    config, clips = model.config, len(batch.video)
    plain = plain_of(model, "manual")
    with FlopCounterMode(display=False) as counter:
        plain(*batch.released).backward()

    def text_and_fusion(lengths: torch.Tensor) -> int:
        pairs = torch.cat([lengths, lengths, lengths.roll(1), lengths]) + 1 + config.num_patches
        return sum(
            transformer_flops(int(rows.sum()), int((rows**2).sum()), config.width, 1, config.text_hidden / config.width)
            for rows in (lengths.repeat(2), pairs)
        )

    real = (batch.released[3] != config.pad_token_id).sum(dim=1)
    padding = text_and_fusion(torch.full_like(real, LONGEST_CAPTION)) - text_and_fusion(real)
    other_rows = clips * LONGEST_CAPTION - len(batch.plan.word_labels)
    unread = 2 * other_rows * config.width * (config.width + config.vocab_size)
    # the contrast's and the prompts' products of features with one another are not the model's
    similarity = 2 * clips**2 * config.projection_dim
    assert counter.get_total_flops() - 3 * (padding + unread + similarity) == alpro_flops(config, batch)


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
