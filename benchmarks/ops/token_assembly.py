"""Measures assemble_tokens beside the usual code, in VideoMAE's order and with VideoPrism's shuffle.

Visible tokens first:
  videomae             VideoMAE's way: positions expanded and cloned for every clip, split with the boolean mask,
                       torch.cat([x + pos_visible, mask_token + pos_masked])
  hf                   the same as VideoMAEForPreTraining of transformers has it: positions copied with .to(copy=True)
Shuffled:
  mae                  MAE's way (ViTMAE in transformers too): mask tokens repeated, appended, torch.gather with an
                       index repeated over the width, positions added

Gradients are those of the visible tokens and the mask token; positions are fixed.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastvtp_kernels import assemble_tokens

from ..harness.case import Case, CaseFactory, Cost, Missing, Options
from ..harness.command import main
from ..harness.record import Direction
from ..harness.variants import TOLERANCES, bind, op_variants
from ..harness.workload import Workload, boolean_mask, workload

INDEX_BYTES = 4


def assembly_cost(
    batch: int, visible: int, masked: int, width: int, tokens: int, itemsize: int, backward: bool
) -> Cost:
    """Return the cost of reading index, visible tokens, mask token and positions and writing tokens, one FLOP a value.

    Each position row is read once: min(B * (Kv + Km), tokens) rows. The backward pass reads the incoming gradient,
    writes those of the visible tokens and the mask token, and adds up the rows of the latter; with a permutation it
    reads the index again, which is left out here.
    """
    rows = batch * (visible + masked)
    read = batch * visible * width + width
    forward = rows * INDEX_BYTES + (read + min(rows, tokens) * width + rows * width) * itemsize
    gradients = (rows * width + read) * itemsize
    return Cost(forward + backward * gradients, rows * width + backward * batch * masked * width)


def cases(options: Options) -> list[CaseFactory]:
    """Return the cases of the device's workload: in order and shuffled, each in both directions."""
    work = workload(options)
    return [
        partial(assembly_case, work, options, direction, shuffled)
        for shuffled in (False, True)
        for direction in ("forward", "forward+backward")
    ]


def assembly_case(work: Workload, options: Options, direction: Direction, shuffled: bool) -> Case:
    """Build the case of one workload and direction; `shuffled` says whether a permutation orders the tokens."""
    device, dtype, width, tokens = options.device, options.dtype, work.decoder_width, work.tokens
    mask = work.mask(device)
    hidden = boolean_mask(mask.masked, tokens)
    visible = torch.randn(*mask.visible.shape, width, dtype=dtype, device=device)
    mask_token = torch.randn(1, 1, width, dtype=dtype, device=device)
    position = torch.randn(tokens, width, dtype=dtype, device=device)
    order = torch.rand(work.batch, tokens, device=device).argsort(dim=1)
    permutation = order.int() if shuffled else None

    def split_positions(visible: Tensor, mask_token: Tensor, positions: Tensor) -> Tensor:
        seen, unseen = (positions[chosen].reshape(work.batch, -1, width) for chosen in (~hidden, hidden))
        return torch.cat([visible + seen, mask_token + unseen], dim=1)

    def videomae(visible: Tensor, mask_token: Tensor) -> Tensor:
        return split_positions(visible, mask_token, position.expand(work.batch, -1, -1).clone())

    def hugging_face(visible: Tensor, mask_token: Tensor) -> Tensor:
        return split_positions(visible, mask_token, position.expand(work.batch, -1, -1).to(device, copy=True))

    def mae(visible: Tensor, mask_token: Tensor) -> Tensor:
        sequence = torch.cat([visible, mask_token.repeat(work.batch, mask.masked.shape[1], 1)], dim=1)
        return sequence.gather(1, order[..., None].repeat(1, 1, width)) + position

    def call(visible: Tensor, mask_token: Tensor, backend: str) -> Tensor:
        return assemble_tokens(
            visible, mask_token, position, mask.visible, mask.masked, permutation=permutation, backend=backend
        )

    usual: dict[str, Callable[..., Tensor]] = {"mae": mae} if shuffled else {"videomae": videomae, "hf": hugging_face}
    functions: dict[str, Callable[..., Tensor] | Missing] = {
        **usual,
        **op_variants("assemble_tokens", call, options),
    }
    variants, error = bind(functions, partial(call, backend="reference"), (visible, mask_token), direction)
    counts = mask.visible.shape[1], mask.masked.shape[1]
    return Case(
        op="assemble_tokens",
        name=f"{work.name}, shuffled" if shuffled else work.name,
        direction=direction,
        shape=work.shape(visible=counts[0], masked=counts[1], width=width),
        dtype=dtype,
        device=device,
        cost=assembly_cost(work.batch, *counts, width, tokens, dtype.itemsize, direction == "forward+backward"),
        variants=variants,
        baseline=next(iter(usual)),
        error=error,
        tolerance=TOLERANCES[dtype],
    )


if __name__ == "__main__":
    main(cases, __doc__)
