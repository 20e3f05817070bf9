"""Gathering and embedding of listed tubelets against Conv3d, einops and the released VideoMAE."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from fastvtp_kernels import gather_tubelets, tubelet_embed
from fastvtp_kernels.testing import assert_within_tolerance

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
VIDEOMAE = Path(__file__).parent / "data" / "videomae.safetensors"


def random_video(*size, seed=0):
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def patchify(video, tubelet, mean, std):
    """All tokens [B, tokens, P] in float64, written with einops."""
    pixels = (video.double() / 255 - torch.tensor(mean, dtype=torch.float64)) / torch.tensor(std, dtype=torch.float64)
    pt, ph, pw = tubelet
    return rearrange(pixels, "b (t p) (h q) (w r) c -> b (t h w) (p q r c)", p=pt, q=ph, r=pw)


@settings(max_examples=30, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)),
    tubelet=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    channels=st.integers(1, 4),
    count=st.integers(0, 9),
    index_dtype=st.sampled_from([torch.int32, torch.int64]),
    data=st.data(),
)
def test_gather_equals_patchify_then_index(grid, tubelet, channels, count, index_dtype, data):
    size = [cells * side for cells, side in zip(grid, tubelet, strict=True)]
    video = random_video(2, *size, channels)
    tokens = grid[0] * grid[1] * grid[2]
    listed = data.draw(st.lists(st.integers(0, tokens - 1), min_size=2 * count, max_size=2 * count))
    index = torch.tensor(listed, dtype=index_dtype).view(2, count)
    statistics: dict[str, Any] = {"mean": [0.3, 0.1, 0.5, 0.7][:channels], "std": [0.2, 0.5, 1.0, 0.1][:channels]}
    values = gather_tubelets(video, index, tubelet=tubelet, **statistics, dtype=torch.float64)
    expected = torch.stack([p[i.long()] for p, i in zip(patchify(video, tubelet, **statistics), index, strict=True)])
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)


def test_float_video_is_taken_as_unit_range_and_any_strides_will_do():
    padded = random_video(2, 4, 40, 40, 4)
    video = padded[:, :, 4:36, 4:36, :3]
    index = torch.tensor([[0, 7, 3], [1, 2, 2]])
    values = gather_tubelets(video, index, **IMAGENET)
    assert values.shape == (2, 3, 1536)
    assert values.dtype == torch.float32
    torch.testing.assert_close(gather_tubelets(video.float() / 255, index, **IMAGENET), values, rtol=0, atol=1e-6)
    low = gather_tubelets((video.float() / 255).bfloat16(), index, **IMAGENET)
    torch.testing.assert_close(low, values, rtol=0, atol=2**-9 / 0.224 + 1e-6)


def conv3d_embed(video, index, weight, bias, position, mean, std):
    pixels = (video.to(weight.dtype) / 255 - weight.new_tensor(mean)) / weight.new_tensor(std)
    tokens = F.conv3d(pixels.permute(0, 4, 1, 2, 3), weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)
    if position is not None:
        tokens = tokens + position
    return tokens.gather(1, index.long()[..., None].expand(-1, -1, tokens.shape[-1]))


def embed_inputs(dtype):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(10, 3, 2, 4, 6, generator=generator, dtype=torch.float64) * 0.1
    bias = torch.randn(10, generator=generator, dtype=torch.float64)
    position = torch.randn(12, 10, generator=generator, dtype=torch.float64)
    video, index = random_video(3, 4, 8, 18, 3), torch.tensor([[0, 5, 11], [3, 3, 1], [7, 2, 10]], dtype=torch.int32)
    return video, index, [x.to(dtype).requires_grad_() for x in (weight, bias, position)]


def with_gradients(function, leaves):
    output = function()
    ramp = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output).to(output.dtype)
    return output, torch.autograd.grad(output, leaves, ramp)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_embed_equals_conv3d_then_index(dtype):
    video, index, leaves = embed_inputs(dtype)
    actual = with_gradients(lambda: tubelet_embed(video, index, *leaves, tubelet=(2, 4, 6), **IMAGENET), leaves)
    same = with_gradients(lambda: conv3d_embed(video, index, *leaves, **IMAGENET), leaves)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = with_gradients(lambda: conv3d_embed(video, index, *exact_leaves, **IMAGENET), exact_leaves)
    assert_within_tolerance("output", actual[0], same[0], exact[0])
    for name, *gradients in zip(("weight", "bias", "position"), actual[1], same[1], exact[1], strict=True):
        assert_within_tolerance(f"grad of {name}", *gradients)


def test_embed_without_bias_and_position():
    video, index, (weight, _, _) = embed_inputs(torch.float64)
    output = tubelet_embed(video, index, weight, None, tubelet=(2, 4, 6), **IMAGENET)
    torch.testing.assert_close(output, conv3d_embed(video, index, weight, None, None, **IMAGENET))


def test_embed_gradcheck():
    video, index, leaves = embed_inputs(torch.float64)

    def embed(weight, bias, position):
        # Five of the ten channels suffice and halve the work.
        return tubelet_embed(video, index, weight[:5], bias[:5], position[:, :5], tubelet=(2, 4, 6), **IMAGENET)

    assert torch.autograd.gradcheck(embed, leaves)


def test_embed_follows_autocast_and_keeps_gradients_in_the_parameters_dtype():
    video, index, leaves = embed_inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = tubelet_embed(video, index, *leaves, tubelet=(2, 4, 6), **IMAGENET)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
    torch.testing.assert_close(output.float(), conv3d_embed(video, index, *leaves, **IMAGENET), rtol=0.03, atol=0.05)


class LargestFloat(TorchDispatchMode):
    """Remembers the size of the largest floating-point tensor that any operation made."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.values = max(self.values, result.numel())
        return result


def test_only_listed_tubelets_ever_become_floats():
    video, index = random_video(2, 8, 32, 32, 3), torch.tensor([[1], [6]])
    with LargestFloat() as largest:
        gather_tubelets(video, index, **IMAGENET)
    assert largest.values == 2 * 1536 < video.numel()


def test_video_receives_no_gradient():
    video, index, (weight, _, _) = embed_inputs(torch.float32)
    video = (video.float() / 255).requires_grad_()
    tubelet_embed(video, index, weight, None, tubelet=(2, 4, 6), **IMAGENET).sum().backward()
    assert video.grad is None


def test_equals_released_videomae_patch_embedding():
    arrays = load_file(VIDEOMAE)
    index = torch.arange(64).expand(2, -1)
    video = arrays["video"].permute(0, 2, 3, 4, 1)  # normalised already: mean 0, std 1
    tokens = tubelet_embed(
        video, index, arrays["weight"], arrays["bias"], tubelet=(2, 8, 8), mean=(0, 0, 0), std=(1, 1, 1)
    )
    torch.testing.assert_close(tokens, arrays["encoder_patch_embed"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"index": torch.tensor([[8]])}, ValueError, r"index holds 8\.\.8, expected token indices in \[0, 8\)"),
        ({"index": torch.tensor([[-1]])}, ValueError, "index holds -1"),
        ({"index": torch.tensor([[1.0]])}, TypeError, "index is torch.float32, expected int32 or int64"),
        ({"index": torch.tensor([[1], [1]])}, ValueError, r"index has shape \[2, 1\], expected \[1, K\]"),
        ({"video": random_video(1, 4, 32, 31, 3)}, ValueError, r"does not divide .* = \(4, 32, 31\)"),
        ({"video": random_video(4, 32, 32, 3)}, ValueError, r"expected \[B, T, H, W, C\]"),
        ({"video": torch.ones(1, 4, 32, 32, 3).int()}, TypeError, "video is torch.int32, expected uint8"),
        ({"mean": (0.5,)}, ValueError, r"mean has 1 values, expected one per channel \(3\)"),
        ({"std": (1.0, 1.0)}, ValueError, "std has 2 values"),
    ],
)
def test_gather_refuses(change, error, message):
    arguments = {"video": random_video(1, 4, 32, 32, 3), "index": torch.tensor([[0]]), **IMAGENET}
    with pytest.raises(error, match=message):
        gather_tubelets(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.ones(5, 2, 16, 16, 3)}, ValueError, r"weight has shape .*expected \[D, 3, 2, 16, 16\]"),
        ({"bias": torch.ones(4)}, ValueError, r"bias has shape \[4\], expected \[5\]"),
        ({"position": torch.ones(1, 8, 5)}, ValueError, r"position has shape \[1, 8, 5\], expected \[8, 5\]"),
        ({"weight": torch.ones(5, 3, 2, 16, 16).int()}, TypeError, "weight is torch.int32, expected a floating-point"),
        ({"bias": torch.ones(5).half()}, TypeError, "bias is torch.float16, weight torch.float32, expected one dtype"),
        ({"bias": torch.ones(5, device="meta")}, ValueError, "bias on meta, expected one device"),
    ],
)
def test_embed_refuses(change, error, message):
    arguments = {
        "video": random_video(1, 4, 32, 32, 3),
        "index": torch.tensor([[0]]),
        "weight": torch.ones(5, 3, 2, 16, 16),
        "bias": None,
        **IMAGENET,
    }
    with pytest.raises(error, match=message):
        tubelet_embed(**(arguments | change))
