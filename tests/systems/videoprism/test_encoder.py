"""VideoPrism's encoder against dense attention with masks: visible tokens, padded frames, positions, gradients."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastvtp.checkpoints.loading import load_checkpoint
from fastvtp.modules.positions import resize_positions
from fastvtp.systems.catalogue import build_model
from fastvtp.systems.videoprism.encoder import VideoPrismConfig, VideoPrismEncoder
from fastvtp.systems.videoprism.visible import lay_out_visible
from tests.parity.prism_replica import (
    norm,
    resizing,
    transformer,
)
from tests.systems.videoprism.sizes import SIDE, SIZES

ENCODER = Path(__file__).parents[2] / "parity" / "arrays" / "videoprism" / "encoder" / "params.safetensors"
GRID, CAP = (4, 4, 4), 50.0


@pytest.fixture(scope="module")
def encoder() -> VideoPrismEncoder:
    """With the parity folder's weights, whose attention is sharp and whose cap matters."""
    model = build_model(VideoPrismConfig(**SIZES)).eval()
    load_checkpoint(model, ENCODER)
    return model


@pytest.fixture
def video() -> Tensor:
    """uint8 [2, 4, 24, 24, 3]."""
    return torch.randint(0, 256, (2, 4, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def dense(video: Tensor, listed: Tensor) -> Tensor:
    """All tokens by the released arrays in float64, those that are not `listed`, bool [B, T*S], hidden from others."""
    w = {name.removeprefix("params/"): array.double() for name, array in load_file(ENCODER).items()}
    (batch, frames), places = video.shape[:2], GRID[1] * GRID[2]
    patches = (video.double() / 255).view(batch * frames, 4, 6, 4, 6, 3).transpose(2, 3).reshape(batch * frames, 16, -1)
    x = patches @ w["patch_projection/linear/kernel"] + w["patch_projection/linear/bias"] + w["spatial_pos_emb/emb_var"]
    hidden = (~listed).double()
    x = transformer(w, "spatial_encoder/transformers_stack", x, CAP, hidden.view(batch * frames, places))[-1]
    x = norm(w, "spatial_ln", x).view(batch, frames, places, -1).transpose(1, 2).flatten(0, 1)
    x = x + resizing(4, frames) @ w["temporal_pos_emb/emb_var"]
    along = hidden.view(batch, frames, places).transpose(1, 2).flatten(0, 1)
    x = norm(w, "temporal_ln", transformer(w, "temporal_encoder/transformers_stack", x, CAP, along)[-1])
    return x.view(batch, places, frames, -1).transpose(1, 2).flatten(1, 2)


def ragged() -> Tensor:
    """Any tokens, none of the second frame of the first clip and none of a place of the second."""
    generator = torch.Generator().manual_seed(1)
    first = [token for token in range(64) if token // 16 != 1]
    second = [token for token in range(64) if token % 16 != 5]
    picks = [torch.tensor(tokens)[torch.randperm(len(tokens), generator=generator)[:23]] for tokens in (first, second)]
    return torch.stack(picks).sort(dim=1).values.int()


def tubes() -> Tensor:
    """Other places in each clip, the same in every frame."""
    places = torch.tensor([[0, 3, 5, 6, 15], [1, 2, 9, 12, 13]])
    return (torch.arange(4)[None, :, None] * 16 + places[:, None]).flatten(1).int()


def listed_in(index: Tensor) -> Tensor:
    return torch.zeros(len(index), 64, dtype=torch.bool).scatter(1, index.long(), True)


@pytest.mark.parametrize(
    "layout", [ragged, tubes, lambda: torch.arange(64).expand(2, -1).int(), lambda: torch.tensor([[7], [63]]).int()]
)
@torch.no_grad()
def test_visible_tokens_see_one_another_alone(layout, encoder, video):
    index = layout()
    visible = encoder.plan(index)
    tokens = encoder(video, visible=visible)
    wanted = dense(video, listed_in(index))[listed_in(index)].view_as(tokens)
    torch.testing.assert_close(tokens.double(), wanted, rtol=0, atol=2e-5)

    hidden = ~listed_in(index).view(2, 4, 4, 4).repeat_interleave(6, 2).repeat_interleave(6, 3)
    poisoned = (video / 255).masked_fill(hidden[..., None], torch.nan)
    assert torch.equal(encoder(poisoned, visible=visible), encoder(video / 255, visible=visible))


@torch.no_grad()
def test_tubes_attend_by_strides_as_ragged_tokens_do(encoder, video):
    """A ragged clip beside it makes of a clip of tubes what is packed by place."""
    index, mixed = tubes(), torch.stack([tubes()[0], ragged()[1, :20]])
    assert encoder.plan(index).by_place is None
    assert encoder.plan(mixed).by_place is not None
    strided, packed = (encoder(video, visible=encoder.plan(listed))[0] for listed in (index, mixed))
    torch.testing.assert_close(strided, packed, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "index", [[[3, 2]], [[2, 2]], [[-1, 2]], [[1, 64]], [[]]], ids=["descending", "twice", "below", "above", "none"]
)
def test_an_index_that_is_no_list_of_tokens(index):
    with pytest.raises(ValueError, match="index must list ascending tokens below 64 in each clip, and at least one"):
        lay_out_visible(torch.tensor(index, dtype=torch.int32), GRID)


@torch.no_grad()
def test_layers_in_order(encoder, video):
    for visible in (None, encoder.plan(ragged())):
        *kept, last = encoder.layer_tokens(video, (0, 1, 2, 3), visible=visible)
        assert torch.equal(last, encoder(video, visible=visible))
        assert len(kept) == 4
        torch.testing.assert_close(encoder.temporal.norm(kept[-1]), last, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"layers must be in 0 to 3, got \[4\]"):
        encoder.layer_tokens(video, (0, 4))


@torch.no_grad()
def test_padded_frames_are_asked_by_none(encoder, video):
    padding = torch.tensor([[0, 0, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
    tokens = encoder(video, padding).unflatten(1, (4, 16))
    other = encoder(torch.where(padding[..., None, None, None], 255 - video, video), padding).unflatten(1, (4, 16))
    assert torch.equal(tokens[~padding], other[~padding])
    assert not torch.equal(tokens[padding], other[padding])
    wanted = dense(video, (~padding).repeat_interleave(16, dim=1))
    torch.testing.assert_close(tokens.flatten(1, 2).double(), wanted, rtol=0, atol=2e-5)
    torch.testing.assert_close(encoder(video, torch.zeros(2, 4)), encoder(video), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"frame_paddings must be \[2, 4\], got \[2, 3\]"):
        encoder(video, padding[:, :3])
    with pytest.raises(ValueError, match="cannot be given together"):
        encoder(video, padding, visible=encoder.plan(ragged()))


@torch.no_grad()
def test_a_clip_of_nothing_looks_at_itself_evenly(encoder, video):
    tokens = encoder(video, torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1]]))
    listed = torch.tensor([[0] * 64, [1] * 48 + [0] * 16]).bool()
    torch.testing.assert_close(tokens.double(), dense(video, listed), rtol=0, atol=2e-5)


@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_few_frames_crop_or_resize(frames, encoder, video):
    own = {name: value for name, value in encoder.state_dict().items() if name != "temporal_positions"}
    table = encoder.temporal_positions
    tables = {"crop": table[:frames], "resize": resize_positions(table, (1, 4), (1, frames))}
    assert torch.allclose(tables["resize"].double(), resizing(4, frames) @ table.double(), atol=1e-6)
    seen = []
    for choice, cut in tables.items():
        model = build_model(VideoPrismConfig(**SIZES, few_frames=choice)).eval()
        model.load_state_dict({**own, "temporal_positions": table})
        short = build_model(VideoPrismConfig(**{**SIZES, "num_frames": frames})).eval()
        short.load_state_dict({**own, "temporal_positions": cut})
        seen.append(model(video[:, :frames]))
        assert torch.equal(seen[-1], short(video[:, :frames]))
        assert torch.equal(model(video), encoder(video))  # as many frames as the table has
    assert not torch.allclose(*seen, atol=1e-2)
    longer = torch.cat([video, video], dim=1)
    assert torch.equal(model(longer), encoder(longer))  # cropping is for fewer


@pytest.mark.parametrize(("before", "after"), [((4, 4), (3, 3)), ((4, 4), (5, 3)), ((1, 4), (1, 9)), ((3, 5), (2, 2))])
def test_tables_are_resized_by_triangles(before, after):
    table = torch.randn(before[0] * before[1], 7, generator=torch.Generator().manual_seed(0))
    rows, columns = (resizing(*sizes) for sizes in zip(before, after, strict=True))
    wanted = torch.einsum("yr,xc,rcd->yxd", rows, columns, table.double().view(*before, 7)).flatten(0, 1)
    torch.testing.assert_close(resize_positions(table, before, after).double(), wanted, rtol=0, atol=1e-6)
    assert resize_positions(table, before, before) is table


@torch.no_grad()
def test_frames_as_bytes_are_pixels_from_zero_to_one(encoder, video):
    torch.testing.assert_close(encoder(video), encoder(video / 255), rtol=0, atol=1e-5)
    assert not torch.allclose(encoder(video), encoder(video.float()), atol=0.1)


@pytest.mark.parametrize("shape", [(2, 4, 24, 25, 3), (2, 4, 24, 3), (2, 3, 4, 24, 24), (1, 2, 0, 24, 3)])
def test_clips_that_do_not_fit_are_one_line(shape, encoder):
    with pytest.raises(ValueError, match=r"video must be \[B, T, height, width, 3\], multiples of 6, got"):
        encoder(torch.zeros(shape, dtype=torch.uint8))


def test_frames_have_gradients_for_maps_of_salience(encoder, video):
    index = ragged()
    for visible in (None, encoder.plan(index)):
        pixels = (video / 255).requires_grad_()
        tokens = encoder(pixels, visible=visible)
        with torch.no_grad():
            torch.testing.assert_close(tokens, encoder(video, visible=visible), rtol=0, atol=1e-5)
        (gradient,) = torch.autograd.grad(tokens[0, 0].sum(), pixels)
        moved = gradient[0] / gradient.norm() ** 2 * 1e-2
        with torch.no_grad():
            step = encoder((video[:1] / 255 + moved).float(), visible=visible and encoder.plan(index[:1]))[0, 0].sum()
        assert (step - tokens[0, 0].sum()).item() == pytest.approx(1e-2, rel=0.15)
        assert not gradient[1].any()
    hidden = ~listed_in(index).view(2, 4, 4, 4).repeat_interleave(6, 2).repeat_interleave(6, 3)
    assert not gradient[hidden].any()
    assert gradient[0].any()


def test_bfloat16_autocast(encoder, video):
    exact = encoder(video)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encoder(video)
        visible = encoder(video, visible=encoder.plan(ragged()))
        loss = tokens.float().square().mean() + visible.float().square().mean()
    assert ((tokens.float() - exact).norm() / exact.norm()).item() < 0.1
    gradients = torch.autograd.grad(loss, list(encoder.parameters()))
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
