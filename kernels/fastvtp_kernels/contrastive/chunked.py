"""The tiles of `kernels.py` in plain PyTorch: a strip of rows at a time, never all logits. Logits in natural units."""

import torch
from torch import Tensor

from .. import philox
from ..precision import compute_dtype
from .reference import sample_rows
from .targets import Shifts, Targets, strips

_STRIP_LOGITS = 1 << 22


join = torch.logaddexp
UNIT = 1.0


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
    """logits += factor * target, in place."""
    if targets.even:
        logits.add_(factor * targets.even)
    if targets.row_ids is None:
        logits.diagonal(targets.offset).add_(factor * targets.positive_weight)
    else:
        assert targets.weights is not None
        logits.add_(targets.positive(logits) * (factor * targets.weights)[:, None])


def _target_sum(products: Tensor, targets: Targets) -> Tensor:
    total = targets.even * _sum(products) if targets.even else 0.0
    if targets.row_ids is None:
        return total + targets.positive_weight * products.diagonal(targets.offset).sum(dtype=torch.float64)
    assert targets.weights is not None
    of_row = products.masked_fill(~targets.positive(products), 0).sum(dim=1)
    return total + (of_row * targets.weights).sum(dtype=torch.float64)


def shift(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Return zeros: this path measures logits from zero, as PyTorch's own cross-entropy does."""
    return scale.new_zeros(len(a))


def statistics(a: Tensor, b: Tensor, scale: Tensor, targets: Targets, shifts: Shifts) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-sum-exps of rows [M] and columns [N] of the logits, and the sum over all pairs of target * 2 logits
    []."""
    rows, columns, target = [], None, torch.zeros((), dtype=torch.float64, device=a.device)
    for strip in strips(len(a), strip_rows(len(b))):
        logits = a[strip] @ b.T
        target += _target_sum(logits, targets.of_rows(strip))
        logits *= scale
        rows.append(logits.logsumexp(dim=1))
        found = logits.logsumexp(dim=0)
        columns = found if columns is None else torch.logaddexp(columns, found)
    assert columns is not None
    return torch.cat(rows), columns, 2 * target * scale


def logit_gradient(
    a: Tensor, b: Tensor, scale: Tensor, rows: Tensor, columns: Tensor, targets: Targets, shifts: Shifts
) -> tuple[Tensor, Tensor]:
    products = a @ b.T
    logits = products * scale
    gradient = (logits - columns).exp_()
    gradient += logits.sub_(rows[:, None]).exp_()
    _add_target(gradient, targets, -2.0)
    return gradient, _sum(products.mul_(gradient))


def sigmoid(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, offset: int, with_gradient: bool
) -> tuple[Tensor | None, Tensor]:
    products = a @ b.T
    z = products * scale + bias
    z.diagonal(offset).neg_()
    loss = _sum(torch.nn.functional.softplus(z))
    if not with_gradient:
        return None, torch.stack((loss, 0 * loss, 0 * loss))
    gradient = z.sigmoid_()
    gradient.diagonal(offset).neg_()
    return gradient, torch.stack((loss, _sum(products.mul_(gradient)), _sum(gradient)))


def hard_negatives(
    a: Tensor, b: Tensor, scale: Tensor, seed: int, step: int, groups: Tensor | None
) -> tuple[Tensor, Tensor]:
    a, b = prepare(a), prepare(b)
    row = torch.arange(len(a), device=a.device)
    words = philox.random_words(philox.HARD_NEGATIVES, seed, (row, step, 0, 0))
    targets = Targets(row_ids=groups, column_ids=groups)
    chosen = []
    for x, y, high, low in ((a, b, words[0], words[2]), (b, a, words[1], words[3])):
        uniform = philox.uniform(high, low)
        found = []
        for strip in strips(len(x), strip_rows(4 * len(y))):
            logits = (x[strip] @ y.T) * scale
            excluded = targets.of_rows(strip).positive(logits)
            found.append(sample_rows(logits, excluded, uniform[strip]))
        chosen.append(torch.cat(found))
    return chosen[0], chosen[1]
