from dataclasses import replace

import pytest
import torch

from fastvtp.modules.pixels import CLIP_MEAN, CLIP_STD
from fastvtp.systems.alpro.timesformer import TimeSformer, TimeSformerConfig

CONFIG = TimeSformerConfig(num_frames=3, image_size=32, patch_size=8, width=32, depth=2, num_heads=2, drop_path=0.0)
VIDEO = torch.randint(0, 256, (2, 3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make(config: TimeSformerConfig = CONFIG) -> TimeSformer:
    torch.manual_seed(0)
    model = TimeSformer(config)
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():  # the released zeros would hide what time does
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def plain_forward(model: TimeSformer, video: torch.Tensor) -> torch.Tensor:
    """Section 3.3 of the paper with a loop over locations and frames."""
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    frames = ((video.float() / 255 - mean) / std).flatten(0, 1).permute(0, 3, 1, 2)
    x = torch.nn.functional.conv2d(frames, model.weight[:, :, 0], model.bias, stride=8).flatten(2).transpose(1, 2)
    x = x.unflatten(0, (len(video), -1)) + model.patch_positions + model.time_positions[: video.shape[1], None]
    cls = (model.cls_token + model.cls_position).expand(len(video), -1)

    def attend(attention, tokens):
        query, key, value = attention.project_qkv(tokens).unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
        weights = torch.einsum("qhd,khd->hqk", query, key).div(query.shape[-1] ** 0.5).softmax(-1)
        return attention.proj(torch.einsum("hqk,khd->qhd", weights, value).flatten(1))

    for block in model.blocks:
        for clip in range(len(video)):
            update = torch.stack(
                [attend(block.temporal_attn, block.temporal_norm(x[clip, :, s])) for s in range(x.shape[2])], dim=1
            )
            tokens = x[clip] + block.temporal_fc(update)
            out = torch.stack([attend(block.attn, block.norm1(torch.cat([cls[clip, None], f]))) for f in tokens])
            rows = torch.cat([(cls[clip] + out[:, 0].mean(0))[None], (tokens + out[:, 1:]).flatten(0, 1)])
            rows = rows + block.mlp(block.norm2(rows))
            cls, x = cls.clone(), x.clone()
            cls[clip], x[clip] = rows[0], rows[1:].view_as(tokens)
    return model.norm(torch.cat([cls[:, None], x.flatten(1, 2)], dim=1))


def test_against_loops():
    model = make()
    tokens = plain_forward(model, VIDEO)
    expected = torch.cat([tokens[:, :1], tokens[:, 1:].unflatten(1, (3, 16)).mean(1)], dim=1)
    torch.testing.assert_close(model(VIDEO), expected, rtol=1e-4, atol=1e-5)


def test_the_class_token_alone_is_that_of_the_whole():
    """With its gradients, and with branches that are left out."""
    shown = torch.rand(2, 16, generator=torch.Generator().manual_seed(1)) > 0.5
    model = make(replace(CONFIG, drop_path=0.5)).train()
    found = []
    for class_only in (False, True):
        torch.manual_seed(2)
        cls = model(VIDEO, shown, class_only=class_only)[:, :1]
        model.zero_grad()
        cls.square().sum().backward()
        found.append([cls, *(parameter.grad for parameter in model.parameters())])
    assert model(VIDEO, shown, class_only=True).shape == (2, 1, 32)
    for whole, alone in zip(*found, strict=True):
        torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-4)
    bare = make(replace(CONFIG, depth=0))
    assert torch.equal(bare(VIDEO, class_only=True), bare(VIDEO)[:, :1])


def test_an_image_is_a_clip_of_one_frame():
    model = make()
    tokens = plain_forward(model, VIDEO[:, :1])
    torch.testing.assert_close(model(VIDEO[:, :1]), tokens, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"video must be \[B, 3 or 1, 32, 32, 3\], got \[2, 2, 32, 32, 3\]"):
        model(VIDEO[:, :2])


@pytest.mark.parametrize(("hidden_patches", "colour"), [("grey", CLIP_MEAN), ("black", (0.0, 0.0, 0.0))])
def test_hidden_patches_are_mid_grey_or_black(hidden_patches, colour):
    """Grey: every pixel outside the crop is the mean, so that its normalised value is zero."""
    model = make(replace(CONFIG, hidden_patches=hidden_patches))
    shown = torch.zeros(2, 4, 4, dtype=torch.bool)
    shown[0, 1:3, :2], shown[1, 0, 3] = True, True
    blank = torch.tensor(colour).expand(2, 3, 32, 32, 3)
    pixels = shown.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None, :, :, None]
    expected = model(torch.where(pixels, VIDEO.float() / 255, blank))
    torch.testing.assert_close(model(VIDEO, shown.flatten(1)), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="hidden_patches must be 'grey' or 'black', got 'white'"):
        replace(CONFIG, hidden_patches="white")


def test_time_plays_no_part_at_first():
    torch.manual_seed(0)
    model = TimeSformer(CONFIG)
    model.init_weights()
    torch.testing.assert_close(model(VIDEO), model(VIDEO.flip(1)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(make()(VIDEO), make()(VIDEO.flip(1)), atol=1e-3)


def test_dropped_branches_keep_the_mean():
    model = make(TimeSformerConfig(**{**vars(CONFIG), "drop_path": 0.5})).train()
    assert [block.drop_path for block in model.blocks] == [0.0, 0.5]
    block, branch = model.blocks[1], torch.ones(4, 3, 5, 2)
    dropped = torch.stack([block._drop(branch, (4, 1, 5)) for _ in range(500)])
    assert dropped.unique().tolist() == [0.0, 2.0]
    assert (dropped == dropped[:, :, :1, :, :1]).all()  # a location over all frames and values
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert not torch.equal(model(VIDEO), model(VIDEO))
