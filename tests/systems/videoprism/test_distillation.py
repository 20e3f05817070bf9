"""The second stage's student: what it sees, what it is asked for, and what its flags leave out."""

import pytest
import torch

from fastvtp.modules.packing import Packing
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.videoprism.distillation import PrismStudent, PrismStudentConfig

SIZES = {
    "num_frames": 4,
    "image_size": 32,
    "patch_size": 8,
    "width": 24,
    "depth": 2,
    "temporal_depth": 1,
    "num_heads": 2,
    "mlp_hidden": 48,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
    "decoder_hidden": 32,
    "mask_min_cells": 2,
}
IDS = torch.tensor([4, 1, 7])


def student(**options) -> PrismStudent:
    torch.manual_seed(0)
    model = build_model(PrismStudentConfig(**SIZES, **options)).train()
    model.start_from_teacher()
    return model


@pytest.fixture
def video():
    return torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def masked_places(plan, tokens: int) -> torch.Tensor:
    """bool [B, L], True where hidden."""
    return torch.zeros(len(plan.masked), tokens, dtype=torch.bool).scatter_(1, plan.masked.long(), True)


@pytest.mark.parametrize("ratio", [0.5, 0.65, 0.8])
def test_block_masks_have_one_count_and_are_runs_of_blocks(ratio):
    config = PrismStudentConfig(num_frames=8, image_size=288, width=16, num_heads=2, mlp_hidden=16, mask_ratio=ratio)
    with torch.device("meta"):
        model = PrismStudent(config)
    model.to_empty(device="cpu")
    plan = model.plan(torch.arange(16), seed=3, step=0)
    hidden = masked_places(plan, 2048)
    assert (hidden.sum(dim=1) == round(ratio * 2048)).all()
    assert plan.visible.index.shape == (16, 2048 - round(ratio * 2048))
    # neighbours in space and in time share their fate far more often than places drawn one by one would
    grid = hidden.view(16, 8, 16, 16)
    for axis, chance in ((1, 0.72), (2, 0.8), (3, 0.8)):
        same = (grid == grid.roll(1, axis)).float().mean()
        assert same > chance > ratio**2 + (1 - ratio) ** 2
    # and no place is hidden in all frames as it would be in a tube
    assert (grid.any(dim=1) & ~grid.all(dim=1)).any()


@pytest.mark.parametrize("mask", ["block_tube", "tube"])
def test_masks_and_orders_are_those_of_sample_and_step(mask):
    model = student(mask=mask)
    plan, alone = model.plan(IDS, seed=2, step=5), model.plan(IDS[1:2], seed=2, step=5)
    assert torch.equal(plan.visible.index[1], alone.visible.index[0])
    assert torch.equal(plan.order[1], alone.order[0])
    for other in (model.plan(IDS, seed=2, step=6), model.plan(IDS, seed=3, step=5)):
        assert not torch.equal(plan.visible.index, other.visible.index)
        assert not torch.equal(plan.order, other.order)


def test_the_student_sees_visible_tokens_alone(video):
    """Whatever stands in the hidden patches; all of them together change the teacher."""
    model = student().eval()
    plan = model.plan(IDS, seed=0, step=0)
    hidden = masked_places(plan, 64).view(3, 4, 4, 4)
    pixels = hidden.repeat_interleave(8, 2).repeat_interleave(8, 3)[..., None]
    other = torch.where(pixels, 255 - video, video)
    tokens, again = model(video, plan).tokens, model(other, plan).tokens
    assert torch.equal(tokens, again)
    assert not torch.equal(model.teacher(video)[0], model.teacher(other)[0])


def test_visible_tokens_are_those_of_an_encoder_whose_other_tokens_are_no_keys(video):
    """Dense attention in which masked tokens are present and asked by none."""
    model = student().eval()
    plan = model.plan(IDS, seed=0, step=0)
    shown = ~masked_places(plan, 64)
    with torch.no_grad():
        dense = dense_encoder(model.encoder, video, shown)
        tokens = model(video, plan).tokens
    for row in range(3):
        torch.testing.assert_close(tokens[row], dense[row][shown[row]], rtol=1e-4, atol=1e-5)


def dense_encoder(encoder, video, shown):
    """[B, L, D] of all tokens, softmax over the shown ones of the frame, then of the place, by plain products."""
    config = encoder.config
    patches = video.float().div(255).unfold(2, 8, 8).unfold(3, 8, 8)  # [B, T, h, w, C, p, q]
    x = torch.einsum("bthwcpq,dcpq->bthwd", patches, encoder.weight[:, :, 0]) + encoder.bias
    x = x.flatten(2, 3) + encoder.spatial_positions
    keys = shown.view(*x.shape[:3])
    x = dense_stack(encoder.spatial, x, keys, config)
    x = (x + encoder.temporal_positions[:, None]).transpose(1, 2)
    return dense_stack(encoder.temporal, x, keys.transpose(1, 2), config).transpose(1, 2).flatten(1, 2)


def dense_stack(stack, x, keys, config):
    """x: [B, sequences, tokens, D]; keys: bool [B, sequences, tokens]."""
    for block in stack.blocks:
        qkv = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, config.num_heads, -1))
        query, key, value = (part.transpose(2, 3) for part in qkv.unbind(3))
        logits = query @ key.mT / query.shape[-1] ** 0.5
        logits = config.softcap * (logits / config.softcap).tanh()
        weights = logits.masked_fill(~keys[:, :, None, None], -1e30).softmax(dim=-1)
        x = x + block.attn.proj((weights @ value).transpose(2, 3).flatten(3))
        x = x + block.mlp(block.norm2(x))
    return stack.norm(x)


def test_the_teacher_sees_everything_and_learns_nothing(video):
    model = student()
    assert not model.teacher.training
    model(video, model.plan(IDS, seed=0, step=0)).loss.backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert expected == learned


def test_targets_stand_at_their_own_places_in_any_order(video):
    """The token loss of a decoder that hands on what it is given is what plain indexing makes of it."""
    for options in ({}, {"shuffle_tokens": False}, {"shuffle_per": "batch"}):
        model = student(**options).eval()
        plan = model.plan(IDS, seed=0, step=0)
        local = model.local_decoder
        seen = torch.randn(3, plan.visible.index.shape[1], 24)
        with torch.no_grad():
            made = local(seen, visible=plan.visible.index, masked=plan.masked, order=plan.order)
            pool = torch.cat([local.project(seen), local.mask_token.expand(*plan.masked.shape, -1)], dim=1)
            order = plan.order.expand(3, -1)
            sequence = torch.stack([pool[row, order[row]] for row in range(3)]) + local.positions
            decoded = local.transformer(sequence.flatten(0, 1), Packing.uniform(3, 64))
            torch.testing.assert_close(made, local.head(decoded).view(3, 64, -1))


def test_without_shuffling_each_token_stands_at_its_place():
    model = student(shuffle_tokens=False)
    plan = model.plan(IDS, seed=0, step=0)
    places = torch.cat([plan.visible.index, plan.masked], dim=1)
    restored = places.gather(1, plan.order)
    assert torch.equal(restored, torch.arange(64).int().expand(3, -1))
    shuffled = student().plan(IDS, seed=0, step=0)
    assert (places.gather(1, shuffled.order) == torch.arange(64)).float().mean() < 0.2


def test_one_order_for_the_batch_is_one_order():
    plan = student(shuffle_per="batch").plan(IDS, seed=0, step=0)
    assert sorted(plan.order.tolist()) == list(range(64))
    assert not torch.equal(plan.order, student(shuffle_per="batch").plan(IDS, seed=0, step=1).order)


def test_a_weight_of_zero_leaves_its_decoder_out(video):
    local = student(global_weight=0.0)
    assert local.global_decoder is None
    output = local(video, local.plan(IDS, seed=0, step=0))
    assert set(output.terms) == {"loss/token"}
    called = []
    local.teacher.pooler.register_forward_hook(lambda *_: called.append(1))
    local(video, local.plan(IDS, seed=0, step=0))
    assert not called
    other = student(token_weight=0.0, global_weight=2.0)
    assert other.local_decoder is None
    output = other(video, other.plan(IDS, seed=0, step=0))
    assert output.loss.item() == pytest.approx(2 * output.terms["loss/global"].item())


def test_the_losses_are_weighed(video):
    model = student(token_weight=0.5, global_weight=3.0)
    output = model(video, model.plan(IDS, seed=0, step=0))
    expected = 0.5 * output.terms["loss/token"] + 3 * output.terms["loss/global"]
    torch.testing.assert_close(output.loss.detach(), expected)


def test_the_global_decoder_knows_no_order(video):
    model = student().eval()
    tokens = torch.randn(2, 9, 24)
    with torch.no_grad():
        torch.testing.assert_close(model.global_decoder(tokens), model.global_decoder(tokens.flip(1)))


def test_clips_of_another_length_are_refused(video):
    model = student()
    with pytest.raises(ValueError, match=r"clips must make \(4, 4, 4\) tokens .*, got \(2, 4, 4\)"):
        model(video[:, :2], model.plan(IDS, seed=0, step=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "cube"}, "mask must be 'block_tube' or 'tube', got 'cube'"),
        ({"mask_ratio": 1.0}, r"mask_ratio must be in \[0, 1\), got 1.0"),
        ({"mask_aspect": (2.0, 1.0)}, r"mask_aspect must be 0 < least <= greatest, got \(2.0, 1.0\)"),
        ({"mask_run": (0.5, 1.5)}, "mask_run must be 0 < least <= greatest <= 1"),
        ({"token_weight": 0.0, "global_weight": 0.0}, "token_weight and global_weight are both 0"),
        ({"decoder_width": 18, "decoder_num_heads": 4}, "decoder_num_heads 4 does not divide the decoder_width 18"),
        ({"shuffle_per": "clip"}, "shuffle_per must be 'sample' or 'batch'"),
        ({"auxiliary_depth": -1}, "auxiliary_depth must not be negative, got -1"),
    ],
)
def test_bad_settings_are_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        PrismStudentConfig(**{**SIZES, **options})


def test_a_projector_may_have_two_layers(video):
    model = student(projector="mlp")
    assert len(model.local_decoder.project) == 3
    model(video, model.plan(IDS, seed=0, step=0)).loss.backward()
    assert model.local_decoder.project[2].weight.grad.abs().max() > 0
