"""The losses as sums over blocks of logits: what the kernels' and PyTorch's tiles have in common.

Each rank holds the logits of its own rows of `a` against every rank's rows of `b`, a strip at a time. Gradients are
computed with the loss: for the sigmoid loss a logit's gradient is known with the logit (three products of the size of
the logits); for InfoNCE the log-sum-exps are needed first, so that logits are computed twice (four products).
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..precision import accumulate_product, compute_dtype
from .ranks import Ring
from .targets import Shifts, Targets, occurrences, strips


class Wanted(NamedTuple):
    """Which gradients are asked for."""

    a: bool
    b: bool
    scalars: bool

    def __bool__(self) -> bool:
        return any(self)


class Found(NamedTuple):
    """The loss [] and its gradients, in the dtype of the computation; without elements where not asked for."""

    loss: Tensor
    a: Tensor
    b: Tensor
    scalars: Tensor


class _Gradients:
    """Sums of the features' gradients over blocks and strips, before their common factor."""

    def __init__(self, a: Tensor, wanted: Wanted):
        self._wanted, self._a = wanted, a
        self.a = a.new_zeros(a.shape if wanted.a else 0, dtype=compute_dtype(a.dtype))

    def block(self, b: Tensor) -> Tensor | None:
        return torch.zeros_like(b, dtype=self.a.dtype) if self._wanted.b else None

    def add(self, strip: slice, logit_gradient: Tensor, b: Tensor, total_b: Tensor | None) -> None:
        if self._wanted.a:
            accumulate_product(self.a[strip], logit_gradient, b)
        if total_b is not None:
            accumulate_product(total_b, logit_gradient.T, self._a[strip])

    def finish(self, total_b: Tensor | None, factor: Tensor) -> tuple[Tensor, Tensor]:
        return self.a.mul_(factor), self.a.new_empty(0) if total_b is None else total_b.mul_(factor)


def _targets(
    ring: Ring, rows: int, positives: Tensor | None, label_smoothing: float, dtype: torch.dtype
) -> list[Targets]:
    """Of the block of logits with each rank's columns."""
    even = label_smoothing / (rows * ring.size)
    if positives is None:
        # Offsets tell which rank's columns hold a row's positive; far outside of [-rows, rows] no column does.
        offsets = (0 if owner == ring.rank else 2 * rows for owner in range(ring.size))
        return [Targets(offset, 1 - label_smoothing, even) for offset in offsets]
    everyone = ring.gather(positives)
    weights = (1 - label_smoothing) / occurrences(positives, everyone.flatten()).to(dtype)
    return [Targets(0, 1 - label_smoothing, even, positives, ids, weights) for ids in everyone]


def contrastive_loss(
    tiles: ModuleType,
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    positives: Tensor | None,
    label_smoothing: float,
    wanted: Wanted,
    ring: Ring,
) -> Found:
    """`tiles` is `kernels` or `chunked`; scale [] in the dtype of the computation."""
    width_of_ids = 0 if positives is None else positives.dtype.itemsize
    ring.check_alike("contrastive_loss", a, wanted, label_smoothing, width_of_ids)
    targets = _targets(ring, len(a), positives, label_smoothing, scale.dtype)
    a = tiles.prepare(a)
    shift = tiles.shift(a, tiles.prepare(b), scale)
    shifts = [Shifts(shift, columns) for columns in ring.gather(shift)]
    rows: list[Tensor] = []
    columns, sums = {}, torch.zeros(3, dtype=torch.float64, device=a.device)

    def measure(owner: int, block: Tensor) -> None:
        of_rows, columns[owner], target = tiles.statistics(
            a, tiles.prepare(block), scale, targets[owner], shifts[owner]
        )
        rows[:] = [tiles.join(rows[0], of_rows) if rows else of_rows]
        sums[0] -= target

    ring.visit(b, measure)
    everyone = ring.gather(torch.stack([columns[owner] for owner in range(ring.size)]))
    of_columns = everyone[0]
    for part in everyone[1:]:
        of_columns = tiles.join(of_columns, part)
    sums[0] += rows[0].sum(dtype=torch.float64) + of_columns[ring.rank].sum(dtype=torch.float64)
    sums[0] *= tiles.UNIT

    def differentiate(owner: int, block: Tensor) -> Tensor | None:
        block = tiles.prepare(block)
        total_b = gradients.block(block)
        for strip in strips(len(a), tiles.strip_rows(len(block))):
            logit_gradient, product_sum = tiles.logit_gradient(
                a[strip],
                block,
                scale,
                rows[0][strip],
                of_columns[owner],
                targets[owner].of_rows(strip),
                shifts[owner].of_rows(strip),
            )
            sums[1] += product_sum
            gradients.add(strip, logit_gradient, block, total_b)
            # Before the next strip's is there.
            del logit_gradient
        return total_b

    gradients = _Gradients(a, wanted)
    total_b = ring.visit(b, differentiate) if wanted else None
    return _finish(tiles, a, scale, sums, gradients, total_b, 0.5 / len(a), ring, 2)


def sigmoid_loss(
    tiles: ModuleType, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, wanted: Wanted, ring: Ring
) -> Found:
    """As `contrastive_loss`."""
    ring.check_alike("sigmoid_loss", a, wanted)
    targets = _targets(ring, len(a), None, 0.0, scale.dtype)
    a = tiles.prepare(a)
    sums = torch.zeros(3, dtype=torch.float64, device=a.device)

    def visit(owner: int, block: Tensor) -> Tensor | None:
        block = tiles.prepare(block)
        total_b = gradients.block(block)
        for strip in strips(len(a), tiles.strip_rows(len(block))):
            offset = targets[owner].of_rows(strip).offset
            logit_gradient, found = tiles.sigmoid(a[strip], block, scale, bias, offset, bool(wanted))
            sums.add_(found)
            if wanted:
                gradients.add(strip, logit_gradient, block, total_b)
            del logit_gradient
        return total_b

    gradients = _Gradients(a, wanted)
    total_b = ring.visit(b, visit)
    return _finish(tiles, a, scale, sums, gradients, total_b, 1.0 / len(a), ring, 3)


def _finish(
    tiles: ModuleType,
    a: Tensor,
    scale: Tensor,
    sums: Tensor,
    gradients: _Gradients,
    total_b: Tensor | None,
    share: float,
    ring: Ring,
    count: int,
) -> Found:
    """Sums over this rank's rows to the mean over all; `share` is a row's part of the mean over this rank's rows.

    Every rank gets the mean global loss L and its gradients for the scalars. Features get ranks * dL/da: data-parallel
    training averages the parameters' gradients over the ranks, (1 / ranks) sum_r J_r^T (ranks * dL/da_r) = dL/dtheta.
    """
    means = ring.gather(sums).mean(dim=0) * share
    of_a, of_b = gradients.finish(total_b, scale * (share / tiles.gain(a.dtype)))
    return Found(means[0].to(scale.dtype), of_a, of_b, means[1:count].to(scale.dtype))
