"""Measures masked_pixel_loss beside the usual code, which normalises all tubelets before it picks the masked ones.

videomae engine             VideoMAE's training loop, from the float clip that its encoder was given: undo the
                            normalisation, rearrange all tokens, normalise each per channel, index with the boolean
                            mask, mean squared error in float32. The clip is an input: `tubelets` counts its making.
compiled videomae engine    the same under torch.compile

The gradient is that of the prediction.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastvtp_kernels import masked_pixel_loss

from ..harness.case import Case, CaseFactory, Cost, Missing, Options
from ..harness.command import main
from ..harness.record import Direction
from ..harness.variants import TOLERANCES, bind, compiled, op_variants
from ..harness.workload import Workload, boolean_mask, engine_loss, normalized_clip, workload

INDEX_BYTES, LOSS_BYTES = 4, 4
FORWARD_FLOPS, BACKWARD_FLOPS = 9, 1


def pixel_loss_cost(batch: int, listed: int, values: int, itemsize: int, backward: bool) -> Cost:
    """Return the cost of reading index, uint8 pixels and prediction once and writing the loss, and the gradient if so.

    A value costs these FLOP: scale 1, mean 1, centre 1, variance 2, divide 1, difference 1, sum of squares 2; gradient
    1. They are few, and no matmul unit does them: the bytes are the floor.
    """
    count = batch * listed * values
    num_bytes = batch * listed * INDEX_BYTES + count + (1 + backward) * count * itemsize + LOSS_BYTES
    return Cost(num_bytes, count * (FORWARD_FLOPS + backward * BACKWARD_FLOPS))


def cases(options: Options) -> list[CaseFactory]:
    """Return the cases of the device's workload, one per direction."""
    work = workload(options)
    return [partial(pixel_loss_case, work, options, direction) for direction in ("forward", "forward+backward")]


def pixel_loss_case(work: Workload, options: Options, direction: Direction) -> Case:
    """Build the case of one workload and direction."""
    device, dtype = options.device, options.dtype
    video, masked = work.video(device), work.mask(device).masked
    hidden, clip = boolean_mask(masked, work.tokens), normalized_clip(video)
    prediction = torch.randn(*masked.shape, work.values, dtype=dtype, device=device)

    def engine(prediction: Tensor) -> Tensor:
        return engine_loss(prediction, clip, hidden, work.tubelet)

    def call(prediction: Tensor, backend: str) -> Tensor:
        return masked_pixel_loss(prediction, video, masked, tubelet=work.tubelet, backend=backend)

    functions: dict[str, Callable[..., Tensor] | Missing] = {
        "videomae engine": engine,
        "compiled videomae engine": compiled(engine, options),
        **op_variants("masked_pixel_loss", call, options),
    }
    variants, error = bind(functions, partial(call, backend="reference"), (prediction,), direction)
    listed = masked.shape[1]
    return Case(
        op="masked_pixel_loss",
        name=work.name,
        direction=direction,
        shape=work.shape(listed=listed, values=work.values),
        dtype=dtype,
        device=device,
        cost=pixel_loss_cost(work.batch, listed, work.values, dtype.itemsize, direction == "forward+backward"),
        variants=variants,
        baseline="videomae engine",
        error=error,
        tolerance=TOLERANCES[dtype],
    )


if __name__ == "__main__":
    main(cases, __doc__)
