"""Triton's masked_pixel_loss against the reference."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from fastvtp_kernels import gather_tubelets, masked_pixel_loss, tuning
from fastvtp_kernels.pixel_loss import kernels
from fastvtp_kernels.pixel_loss.reference import normalize_target
from tests.kernels.triton_cases import (
    DEVICE,
    DTYPES,
    IMAGENET,
    assert_meets_the_law,
    assert_repeats,
    random_values,
    random_video,
    results,
    strided,
    tiles_of,
)

VIDEOMAE = Path(__file__).parent / "data" / "videomae.safetensors"
# tubelet, channels, index dtype
SHAPES = {
    "2x16x16x3": ((2, 16, 16), 3, torch.int32),
    "1x16x16x1": ((1, 16, 16), 1, torch.int64),
    "1x18x18x3": ((1, 18, 18), 3, torch.int32),
    "2x14x14x4": ((2, 14, 14), 4, torch.int64),
    "2x4x6x3": ((2, 4, 6), 3, torch.int32),
}
# More bytes than a token may have to stay on chip whole.
LARGE = ((4, 64, 32), 3, torch.int32)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_normalize = pytest.mark.parametrize("normalize", ["patch_channel", "patch", None])


def example(
    dtype: torch.dtype = torch.float32,
    shape: tuple[Any, ...] = SHAPES["2x4x6x3"],
    video_dtype: torch.dtype = torch.uint8,
) -> dict[str, Any]:
    """Arguments of masked_pixel_loss: 15 unsorted tokens, some listed twice."""
    tubelet, channels, index_dtype = shape
    listed = torch.tensor([[7, 0, 3, 3, 1], [2, 3, 5, 7, 0], [4, 3, 3, 6, 2]])
    return {
        "prediction": random_values(3, 5, channels * tubelet[0] * tubelet[1] * tubelet[2], dtype=dtype),
        "video": random_video(3, *(2 * side for side in tubelet), channels, dtype=video_dtype),
        "masked": listed.to(DEVICE, index_dtype),
        "tubelet": tubelet,
    }


def scaled(factor, **inputs):
    return factor * masked_pixel_loss(**inputs)


@every_shape
@every_normalize
@every_dtype
def test_meets_the_law(dtype, normalize, shape):
    assert_meets_the_law(partial(masked_pixel_loss, normalize=normalize), example(dtype, shape))


@pytest.mark.parametrize("video_dtype", [*DTYPES, torch.float64], ids=str)
@every_normalize
def test_floating_point_video(normalize, video_dtype):
    assert_meets_the_law(partial(masked_pixel_loss, normalize=normalize), example(video_dtype=video_dtype))


@pytest.mark.parametrize("factor", [0.0, 0.3, -7.0])
@every_dtype
def test_a_weighted_loss(dtype, factor):
    assert_meets_the_law(partial(scaled, factor), example(dtype))


@every_dtype
def test_two_losses_of_one_prediction_and_a_third_term(dtype):
    def total(prediction, **inputs):
        first = masked_pixel_loss(prediction, **inputs)
        second = masked_pixel_loss(prediction, **inputs, normalize=None)
        return 2 * first + 0.5 * second + prediction.to(first.dtype).square().mean()

    assert_meets_the_law(total, example(dtype))


@every_dtype
def test_any_strides_will_do(dtype):
    views = {name: strided(x) if isinstance(x, torch.Tensor) else x for name, x in example(dtype).items()}
    assert not any(x.is_contiguous() for x in views.values() if isinstance(x, torch.Tensor))
    assert_meets_the_law(partial(scaled, 3.0), views)


TILES = tiles_of("pixel_loss", "pixel_loss_bytes", "scale")


@pytest.mark.parametrize(("kernel", "dtype", "tile"), TILES.values(), ids=TILES)
@every_normalize
def test_every_tile(normalize, kernel, dtype, tile):
    video_dtype = torch.float32 if kernel == "pixel_loss" else torch.uint8
    with tuning.override(kernel, tile):
        assert_meets_the_law(partial(scaled, 0.6, normalize=normalize), example(dtype, video_dtype=video_dtype))


def launched(monkeypatch, **inputs):
    """Names of the kernels that a loss launches, and the warps of the first."""
    seen = []
    monkeypatch.setattr(kernels, "launch", lambda kernel, *_, tile, **__: seen.append((kernel.__name__, tile)))
    masked_pixel_loss(**inputs, backend="triton")
    return [name for name, _ in seen], seen[0][1].num_warps


@pytest.mark.parametrize(
    ("shape", "warps"),
    [(SHAPES["2x4x6x3"], 1), (SHAPES["2x16x16x3"], 1), (((4, 16, 16), 3, torch.int32), 2), (LARGE, None)],
    ids=str,
)
def test_bytes_of_a_token_stay_on_chip_where_they_fit(shape, warps, monkeypatch):
    names, found = launched(monkeypatch, **example(shape=shape))
    assert names == ["_byte_loss" if warps else "_pixel_loss"]
    assert found == (warps or 4)
    assert launched(monkeypatch, **example(shape=shape, video_dtype=torch.float16))[0] == ["_pixel_loss"]


@every_normalize
def test_large_tokens(normalize):
    """One of them flat."""
    tubelet, channels, index_dtype = LARGE
    video = random_video(1, 4, 64, 64, channels)
    video[:, :, :, 32:] = 113
    inputs = {
        "prediction": random_values(1, 2, 4 * 64 * 32 * channels, dtype=torch.bfloat16),
        "video": video,
        "masked": torch.tensor([[1, 0]], dtype=index_dtype, device=DEVICE),
        "tubelet": tubelet,
    }
    assert_meets_the_law(partial(masked_pixel_loss, normalize=normalize), inputs)


@pytest.mark.parametrize("level", [0, 254])
@pytest.mark.parametrize("normalize", ["patch_channel", "patch"])
def test_nearly_flat_patches(normalize, level):
    """One value in 24 differs from the others by one."""
    inputs = example()
    inputs["video"] = torch.full_like(inputs["video"], level)
    inputs["video"][:, :, ::4, ::6] += 1
    assert_meets_the_law(partial(masked_pixel_loss, normalize=normalize), inputs)


@pytest.mark.parametrize("shape", [SHAPES["1x18x18x3"], SHAPES["2x14x14x4"], SHAPES["2x4x6x3"]], ids=str)
@pytest.mark.parametrize("normalize", ["patch_channel", "patch"])
@pytest.mark.parametrize("level", [1, 7, 113, 128, 255])
def test_the_target_of_a_flat_patch_is_zero(shape, normalize, level):
    """24 to 1568 equal values: their sum, divided by their number, has to be each of them to the last bit.

    Multiplying by a rounded reciprocal is not enough: 972 times 1 / 972 is not 1 in float32.
    """
    inputs = example(shape=shape)
    inputs["prediction"] = torch.zeros_like(inputs["prediction"]).requires_grad_()
    inputs["video"] = torch.full_like(inputs["video"], level)
    found = results(masked_pixel_loss, inputs | {"normalize": normalize, "backend": "triton"})
    assert found["output"].item() == 0
    assert not found["grad of prediction"].any()


@pytest.mark.parametrize("factor", [1.0, 3.0])
@every_dtype
def test_a_kept_graph_gives_the_same_gradient_again(dtype, factor):
    inputs = example(dtype)
    loss = scaled(factor, **inputs, backend="triton")
    first, second = (torch.autograd.grad(loss, inputs["prediction"], retain_graph=True)[0] for _ in range(2))
    kept = first.clone()
    (last,) = torch.autograd.grad(loss, inputs["prediction"])
    assert torch.equal(first, kept)
    assert torch.equal(second, kept)
    assert torch.equal(last, kept)


def test_float16_gradients_survive_the_loss_scaler():
    """A residual of 1e-3 times 2 / 2160 underflows in float16; the scaler's 65536 has to be multiplied in first."""
    inputs = example(torch.float16)
    place = {name: inputs[name] for name in ("video", "tubelet")} | {"index": inputs["masked"]}
    pixels = gather_tubelets(**place, mean=(0.0,) * 3, std=(1.0,) * 3, dtype=torch.float64)
    noise = random_values(*pixels.shape, dtype=torch.float64, seed=1, scale=1e-3).detach()
    inputs["prediction"] = (pixels + noise).half().requires_grad_()
    assert_meets_the_law(partial(scaled, 65536.0, normalize=None), inputs)
    gradient = results(partial(scaled, 65536.0), inputs | {"normalize": None, "backend": "triton"})
    exact = 2 * 65536 * (inputs["prediction"].detach().double() - pixels) / pixels.numel()
    torch.testing.assert_close(gradient["grad of prediction"].double(), exact, rtol=2e-3, atol=1e-5)


class FloatSizes(TorchDispatchMode):
    """Collects the sizes of the floating-point results of the loss op."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.fastvtp.masked_pixel_loss.default:
            self.sizes += [x.numel() for x in result]
        return result


def test_the_residual_is_stored_for_backward_alone():
    inputs = example()
    with FloatSizes() as training:
        loss = masked_pixel_loss(**inputs, backend="triton")
    with FloatSizes() as scoring:
        with torch.no_grad():
            unrecorded = masked_pixel_loss(**inputs, backend="triton")
        masked_pixel_loss(**inputs | {"prediction": inputs["prediction"].detach()}, backend="triton")
    assert training.sizes == [1, inputs["prediction"].numel()]
    assert scoring.sizes == [1, 0, 1, 0]
    assert torch.equal(loss, unrecorded)


@every_normalize
@every_dtype
def test_repeats_bit_for_bit(dtype, normalize):
    assert_repeats(partial(scaled, 3.0), example(dtype) | {"normalize": normalize, "backend": "triton"})


@pytest.mark.parametrize("quantised", [False, True], ids=["float", "uint8"])
@pytest.mark.parametrize(("normalize", "loss"), [("patch_channel", "loss_norm_target"), (None, "loss_raw_target")])
def test_equals_released_videomae(quantised, normalize, loss):
    arrays = {name: x.to(DEVICE) for name, x in load_file(VIDEOMAE).items()}
    mean, std = (torch.tensor(values, dtype=torch.float64, device=DEVICE) for values in IMAGENET.values())
    video = arrays["video"].permute(0, 2, 3, 4, 1).double() * std + mean
    masked = arrays["video_mask"].nonzero()[:, 1].view(2, -1)
    change = torch.zeros((), dtype=torch.float64)
    given = video.float()
    if quantised:
        given = (video * 255).round().clamp(0, 255).byte()
        pixels = [
            gather_tubelets(x, masked, tubelet=(2, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, dtype=torch.float64)
            for x in (given, video)
        ]
        targets = [normalize_target(x, 3, normalize, 1e-6) for x in pixels]
        change = (targets[0] - targets[1]).square().mean().sqrt()
    actual = masked_pixel_loss(
        arrays["decoder_pred"], given, masked, tubelet=(2, 8, 8), normalize=normalize, backend="triton"
    )
    # By the triangle inequality the root of the loss moves no further than the targets do.
    distance = actual.double().sqrt() - arrays[loss].double().sqrt()
    assert distance.abs() <= change + 1e-5 * arrays[loss].sqrt()


def test_backward_makes_no_zeros_for_the_residual():
    """The residual is the op's second output; a gradient for it would be as large as the prediction."""
    made = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made.append(str(func))
            return func(*args, **(kwargs or {}))

    prediction = torch.randn(1, 2, 12, device=DEVICE, requires_grad=True)
    video = torch.zeros(1, 1, 4, 4, 3, dtype=torch.uint8, device=DEVICE)
    masked = torch.tensor([[0, 3]], device=DEVICE)
    loss = masked_pixel_loss(prediction, video, masked, tubelet=(1, 2, 2), backend="triton")
    with Names():
        loss.backward()
    assert not [name for name in made if "zeros" in name]
