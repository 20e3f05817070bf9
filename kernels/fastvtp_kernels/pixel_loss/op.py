"""Reconstruction loss of masked video autoencoders."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from ..derivatives import wants_gradient
from ..dispatch import implementation, register, runs_triton
from ..precision import compute_dtype
from ..registration import define_gradient, define_op, launcher
from ..validation import check_channels, check_devices, check_floating, check_index, check_shape, check_video
from . import chunked, reference
from .residual import gradients, save_residual

_loss_and_residual = define_op(
    "masked_pixel_loss(Tensor prediction, Tensor video, Tensor masked, int[] tubelet, str? normalize, float eps, "
    "bool with_residual) -> (Tensor, Tensor)",
    launch=launcher(__name__, "masked_pixel_loss"),
    reference=chunked.loss_and_residual,
    fake=lambda prediction, video, masked, tubelet, normalize, eps, with_residual: (
        prediction.new_empty((), dtype=compute_dtype(prediction.dtype)),
        prediction.new_empty(prediction.shape if with_residual else 0),
    ),
)
_scale_in_place = launcher(__name__, "scale_in_place")


def _gradients(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    # Registered on the CPU too, where without Triton's interpreter the op runs its reference.
    (residual,) = ctx.saved_tensors
    return gradients(ctx, grad_loss, _scale_in_place if runs_triton(residual) else chunked.scale_by_chunks)


_differentiable = define_gradient(_loss_and_residual, save_residual, _gradients)


def _triton(prediction: Tensor, *inputs: Any) -> Tensor:
    return _differentiable(prediction, *inputs, wants_gradient(prediction))[0]


register(
    "masked_pixel_loss",
    truth=reference.masked_pixel_loss,
    reference=chunked.masked_pixel_loss,
    triton=_triton,
)


def masked_pixel_loss(
    prediction: Tensor,
    video: Tensor,
    masked: Tensor,
    *,
    tubelet: tuple[int, int, int] = (2, 16, 16),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalize: Literal["patch_channel", "patch"] | None = "patch_channel",
    eps: float = 1e-6,
    backend: str | None = None,
) -> Tensor:
    """Compute the mean squared error between predicted and true pixels of the masked tubelets, over all their values.

    The target is that of VideoMAE's pretraining engine: pixels in [0, 1], each token normalised by its own statistics,
    (x - mean) / (sqrt(unbiased variance) + eps). The whole target is never in memory; the residual that the backward
    pass needs is written while the loss is computed.

    Args:
        prediction: [B, Km, P], P = pt * ph * pw * C, value order inside a token (pt, ph, pw, C).
        video: uint8 [B, T, H, W, C], or floating point in [0, 1]. Receives no gradient.
        masked: int32 or int64 [B, Km], token indices (t * h + y) * w + x.
        tubelet: (pt, ph, pw).
        mean: per channel; see below.
        std: per channel; see below. VideoMAE undoes its input normalisation before it forms the target. The video here
            is not normalised to begin with, so `mean` and `std` do not enter the loss: they are checked and accepted
            so that one set of keywords serves every op that reads the video.
        normalize: "patch_channel": statistics per token and channel (the released VideoMAE and SimVTP);
            "patch": per token over all P values; None: compare with pixels in [0, 1].
        eps: added to the standard deviation.
        backend: see `fastvtp_kernels.dispatch`.

    Returns:
        Scalar, accumulated in float32 and returned as float32 (float64 for a float64 prediction).

    Raises:
        ValueError: a shape does not fit, no token is listed, `normalize` is unknown, or (on the CPU) an index is
            outside the grid.
        TypeError: a dtype is not one of those above.
    """
    op = "masked_pixel_loss"
    grid = check_video(op, video, tubelet)
    check_index(op, "masked", masked, grid[0] * grid[1] * grid[2], video.shape[0], "Km")
    check_devices(op, prediction=prediction, video=video, masked=masked)
    channels = video.shape[-1]
    check_floating(op, prediction=prediction)
    check_shape(op, "prediction", prediction, *masked.shape, tubelet[0] * tubelet[1] * tubelet[2] * channels)
    if masked.shape[0] * masked.shape[1] == 0:
        raise ValueError(f"{op}: masked has shape {list(masked.shape)}, expected at least one token")
    if normalize not in ("patch_channel", "patch", None):
        raise ValueError(f"{op}: normalize is {normalize!r}, expected 'patch_channel', 'patch' or None")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None:
            check_channels(op, name, values, channels)
    run = implementation(op, backend, prediction.device, prediction.dtype)
    return run(prediction, video, masked, tuple(tubelet), normalize, eps)
