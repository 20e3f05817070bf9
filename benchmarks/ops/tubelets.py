"""Measures gather_tubelets and tubelet_embed beside the usual code, which makes a float clip and embeds all tokens.

videomae                    VideoMAE's released way from uint8 frames: float32 clip, normalised; Conv3d on all tokens;
                            positions; x[~mask]. Its loader makes the clip on the CPU, but somebody must, and the bytes
                            move: here the conversion counts.
videomae, float clip given  the same without the conversion, as if it were free. The fair baseline lies between the two:
                            speedups refer to the first, hold them against this one.
index after conv            as videomae, with a gather in place of the boolean index (no wait for the device)
hf, float clip given        VideoMAEPatchEmbeddings of transformers, then as VideoMAEEmbeddings does

Gradients are those of weight and bias; positions are fixed, as VideoMAE's are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastvtp_kernels import gather_tubelets, tubelet_embed

from ..harness.case import Case, CaseFactory, Cost, Missing, Options
from ..harness.command import main
from ..harness.record import Direction
from ..harness.variants import TOLERANCES, bind, op_variants
from ..harness.workload import IMAGENET_MEAN, IMAGENET_STD, Workload, boolean_mask, normalized_clip, patchify, workload

INDEX_BYTES = 4
# cuDNN's convolutions compute float32 in TF32 unless told otherwise.
TF32_TOLERANCE = 1e-3
PIXELS: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def gather_cost(batch: int, listed: int, values: int, itemsize: int) -> Cost:
    """Return the cost of reading index and uint8 pixels and writing values: a multiplication and an addition each."""
    count = batch * listed * values
    return Cost(batch * listed * INDEX_BYTES + count + count * itemsize, 2 * count)


def embed_cost(batch: int, listed: int, values: int, width: int, tokens: int, itemsize: int, backward: bool) -> Cost:
    """Return the cost of an embedding: it is one matrix product of 2 * B * K * P * D FLOP, with the backward pass two.

    The forward pass reads index, uint8 pixels, weight, bias and position rows, and writes tokens. Each position row is
    read once, however many clips list it: min(B * K, tokens) rows. The backward pass reads index and pixels again and
    the incoming gradient, and writes those of weight and bias.
    """
    rows, parameters = batch * listed, (values + 1) * width
    pixels = rows * (INDEX_BYTES + values)
    forward = pixels + (parameters + min(rows, tokens) * width + rows * width) * itemsize
    gradients = pixels + (rows * width + parameters) * itemsize
    return Cost(forward + backward * gradients, (1 + backward) * 2 * rows * values * width)


def cases(options: Options) -> list[CaseFactory]:
    """Return the cases of both ops in the device's workload."""
    work = workload(options)
    return [
        partial(gather_case, work, options),
        partial(embed_case, work, options, "forward"),
        partial(embed_case, work, options, "forward+backward"),
    ]


def gather_case(work: Workload, options: Options) -> Case:
    """Build the case of gather_tubelets in one workload."""
    video, mask = work.video(options.device), work.mask(options.device)
    visible, hidden = mask.visible, boolean_mask(mask.masked, work.tokens)
    clip = normalized_clip(video)

    def usual(clip: Tensor) -> Tensor:
        tokens = patchify(clip, work.tubelet).flatten(2)
        return tokens[~hidden].reshape(work.batch, -1, work.values).to(options.dtype)

    def call(backend: str, dtype: torch.dtype = options.dtype) -> Tensor:
        return gather_tubelets(video, visible, tubelet=work.tubelet, dtype=dtype, backend=backend, **PIXELS)

    functions: dict[str, Callable[..., Tensor] | Missing] = {
        "videomae": lambda: usual(normalized_clip(video)),
        "videomae, float clip given": lambda: usual(clip),
        **op_variants("gather_tubelets", call, options),
    }
    variants, error = bind(functions, partial(call, "reference", torch.float64), (), "forward")
    listed = visible.shape[1]
    return Case(
        op="gather_tubelets",
        name=work.name,
        direction="forward",
        shape=work.shape(listed=listed, values=work.values),
        dtype=options.dtype,
        device=options.device,
        cost=gather_cost(work.batch, listed, work.values, options.dtype.itemsize),
        variants=variants,
        baseline="videomae",
        error=error,
        tolerance=TOLERANCES[options.dtype],
    )


def embed_case(work: Workload, options: Options, direction: Direction) -> Case:
    """Build the case of tubelet_embed in one workload and direction."""
    device, dtype = options.device, options.dtype
    video, mask = work.video(device), work.mask(device)
    visible, hidden, index = mask.visible, boolean_mask(mask.masked, work.tokens), mask.visible.long()
    clip = normalized_clip(video)
    weight = torch.randn(work.width, 3, *work.tubelet, dtype=dtype, device=device) / work.values**0.5
    bias, position = (torch.randn(*size, work.width, dtype=dtype, device=device) for size in ((), (work.tokens,)))

    def all_tokens(clip: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # The cast is what torch.autocast does to the float32 clip of the released code.
        tokens = F.conv3d(clip.to(weight.dtype), weight, bias, stride=work.tubelet)
        return tokens.flatten(2).transpose(1, 2) + position

    def boolean_index(tokens: Tensor) -> Tensor:
        return tokens[~hidden].reshape(work.batch, -1, work.width)

    def gather(tokens: Tensor) -> Tensor:
        return tokens.gather(1, index[..., None].expand(-1, -1, work.width))

    def call(weight: Tensor, bias: Tensor, backend: str) -> Tensor:
        return tubelet_embed(video, visible, weight, bias, position, tubelet=work.tubelet, backend=backend, **PIXELS)

    functions: dict[str, Callable[..., Tensor] | Missing] = {
        "videomae": lambda *leaves: boolean_index(all_tokens(normalized_clip(video), *leaves)),
        "videomae, float clip given": lambda *leaves: boolean_index(all_tokens(clip, *leaves)),
        "index after conv": lambda *leaves: gather(all_tokens(normalized_clip(video), *leaves)),
        "hf, float clip given": _hugging_face(work, clip, position, boolean_index),
        **op_variants("tubelet_embed", call, options),
    }
    variants, error = bind(functions, partial(call, backend="reference"), (weight, bias), direction)
    listed, backward = visible.shape[1], direction == "forward+backward"
    return Case(
        op="tubelet_embed",
        name=work.name,
        direction=direction,
        shape=work.shape(listed=listed, values=work.values, width=work.width),
        dtype=dtype,
        device=device,
        cost=embed_cost(work.batch, listed, work.values, work.width, work.tokens, dtype.itemsize, backward),
        variants=variants,
        baseline="videomae",
        error=error,
        tolerance=max(TOLERANCES[dtype], TF32_TOLERANCE),
    )


def _hugging_face(
    work: Workload, clip: Tensor, position: Tensor, select: Callable[[Tensor], Tensor]
) -> Callable[..., Tensor] | Missing:
    try:
        from transformers import VideoMAEConfig  # pyright: ignore[reportMissingImports]
        from transformers.models.videomae.modeling_videomae import (  # pyright: ignore[reportMissingImports]
            VideoMAEPatchEmbeddings,
        )
    except ImportError as error:
        return Missing(f"transformers cannot be imported: {error}")
    embeddings = VideoMAEPatchEmbeddings(
        VideoMAEConfig(
            image_size=work.size,
            patch_size=work.tubelet[1],
            tubelet_size=work.tubelet[0],
            num_frames=work.frames,
            hidden_size=work.width,
        )
    )
    frames_first = clip.transpose(1, 2).contiguous()

    def embed(weight: Tensor, bias: Tensor) -> Tensor:
        parameters = {"projection.weight": weight, "projection.bias": bias}
        tokens = torch.func.functional_call(embeddings, parameters, (frames_first.to(weight.dtype),))
        return select(tokens + position)

    return embed


if __name__ == "__main__":
    main(cases, __doc__)
