"""The masked pixel loss against an einops formulation and the released VideoMAE."""

from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from fastvtp_kernels import gather_tubelets, masked_pixel_loss
from fastvtp_kernels.pixel_loss import chunked, reference
from fastvtp_kernels.testing import assert_within_tolerance, poisoned_empty

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
VIDEOMAE = Path(__file__).parent / "data" / "videomae.safetensors"
TUBELET = (2, 4, 6)


def example(dtype=torch.float64, batch_size=3, listed=5):
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (batch_size, 4, 8, 18, 3), dtype=torch.uint8, generator=generator)
    masked = torch.stack([torch.randperm(12, generator=generator)[:listed] for _ in range(batch_size)]).int()
    prediction = torch.randn(batch_size, listed, 144, generator=generator, dtype=torch.float64)
    return prediction.to(dtype).requires_grad_(), video, masked


def plain_loss(prediction, video, masked, normalize, eps=1e-6):
    """The loss as VideoMAE's engine writes it, on the whole clip and with the whole target in memory."""
    pt, ph, pw = TUBELET
    target = rearrange(
        video.to(prediction.dtype) / 255, "b (t p) (h q) (w r) c -> b (t h w) (p q r) c", p=pt, q=ph, r=pw
    )
    if normalize is not None:
        dims = (-2,) if normalize == "patch_channel" else (-2, -1)
        mean, std = target.mean(dims, keepdim=True), target.var(dims, unbiased=True, keepdim=True).sqrt()
        target = (target - mean) / (std + eps)
    target = torch.stack([clip[index.long()] for clip, index in zip(target.flatten(-2), masked, strict=True)])
    return torch.nn.functional.mse_loss(prediction, target)


@pytest.fixture(params=[1, 1500, 1 << 19], ids=["a clip at a time", "two clips at a time", "all at once"])
def chunk_values(request, monkeypatch):
    monkeypatch.setattr(chunked, "_CHUNK_VALUES", request.param)


@pytest.mark.usefixtures("chunk_values")
@pytest.mark.parametrize("normalize", ["patch_channel", "patch", None])
def test_value_and_gradient(normalize):
    prediction, video, masked = example()
    with poisoned_empty():
        loss = masked_pixel_loss(prediction, video, masked, tubelet=TUBELET, normalize=normalize)
        (gradient,) = torch.autograd.grad(3 * loss, prediction)
    expected = plain_loss(prediction, video, masked, normalize)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(3 * expected, prediction)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalize", ["patch_channel", "patch", None])
def test_tolerance_law(dtype, normalize):
    """Against the specification, which never leaves the dtype of its arithmetic."""
    prediction, video, masked = example(dtype)
    loss = masked_pixel_loss(prediction, video, masked, tubelet=TUBELET, normalize=normalize)
    assert loss.dtype == torch.float32
    rest = video, masked, TUBELET, normalize, 1e-6
    same = reference.masked_pixel_loss(prediction, *rest)
    exact_prediction = prediction.detach().double().requires_grad_()
    exact = reference.masked_pixel_loss(exact_prediction, *rest)
    assert_within_tolerance("loss", loss, same, exact)
    (gradient,), (same_gradient,) = (torch.autograd.grad(value, prediction) for value in (loss, same))
    (exact_gradient,) = torch.autograd.grad(exact, exact_prediction)
    assert_within_tolerance("grad of prediction", gradient, same_gradient, exact_gradient)


def test_the_target_is_never_whole_in_memory(monkeypatch):
    """Only operations in the prediction's own dtype may be as large as the prediction."""
    prediction, video, masked = example(torch.bfloat16)
    monkeypatch.setattr(chunked, "_CHUNK_VALUES", 1)
    sizes = []

    class FloatSizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                sizes.append(result.numel())
            return result

    with FloatSizes():
        loss = masked_pixel_loss(prediction, video, masked, tubelet=TUBELET)
        loss.backward()
    assert max(sizes) == prediction[0, 0].numel()


def test_gradcheck():
    prediction, video, masked = example(batch_size=1, listed=2)
    assert torch.autograd.gradcheck(lambda p: masked_pixel_loss(p, video, masked, tubelet=TUBELET), (prediction,))


def test_float16_gradient_keeps_its_precision_under_a_loss_scaler():
    """Residual times 2 / (number of values) is subnormal in float16; the loss scaler's 2^16 must come in first."""
    _, video, masked = example()
    pixels = gather_tubelets(video, masked, tubelet=TUBELET, mean=(0, 0, 0), std=(1, 1, 1), dtype=torch.float64)
    noise = 1e-3 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    prediction = (pixels + noise).half().requires_grad_()
    loss = masked_pixel_loss(prediction, video, masked, tubelet=TUBELET, normalize=None)
    (gradient,) = torch.autograd.grad(2**16 * loss, prediction)
    exact = 2**17 * (prediction.detach().double() - pixels) / prediction.numel()
    torch.testing.assert_close(gradient.double(), exact, rtol=2e-3, atol=1e-5)


def test_constant_patch_has_a_finite_target():
    prediction, video, masked = example()
    loss = masked_pixel_loss(torch.zeros_like(prediction), torch.full_like(video, 7), masked, tubelet=TUBELET)
    assert loss.item() < 1e-12


@pytest.mark.parametrize("normalize", ["patch_channel", "patch"])
@pytest.mark.parametrize("compiled", [False, True])
def test_pixels_that_are_all_equal_have_no_target(normalize, compiled):
    """Of every grey level, whichever way a mean is rounded: the loss is that of zeros."""
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256, 1).expand(1, 2, 4, 256, 3)
    video = grey.repeat_interleave(4, dim=3)
    masked = torch.arange(256, dtype=torch.int32)[None]

    def loss(prediction: torch.Tensor) -> torch.Tensor:
        return masked_pixel_loss(prediction, video, masked, tubelet=(2, 4, 4), normalize=normalize, **IMAGENET)

    if compiled:
        torch._dynamo.reset()
        loss = torch.compile(loss, backend="aot_eager")
    assert loss(torch.zeros(1, 256, 96)).item() < 1e-12


def test_normalisation_of_the_encoder_input_does_not_enter():
    prediction, video, masked = example()
    bare = masked_pixel_loss(prediction, video, masked, tubelet=TUBELET)
    assert torch.equal(bare, masked_pixel_loss(prediction, video, masked, tubelet=TUBELET, **IMAGENET))


def test_float_video_is_taken_as_unit_range():
    prediction, video, masked = example()
    expected = masked_pixel_loss(prediction, video, masked, tubelet=TUBELET, normalize=None)
    actual = masked_pixel_loss(prediction, video.double() / 255, masked, tubelet=TUBELET, normalize=None)
    torch.testing.assert_close(actual, expected)


def test_exact_prediction_has_no_loss():
    _, video, masked = example()
    pixels = gather_tubelets(video, masked, tubelet=TUBELET, mean=(0, 0, 0), std=(1, 1, 1), dtype=torch.float64)
    assert masked_pixel_loss(pixels, video, masked, tubelet=TUBELET, normalize=None).item() == 0


def test_equals_released_videomae():
    arrays = load_file(VIDEOMAE)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in IMAGENET.values())
    video = arrays["video"].permute(0, 2, 3, 4, 1).double() * std + mean
    masked = arrays["video_mask"].nonzero()[:, 1].view(2, -1)
    prediction = arrays["decoder_pred"].requires_grad_()
    normalized = masked_pixel_loss(prediction, video, masked, tubelet=(2, 8, 8))
    torch.testing.assert_close(normalized, arrays["loss_norm_target"], rtol=1e-6, atol=0)
    raw = masked_pixel_loss(prediction, video, masked, tubelet=(2, 8, 8), normalize=None)
    torch.testing.assert_close(raw, arrays["loss_raw_target"], rtol=1e-6, atol=0)
    known = arrays["target_norm"]
    loss = masked_pixel_loss(known, video, masked[:, : known.shape[1]], tubelet=(2, 8, 8))
    assert loss.item() < 1e-9


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"normalize": "channel"}, ValueError, "normalize is 'channel', expected 'patch_channel', 'patch' or None"),
        ({"prediction": torch.ones(3, 5, 143)}, ValueError, r"prediction has shape .*expected \[3, 5, 144\]"),
        ({"prediction": torch.ones(3, 5, 144).int()}, TypeError, "prediction is torch.int32"),
        ({"masked": torch.full((3, 5), 12)}, ValueError, r"masked holds 12\.\.12, expected token indices in \[0, 12\)"),
        ({"mean": (0.5,)}, ValueError, "mean has 1 values, expected one per channel"),
        (
            {"masked": torch.ones(3, 0).int(), "prediction": torch.ones(3, 0, 144)},
            ValueError,
            r"masked has shape \[3, 0\], expected at least one token",
        ),
    ],
)
def test_refuses(change, error, message):
    prediction, video, masked = example()
    arguments = {"prediction": prediction, "video": video, "masked": masked, "tubelet": TUBELET} | change
    with pytest.raises(error, match=message):
        masked_pixel_loss(**arguments)
