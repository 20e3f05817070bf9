"""The tiles of `tiles.py` in plain PyTorch: a strip of rows at a time, never all logits. Logits in natural units."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import philox
from ..precision import accumulate_product, compute_dtype
from .ranks import gather_batch
from .reference import sample_rows
from .targets import LogSums, Shifts, Statistics, Targets, strips

_STRIP_LOGITS = 1 << 22


join, accumulate = torch.logaddexp, accumulate_product
UNIT = 1.0


def join_parts(parts: Tensor) -> Tensor:
    """Return the log-sum-exp [count] over the first axis of [parts, count]."""
    return parts.logsumexp(dim=0) if len(parts) > 1 else parts[0]


def strip_rows(columns: int) -> int:
    """Tell how many rows of logits are in memory at a time: up to 2^22 numbers."""
    return max(1, _STRIP_LOGITS // columns)


def prepare(x: Tensor) -> Tensor:
    """Return features as the other functions here take them: in the dtype of the computation."""
    return x.to(compute_dtype(x.dtype))


def gain(dtype: torch.dtype) -> float:
    """Return 1: gradients of logits are kept in a dtype that holds them as they are."""
    return 1.0


def _sum(values: Tensor) -> Tensor:
    """Return the sum as float64 []: of each row in its own dtype, which torch adds up pairwise, then of all."""
    return values.sum(dim=1).sum(dtype=torch.float64)


def _add_target(logits: Tensor, targets: Targets, factor: float) -> None:
    """logits += factor * target, in place, but for own pairs."""
    if targets.even:
        logits.add_(factor * targets.even)
    if targets.row_ids is not None:
        assert targets.weights is not None
        logits.add_(targets.positive(logits) * (factor * targets.weights)[:, None])


def _target_sum(excess: Tensor, targets: Targets) -> Tensor | float:
    """Return the sum of target * excess over the pairs that are not own ones, float64 []."""
    excess.diagonal(targets.offset).zero_()
    total = targets.even * _sum(excess) if targets.even else 0.0
    if targets.row_ids is None:
        return total
    assert targets.weights is not None
    of_row = excess.masked_fill_(~targets.positive(excess), 0).sum(dim=1)
    return total + (of_row * targets.weights).sum(dtype=torch.float64)


def shift(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Return the logit of each row's own pair [M], from which the logits of its row and column are measured."""
    return (a * b).sum(dim=1) * scale


def statistics(a: Tensor, b: Tensor, scale: Tensor, targets: Targets, shifts: Shifts) -> Statistics:
    """Compute the `Statistics` of a block of logits."""
    rows, columns = [], scale.new_full((len(b),), float("-inf"))
    own, target = scale.new_zeros(len(a)), scale.new_zeros((), dtype=torch.float64)
    for strip in strips(len(a), strip_rows(len(b))):
        of_strip = targets.of_rows(strip)
        logits = (a[strip] @ b.T).mul_(scale)
        of_rows = logits - shifts.rows[strip, None]
        of_columns = logits.sub_(shifts.columns)
        found = of_rows.diagonal(of_strip.offset)
        own[strip][: len(found)] = found
        for measured in (of_rows, of_columns):
            measured.diagonal(of_strip.offset).fill_(float("-inf"))
        rows.append(of_rows.logsumexp(dim=1))
        columns = torch.logaddexp(columns, of_columns.logsumexp(dim=0))
        if targets.even or targets.row_ids is not None:
            target += _target_sum(of_rows.add_(of_columns), of_strip)
    return Statistics(torch.cat(rows), columns, own, target)


def logit_gradient(
    a: Tensor, b: Tensor, scale: Tensor, sums: LogSums, targets: Targets, shifts: Shifts
) -> tuple[Tensor, Tensor]:
    """Return the gradient of each logit [M, N], before the common factor, and its sum with the products, float64 []."""
    products = a @ b.T
    logits = products * scale
    gradient = (logits - shifts.columns).sub_(sums.columns).exp_()
    gradient += logits.sub_(shifts.rows[:, None]).sub_(sums.rows[:, None]).exp_()
    _add_target(gradient, targets, -2.0)
    of_own = gradient.diagonal(targets.offset)
    of_own.copy_(sums.own_gradient[: len(of_own)])
    return gradient, _sum(products.mul_(gradient))


def sigmoid(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, offset: int, with_gradient: bool
) -> tuple[Tensor | None, Tensor]:
    products = a @ b.T
    z = products * scale + bias
    z.diagonal(offset).neg_()
    # Not softplus, which is cut off at 20: too early for float64.
    loss = -_sum(torch.nn.functional.logsigmoid(-z))
    if not with_gradient:
        return None, torch.stack((loss, 0 * loss, 0 * loss))
    gradient = z.sigmoid_()
    gradient.diagonal(offset).neg_()
    return gradient, torch.stack((loss, _sum(products.mul_(gradient)), _sum(gradient)))


def hard_negatives(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    draw: Sequence[int],
    on_device: Tensor | None,
    groups: Tensor | None,
    split: bool,
    group: str,
) -> tuple[Tensor, Tensor]:
    """Return b_for_a and a_for_b, int64 [B] each; the arguments are the registered op's. Nothing is split here."""
    batch = gather_batch(a, b, draw, on_device, groups, group)
    a, b = prepare(batch.a), prepare(batch.b)
    row = torch.arange(batch.own.start, batch.own.stop, device=a.device)
    seed, step = philox.from_kernels(draw, on_device)
    words = philox.random_words(philox.HARD_NEGATIVES, seed, (row, step, 0, 0))
    targets = Targets(row_ids=batch.groups, column_ids=batch.groups)
    chosen = []
    for x, y, high, low in ((a, b, words[0], words[2]), (b, a, words[1], words[3])):
        uniform = philox.uniform(high, low)
        found = []
        for strip, own in _own_strips(len(x), strip_rows(4 * len(y)), batch.own):
            logits = ((x[strip] @ y.T) * scale)[own.start - strip.start : own.stop - strip.start]
            excluded = targets.of_rows(own).positive(logits)
            drawn = uniform[own.start - batch.own.start : own.stop - batch.own.start]
            found.append(sample_rows(logits, excluded, drawn))
        chosen.append(torch.cat(found))
    return chosen[0], chosen[1]


def _own_strips(rows: int, height: int, own: slice) -> list[tuple[slice, slice]]:
    """Return the strips of all rows that hold some of `own`, and which those are.

    Their products are of whole strips, with rows of other ranks where strips are cut: one of another shape may round
    otherwise, and what is drawn of the same batch would depend on the number of ranks.
    """
    found = [(strip, slice(max(strip.start, own.start), min(strip.stop, own.stop))) for strip in strips(rows, height)]
    return [(strip, part) for strip, part in found if part.start < part.stop]
