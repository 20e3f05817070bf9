"""Launchers of the registered ops: the losses of tiles, and hard negatives."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from .. import philox, tuning
from ..launching import launch
from . import blockwise, sampling, split, tiles
from .blockwise import LossAndGradients
from .ranks import gather_batch
from .targets import Targets


def contrastive_loss(*inputs: Any) -> LossAndGradients:
    """Compute `blockwise.contrastive_loss` with tiles of features as they are, or split, for the registered op's
    arguments."""
    return blockwise.contrastive_loss_of_flat(split if inputs[5] else tiles, *inputs)


def sigmoid_loss(*inputs: Any) -> LossAndGradients:
    """Compute `blockwise.sigmoid_loss` in the same way."""
    return blockwise.sigmoid_loss_of_flat(split if inputs[4] else tiles, *inputs)


def hard_negatives(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    draw: Sequence[int],
    on_device: Tensor | None,
    groups: Tensor | None,
    splits: bool,
    group: str,
) -> tuple[Tensor, Tensor]:
    """Return b_for_a and a_for_b, int64 [B] each; `draw` and `on_device` are what `philox.for_kernels` returns,
    scale float32 [].

    With `splits` tiles are drawn by products as `split.py` makes them, and columns of a tile by float32 products.
    """
    batch = gather_batch(a, b, draw, on_device, groups, group)
    own, own_ids = batch.own, None if batch.groups is None else batch.groups[batch.own]
    every_a, every_b = tiles.prepare(batch.a), tiles.prepare(batch.b)
    a, b = every_a[own], every_b[own]
    products: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = split.wide if splits else lambda x, y: (x, y)
    targets = Targets(own.start, row_ids=own_ids, column_ids=batch.groups)
    x, y = products(a, every_b)
    rows, columns, _ = tiles.sweep(x, y, scale, targets, None)
    if len(a) < len(every_a):
        # Not of b's rows with all columns of a: these tiles are those of one process, and so are their sums' bits.
        targets = Targets(-own.start, row_ids=batch.groups, column_ids=own_ids)
        x, y = products(every_a, b)
        _, columns, _ = tiles.sweep(x, y, scale, targets, None)
    tile = tuning.tile("contrastive_statistics", torch.bfloat16 if splits else a.dtype, a.device)
    seed, step = draw
    chosen = []
    for word, (x, y, parts, width) in enumerate(
        ((a, every_b, rows, tile.blocks["BLOCK_N"]), (b, every_a, columns, tile.blocks["BLOCK_M"]))
    ):
        sampler = tuning.tile("contrastive_sample", torch.float32, a.device)
        chosen.append(torch.empty(len(x), dtype=torch.int64, device=x.device))
        launch(
            sampling.sample,
            (len(x),),
            x,
            y,
            scale,
            own_ids,
            batch.groups,
            parts,
            chosen[-1],
            on_device,
            philox.kernel_key(philox.HARD_NEGATIVES, seed),
            philox.signed(step, 32),
            own.start,
            len(parts),
            len(x),
            len(y),
            x.shape[1],
            WORD=word,
            ON_DEVICE=on_device is not None,
            IDS=groups is not None,
            BLOCK_PARTS=triton.next_power_of_2(len(parts)),
            BLOCK_N=width,
            tile=sampler,
        )
    return chosen[0], chosen[1]
