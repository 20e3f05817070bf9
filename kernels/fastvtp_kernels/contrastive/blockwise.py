"""The losses as sums over blocks of logits: what the kernels' and PyTorch's tiles have in common.

Each rank holds the logits of its own rows of `a` against every rank's rows of `b`, a strip at a time. Gradients are
computed with the loss: for the sigmoid loss a logit's gradient is known with the logit (three products of the size of
the logits); for InfoNCE the log-sum-exps are needed first, so that logits are computed twice (four products).

The loss of pairs that are told apart well is a small difference of large logits, and their gradients are small
differences of numbers near 1. InfoNCE is therefore computed from the log-odds L of all others against a row's own
pair, the log-sum-exp over them of (logit - own logit): a row's loss log(1 + exp(L)) and the gradient of its own logit
-1 / (1 + exp(-L)) are then as exact as L, however small.
"""

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..precision import compute_dtype
from .ranks import Ring
from .targets import LogSums, Shifts, Targets, occurrences, strips


class WantedGradients(NamedTuple):
    """Which gradients of a loss somebody asks for; true if there is any."""

    a: bool
    b: bool
    scalars: bool

    def __bool__(self) -> bool:
        return any(self)


class LossAndGradients(NamedTuple):
    """The loss [] and its gradients in the dtype of the computation; what nobody asks for has no elements."""

    loss: Tensor
    a: Tensor
    b: Tensor
    scalars: Tensor


class _Gradients:
    """Adds up the features' gradients over blocks and strips, before their common factor."""

    def __init__(self, tiles: ModuleType, a: Tensor, wanted: WantedGradients):
        self._tiles, self._wanted, self._a = tiles, wanted, a
        self.a = a.new_zeros(a.shape if wanted.a else 0, dtype=compute_dtype(a.dtype))

    def block(self, b: Tensor) -> Tensor | None:
        """Return zeros to add the gradient of a block of b to; None if nobody asks for it."""
        return torch.zeros_like(b, dtype=self.a.dtype) if self._wanted.b else None

    def add(self, strip: slice, logit_gradient: Tensor, b: Tensor, total_b: Tensor | None) -> None:
        """Add what the logits of these rows with this b contribute to both."""
        if self._wanted.a:
            self._tiles.accumulate(self.a[strip], logit_gradient, b)
        if total_b is not None:
            self._tiles.accumulate(total_b, logit_gradient.mT, self._a[strip])

    def finish(self, total_b: Tensor | None, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of this rank's a and b; without elements where nobody asks for them."""
        return self.a.mul_(factor), self.a.new_empty(0) if total_b is None else total_b.mul_(factor)


def _targets(ring: Ring, rows: int, positives: Tensor | None, label_smoothing: float, dtype: torch.dtype) -> Targets:
    """Return the targets of the block of logits of this rank's rows with all ranks' columns."""
    found = Targets(ring.rank * rows, 1 - label_smoothing, label_smoothing / (rows * ring.size))
    if positives is None:
        return found
    everyone = ring.gather(positives).flatten()
    weights = (1 - label_smoothing) / occurrences(positives, everyone).to(dtype)
    return found._replace(row_ids=positives, column_ids=everyone, weights=weights)


def contrastive_loss(
    tiles: ModuleType,
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    positives: Tensor | None,
    label_smoothing: float,
    wanted: WantedGradients,
    ring: Ring,
) -> LossAndGradients:
    """Return the symmetric InfoNCE of a [B, D] with every rank's b [B, D], and the gradients that are wanted.

    `tiles` computes blocks of logits: the module `tiles`, `split` or `chunked`. scale [] is in the dtype of the
    computation.
    """
    others = {
        "label smoothing": label_smoothing,
        "bytes of an id of positives (0: none)": 0 if positives is None else positives.dtype.itemsize,
    }
    ring.check_alike("contrastive_loss", a, wanted, others)
    targets = _targets(ring, len(a), positives, label_smoothing, scale.dtype)
    a = tiles.prepare(a)
    shift = tiles.shift(a, tiles.prepare(b), scale)
    shifts = Shifts(shift, ring.gather(shift).flatten())
    sums = torch.zeros(2, dtype=torch.float64, device=a.device)
    rows, own = scale.new_full((len(a),), float("-inf")), scale.new_zeros(len(a))
    columns = scale.new_empty(ring.size * len(a))
    visit = ring.visits(b)

    def measure(place: slice, block: Tensor) -> None:
        of_block = targets.of_columns(place), shifts.of_columns(place)
        found = tiles.statistics(a, tiles.prepare(block), scale, *of_block)
        rows.copy_(tiles.join(rows, found.rows))
        own.add_(found.own)
        columns[place] = found.columns
        sums[0] -= found.target * tiles.UNIT

    visit(measure)
    of_own_columns = tiles.join_parts(ring.exchange(columns.view(ring.size, -1)))
    odds = [(others - own) * tiles.UNIT for others in (rows, of_own_columns)]
    # log(1 + exp(x)) of any x; softplus is cut off at 20.
    sums[0] += sum(torch.logaddexp(x, torch.zeros_like(x)).sum(dtype=torch.float64) for x in odds)
    own_gradient = 2 * targets.missing() - odds[0].sigmoid() - odds[1].sigmoid()
    everyone = ring.gather(tiles.join(of_own_columns, own)).flatten()
    log_sums = LogSums(tiles.join(rows, own), everyone, own_gradient)

    def differentiate(place: slice, block: Tensor) -> Tensor | None:
        block = tiles.prepare(block)
        total_b = gradients.block(block)
        of_block = [x.of_columns(place) for x in (log_sums, targets, shifts)]
        for strip in strips(len(a), tiles.strip_rows(len(block))):
            of_strip = [x.of_rows(strip) for x in of_block]
            logit_gradient, product_sum = tiles.logit_gradient(a[strip], block, scale, *of_strip)
            sums[1] += product_sum
            gradients.add(strip, logit_gradient, block, total_b)
            # Frees its memory before the next strip's is allocated.
            del logit_gradient
        return total_b

    gradients = _Gradients(tiles, a, wanted)
    total_b = visit(differentiate) if wanted else None
    share = 0.5 / len(a)
    features = gradients.finish(total_b, scale * (share / tiles.gain(a.dtype)))
    return _over_ranks(ring, sums, share, features, scale.dtype)


def sigmoid_loss(
    tiles: ModuleType, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, wanted: WantedGradients, ring: Ring
) -> LossAndGradients:
    """Compute SigLIP's loss of a [B, D] with every rank's b [B, D]; the arguments are those of `contrastive_loss`."""
    ring.check_alike("sigmoid_loss", a, wanted, {})
    targets = _targets(ring, len(a), None, 0.0, scale.dtype)
    a = tiles.prepare(a)
    sums = torch.zeros(3, dtype=torch.float64, device=a.device)

    def contribute(place: slice, block: Tensor) -> Tensor | None:
        block = tiles.prepare(block)
        total_b = gradients.block(block)
        of_block = targets.of_columns(place)
        for strip in strips(len(a), tiles.strip_rows(len(block))):
            offset = of_block.of_rows(strip).offset
            logit_gradient, found = tiles.sigmoid(a[strip], block, scale, bias, offset, bool(wanted))
            sums.add_(found)
            if wanted:
                gradients.add(strip, logit_gradient, block, total_b)
            del logit_gradient
        return total_b

    gradients = _Gradients(tiles, a, wanted)
    total_b = ring.visits(b)(contribute)
    share = 1.0 / len(a)
    features = gradients.finish(total_b, scale * (share / tiles.gain(a.dtype)))
    return _over_ranks(ring, sums, share, features, scale.dtype)


def _over_ranks(
    ring: Ring, sums: Tensor, share: float, features: tuple[Tensor, Tensor], dtype: torch.dtype
) -> LossAndGradients:
    """Turn sums over this rank's rows, of the loss and of its derivatives by the scalars, to means over all rows.

    `share` is a row's part of the mean over this rank's rows; `features` are the gradients of a and b, finished.

    Every rank gets the mean global loss L and its gradients for the scalars. Features get ranks * dL/da: data-parallel
    training averages the parameters' gradients over the ranks, (1 / ranks) sum_r J_r^T (ranks * dL/da_r) = dL/dtheta.
    """
    means = ring.gather(sums).mean(dim=0) * share
    return LossAndGradients(means[0].to(dtype), *features, means[1:].to(dtype))


def contrastive_loss_of_flat(
    tiles: ModuleType, a: Tensor, b: Tensor, scale: Tensor, positives: Tensor | None, smoothing: float, *rest: Any
) -> LossAndGradients:
    """Compute `contrastive_loss` with the registered op's arguments: whether features are split, which `tiles` say,
    the wanted gradients as three bools, the group's name."""
    _, *wanted, group = rest
    return contrastive_loss(tiles, a, b, scale, positives, smoothing, WantedGradients(*wanted), Ring(group))


def sigmoid_loss_of_flat(
    tiles: ModuleType, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, *rest: Any
) -> LossAndGradients:
    """Compute `sigmoid_loss` in the same way."""
    _, *wanted, group = rest
    return sigmoid_loss(tiles, a, b, scale, bias, WantedGradients(*wanted), Ring(group))
