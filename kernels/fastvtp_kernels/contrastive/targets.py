"""What is known of a block of logits before they are: which pairs belong together, and where zero is."""

from typing import NamedTuple

import torch
from torch import Tensor


class Shifts(NamedTuple):
    """What the logits of each row [M] and of each column [N] are measured from."""

    rows: Tensor
    columns: Tensor

    def of_rows(self, rows: slice) -> "Shifts":
        """Return the shifts of these rows with all columns."""
        return Shifts(self.rows[rows], self.columns)

    def of_columns(self, columns: slice) -> "Shifts":
        """Return the shifts of all rows with these columns."""
        return Shifts(self.rows, self.columns[columns])


class Targets(NamedTuple):
    """The target distribution of a block of logits [M, N].

    A row's own pair is the one with column = row + offset. A pair is positive if its ids are equal; without ids, if it
    is an own pair. Its weight in the target of its row, and of its column, is `positive_weight` (without ids) or the
    row's entry of `weights`. Besides, every pair has the weight `even` (label smoothing).
    """

    offset: int = 0
    positive_weight: float = 1.0
    even: float = 0.0
    row_ids: Tensor | None = None
    column_ids: Tensor | None = None
    weights: Tensor | None = None

    def of_rows(self, rows: slice) -> "Targets":
        """Return the targets of these rows of the block with all its columns."""
        found = self._replace(offset=self.offset + rows.start)
        if self.row_ids is None:
            return found
        weights = None if self.weights is None else self.weights[rows]
        return found._replace(row_ids=self.row_ids[rows], weights=weights)

    def of_columns(self, columns: slice) -> "Targets":
        """Return the targets of the block's rows with these columns alone."""
        ids = None if self.column_ids is None else self.column_ids[columns]
        return self._replace(offset=self.offset - columns.start, column_ids=ids)

    def missing(self) -> Tensor | float:
        """Return 1 less the target of each row's own pair, [M] or a number: exactly 0 where that is all the target."""
        return 1 - (self.positive_weight if self.weights is None else self.weights) - self.even

    def positive(self, logits: Tensor) -> Tensor:
        """bool [M, N], True for those logits [M, N] that belong to positive pairs."""
        if self.row_ids is None or self.column_ids is None:
            row, column = (torch.arange(size, device=logits.device) for size in logits.shape)
            return row[:, None] + self.offset == column
        return self.row_ids[:, None] == self.column_ids


class Statistics(NamedTuple):
    """What one sweep over a block of logits [M, N] finds; logits are those of each row, or column, less its shift.

    rows [M], columns [N]: log-sum-exps over all but own pairs. own [M]: the logit of the row's own pair, which is 0 but
    for rounding, or 0 where it lies in another block. target: float64 [], the sum over all but own pairs of target *
    (twice the logit less both shifts).
    """

    rows: Tensor
    columns: Tensor
    own: Tensor
    target: Tensor


class LogSums(NamedTuple):
    """What the gradients of a block of logits [M, N] need of all blocks, less the shifts as in `Statistics`.

    rows [M], columns [N]: log-sum-exps over all pairs. own_gradient [M]: the gradient of the logit of the row's own
    pair, as `logit_gradient` returns gradients but without their gain.
    """

    rows: Tensor
    columns: Tensor
    own_gradient: Tensor

    def of_rows(self, rows: slice) -> "LogSums":
        """Return those of these rows with all columns."""
        return LogSums(self.rows[rows], self.columns, self.own_gradient[rows])

    def of_columns(self, columns: slice) -> "LogSums":
        """Return those of all rows with these columns."""
        return LogSums(self.rows, self.columns[columns], self.own_gradient)


def occurrences(ids: Tensor, among: Tensor) -> Tensor:
    """Count how often each id [M] occurs in `among` [B]: int64 [M], by sorting: in O(B) memory, without the host."""
    ordered = among.sort().values
    return torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)


def strips(rows: int, height: int) -> list[slice]:
    """Cut all rows into pieces of `height`, the last one smaller."""
    return [slice(start, min(rows, start + height)) for start in range(0, rows, height)]
