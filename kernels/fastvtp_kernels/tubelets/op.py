"""Tokens of the listed tubelets, read straight from the decoder's frames."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..derivatives import first_alone, refuse_forward_mode, transforming
from ..dispatch import implementation, register
from ..precision import autocast_dtype, compute_dtype
from ..registration import define_gradient, define_op, launcher
from ..validation import (
    check_channels,
    check_devices,
    check_floating,
    check_index,
    check_shape,
    check_video,
    values_readable,
)
from . import gradients, reference


def _reference_in_dtype(
    video: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None, position: Tensor | None, *options: Any
) -> Tensor:
    *constants, dtype = options
    bias = None if bias is None else bias.to(dtype)
    return reference.tubelet_embed(video, index, weight.to(dtype), bias, position, *constants)


_gather = define_op(
    "gather_tubelets(Tensor video, Tensor index, int[] tubelet, float[] mean, float[] std, ScalarType dtype) -> Tensor",
    launch=launcher(__name__, "gather_tubelets"),
    reference=reference.gather_tubelets,
    fake=lambda video, index, tubelet, mean, std, dtype: video.new_empty(
        *index.shape, math.prod(tubelet) * video.shape[-1], dtype=dtype
    ),
)
_launch_into = launcher(__name__, "tubelet_embed_into")
_embed = define_op(
    "tubelet_embed(Tensor video, Tensor index, Tensor weight, Tensor? bias, Tensor? position, "
    "int[] tubelet, float[] mean, float[] std, ScalarType dtype) -> Tensor",
    launch=launcher(__name__, "tubelet_embed"),
    reference=_reference_in_dtype,
    fake=lambda video, index, weight, bias, position, tubelet, mean, std, dtype: video.new_empty(
        *index.shape, weight.shape[0], dtype=dtype
    ),
)
_embed_backward = define_op(
    "tubelet_embed_backward(Tensor grad, Tensor video, Tensor index, Tensor weight, "
    "int[] tubelet, float[] mean, float[] std, Tensor? position) -> (Tensor, Tensor, Tensor)",
    launch=launcher(__name__, "tubelet_embed_backward"),
    reference=gradients.tubelet_embed_backward,
    fake=lambda grad, video, index, weight, tubelet, mean, std, position: (
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0], dtype=compute_dtype(grad.dtype)),
        grad.new_empty(0) if position is None else position.new_empty(position.shape),
    ),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    video, index, weight, bias, position, ctx.tubelet, ctx.mean, ctx.std, *_ = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    # Of the position table backward needs shape and dtype alone, and a parameter costs nothing to keep.
    ctx.save_for_backward(video, index, weight, position)


def _gradients(ctx: Any, grad: Tensor, with_position: bool) -> tuple[Tensor | None, ...]:
    video, index, weight, position = ctx.saved_tensors
    wanted = position if with_position else None
    weight_grad, bias_grad, position_grad = _embed_backward(
        grad.contiguous(), video, index, weight, ctx.tubelet, ctx.mean, ctx.std, wanted
    )
    bias_grad = None if ctx.bias_dtype is None else bias_grad.to(ctx.bias_dtype)
    return None, None, weight_grad, bias_grad, None if wanted is None else position_grad, None, None, None, None


_embed_differentiably = define_gradient(_embed, _save, lambda ctx, grad: _gradients(ctx, grad, ctx.needs_input_grad[4]))


class _EmbedInto(torch.autograd.Function):
    """The kernel writes the rows of a larger buffer itself: no copy on the way to the packed layout."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, rows: Tensor, *inputs: Any) -> Tensor:
        _save(ctx, inputs, out)
        ctx.rows = rows
        _launch_into(out, rows, *inputs)
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return first_alone("tubelet_embed", _EmbedInto._backward)(ctx, grad)

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows = ctx.rows.flatten().long()
        out_grad = grad.index_fill(0, rows, 0) if ctx.needs_input_grad[0] else None
        embedded = grad.index_select(0, rows).unflatten(0, ctx.rows.shape)
        return out_grad, None, *_gradients(ctx, embedded, ctx.needs_input_grad[6])


def _embed_triton(video: Tensor, index: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return _embed_differentiably(video, index, weight, *rest, autocast_dtype(weight))


register(
    "gather_tubelets",
    reference=reference.gather_tubelets,
    triton=lambda video, *rest: _gather(video.detach(), *rest),
)
register("tubelet_embed", reference=reference.tubelet_embed, triton=_embed_triton)


def gather_tubelets(
    video: Tensor,
    index: Tensor,
    *,
    tubelet: tuple[int, int, int] = (2, 16, 16),
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Tensor:
    """Gather normalised values (x / 255 - mean) / std of the listed tubelets; nothing else of the clip is read.

    Args:
        video: uint8 [B, T, H, W, C], or floating point in [0, 1] (then not divided by 255). Receives no gradient.
            A video whose memory is not contiguous is copied first.
        index: int32 or int64 [B, K], token indices (t * h + y) * w + x on the tubelet grid (t, h, w).
        tubelet: (pt, ph, pw) frames, lines and columns per token; each divides the video's size.
        mean: per channel, in units of [0, 1].
        std: per channel, in units of [0, 1].
        dtype: of the result; arithmetic is float32 (float64 for float64).
        backend: see `fastvtp_kernels.dispatch`.

    Returns:
        [B, K, P], P = pt * ph * pw * C, value order inside a token (pt, ph, pw, C).

    Raises:
        ValueError: a shape does not fit or (on the CPU) an index is outside the grid.
        TypeError: a dtype is not one of those above.
    """
    _check("gather_tubelets", video, index, tubelet, mean, std)
    run = implementation("gather_tubelets", backend, video.device, dtype)
    return run(video, index, tuple(tubelet), mean, std, dtype)


def tubelet_embed(
    video: Tensor,
    index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None = None,
    *,
    tubelet: tuple[int, int, int] = (2, 16, 16),
    mean: Sequence[float],
    std: Sequence[float],
    out: Tensor | None = None,
    out_rows: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compute the patch embedding of the listed tubelets only: a Conv3d with stride = kernel, evaluated where it is
    needed.

    Equal to `conv3d((video / 255 - mean) / std)` followed by taking the listed tokens and adding their positions.
    Gradients flow to weight, bias and position.

    Args:
        video: uint8 [B, T, H, W, C], or floating point in [0, 1] (then not divided by 255). Receives no gradient.
        index: int32 or int64 [B, K], token indices (t * h + y) * w + x on the tubelet grid (t, h, w).
        weight: [D, C, pt, ph, pw], the layout of torch.nn.Conv3d.
        bias: [D] or None.
        position: [t * h * w, D], added to each token by its index, or None.
        tubelet: (pt, ph, pw).
        mean: per channel, in units of [0, 1].
        std: per channel, in units of [0, 1].
        out: [N, D] contiguous, in the result's dtype: a packed buffer that the result is written into, in place.
        out_rows: int32 or int64 [B, K], with `out`: distinct rows of it.
        backend: see `fastvtp_kernels.dispatch`.

    Returns:
        [B, K, D] in the dtype of `weight`; under torch.autocast in its dtype. With `out`: `out` itself, whose other
        rows keep their values and gradients.

    Raises:
        ValueError: a shape does not fit or (on the CPU) an index is outside the grid.
        TypeError: a dtype is not one of those above.
    """
    tokens = _check("tubelet_embed", video, index, tubelet, mean, std)
    check_floating("tubelet_embed", weight=weight)
    check_shape("tubelet_embed", "weight", weight, "D", video.shape[-1], *tubelet)
    if bias is not None:
        check_shape("tubelet_embed", "bias", bias, weight.shape[0])
        if bias.dtype != weight.dtype:
            raise TypeError(f"tubelet_embed: bias is {bias.dtype}, weight {weight.dtype}, expected one dtype")
    if position is not None:
        check_shape("tubelet_embed", "position", position, tokens, weight.shape[0])
    check_devices("tubelet_embed", video=video, weight=weight, bias=bias, position=position)
    run = implementation("tubelet_embed", backend, video.device, weight.dtype)
    inputs = (video, index, weight, bias, position, tuple(tubelet), mean, std)
    if out is None:
        if out_rows is not None:
            raise ValueError("tubelet_embed: out_rows is given without out, the buffer that they are rows of")
        return run(*inputs)
    rows = _check_rows(out, out_rows, index, weight)
    if run is _embed_triton and type(out) is Tensor and not (torch.compiler.is_compiling() or transforming()):
        refuse_forward_mode("tubelet_embed", (out, *inputs))
        written = _EmbedInto.apply(out, rows, *inputs, autocast_dtype(weight))
        assert isinstance(written, Tensor)
        return written
    embedded = run(*inputs).flatten(0, 1)
    try:
        return out.index_copy_(0, rows.flatten().long(), embedded)
    except RuntimeError as error:
        if not transforming():
            raise
        raise ValueError(
            "tubelet_embed: out cannot be written under this transform of torch.func, which the rows depend on and it "
            "does not; leave it away and copy the result"
        ) from error


def _check_rows(out: Tensor, out_rows: Tensor | None, index: Tensor, weight: Tensor) -> Tensor:
    op, dtype = "tubelet_embed", autocast_dtype(weight)
    if out_rows is None:
        raise ValueError(f"{op}: out is given without out_rows, expected the row of `out` for each listed token")
    check_shape(op, "out", out, "N", weight.shape[0])
    if out.dtype != dtype or not out.is_contiguous():
        raise TypeError(f"{op}: out is {out.dtype} with strides {out.stride()}, expected contiguous {dtype}")
    check_index(op, "out_rows", out_rows, out.shape[0], *index.shape, what="rows of out")
    if values_readable(out_rows) and out_rows.unique().numel() < out_rows.numel():
        raise ValueError(f"{op}: out_rows names a row twice, expected distinct rows")
    check_devices(op, out=out, out_rows=out_rows, index=index)
    return out_rows


def _check(
    op: str,
    video: Tensor,
    index: Tensor,
    tubelet: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> int:
    grid = check_video(op, video, tubelet)
    tokens = grid[0] * grid[1] * grid[2]
    check_index(op, "index", index, tokens, video.shape[0], "K")
    check_devices(op, video=video, index=index)
    check_channels(op, "mean", mean, video.shape[-1])
    check_channels(op, "std", std, video.shape[-1])
    return tokens
