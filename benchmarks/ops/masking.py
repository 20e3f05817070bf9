"""Measures tube_mask beside the usual code.

videomae             VideoMAE's way: numpy shuffles one vector per clip, on the host; the batch is stacked, moved to the
                     device and made boolean. The mask stays boolean: finding its indices is part of what uses it.
                     Its time is the clock's on every device.
argsort of rand      MAE's way: cells ordered by torch.rand on the device; the indices are not sorted
reference, triton    indices in ascending order, the same for (seed, step, sample) anywhere

No variant is timed that hides the wrong number of cells or not the same ones in every slot; fastvtp's own must equal
the reference index for index.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvtp_kernels import TubeMask, tube_mask

from ..harness.case import Case, CaseFactory, Cost, Missing, Options
from ..harness.command import main
from ..harness.timing import Function, HostSide
from ..harness.variants import op_variants
from ..harness.workload import Workload, boolean_mask, workload

INDEX_BYTES, SAMPLE_ID_BYTES = 4, 8


def tube_mask_cost(batch: int, tokens: int) -> Cost:
    """Return the cost of reading sample ids and writing every token's index to one of two lists, none of it FLOP."""
    return Cost(batch * (SAMPLE_ID_BYTES + tokens * INDEX_BYTES), 0)


def cases(options: Options) -> list[CaseFactory]:
    """Return the only case, that of the device's workload."""
    return [partial(tube_mask_case, workload(options), options)]


def tube_mask_case(work: Workload, options: Options) -> Case:
    """Build the case of one workload's masks."""
    device, batch = options.device, work.batch
    slots, cells = work.grid[0], work.grid[1] * work.grid[2]
    hidden_cells = int(work.mask_ratio * cells)
    generator = np.random.default_rng(0)
    sample_ids = torch.arange(batch, device=device)

    def videomae() -> Tensor:
        masks = []
        for _ in range(batch):
            slot = np.hstack([np.zeros(cells - hidden_cells), np.ones(hidden_cells)])
            generator.shuffle(slot)
            masks.append(np.tile(slot, (slots, 1)).flatten())
        return torch.from_numpy(np.stack(masks)).to(device).to(torch.bool)

    def argsort_of_rand() -> tuple[Tensor, Tensor]:
        order = torch.rand(batch, cells, device=device).argsort(dim=1)
        slot_start = torch.arange(slots, device=device)[:, None] * cells
        tokens = [slot_start + chosen[:, None] for chosen in (order[:, hidden_cells:], order[:, :hidden_cells])]
        return tokens[0].flatten(1), tokens[1].flatten(1)

    def call(backend: str) -> TubeMask:
        return tube_mask(batch, work.grid, work.mask_ratio, seed=0, sample_ids=sample_ids, backend=backend)

    variants: dict[str, Function | Missing] = {
        "videomae": HostSide(videomae),
        "argsort of rand": argsort_of_rand,
        **op_variants("tube_mask", call, options),
    }
    return Case(
        op="tube_mask",
        name=work.name,
        direction="forward",
        shape=work.shape(hidden_cells=hidden_cells),
        dtype=torch.int32,
        device=device,
        cost=tube_mask_cost(batch, work.tokens),
        variants=variants,
        baseline="videomae",
        error=_mask_error(work.grid, hidden_cells, call("reference")),
        tolerance=0.0,
    )


def _mask_error(grid: tuple[int, int, int], hidden_cells: int, expected: TubeMask) -> Callable[[Any], float]:
    """Return a judge of masks: the share of wrong indices in fastvtp's own, of clips without a right mask in others."""
    tokens = grid[0] * grid[1] * grid[2]

    def error(output: Any) -> float:
        if isinstance(output, TubeMask):
            wrong = [(one != other).float().mean() for one, other in zip(output, expected, strict=True)]
            return torch.stack(wrong).max().item()
        if isinstance(output, tuple):
            visible, hidden = (boolean_mask(index, tokens) for index in output)
            disjoint = (visible ^ hidden).all(dim=1)
        else:
            hidden, disjoint = output, torch.ones_like(output[:, 0])
        slots = hidden.unflatten(1, (grid[0], -1))
        same = (slots == slots[:, :1]).all(dim=2).all(dim=1)
        return 1 - (disjoint & same & (slots[:, 0].sum(dim=1) == hidden_cells)).float().mean().item()

    return error


if __name__ == "__main__":
    main(cases, __doc__)
