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


class Targets(NamedTuple):
    """The target distribution of a block of logits [M, N].

    A pair is positive if its ids are equal; without ids, if column = row + offset. Its weight in the target of its row,
    and of its column, is `positive_weight` (without ids) or the row's entry of `weights`. Besides, every pair has the
    weight `even` (label smoothing).
    """

    offset: int = 0
    positive_weight: float = 1.0
    even: float = 0.0
    row_ids: Tensor | None = None
    column_ids: Tensor | None = None
    weights: Tensor | None = None

    def of_rows(self, rows: slice) -> "Targets":
        """Return the targets of these rows of the block with all its columns."""
        if self.row_ids is None:
            return self._replace(offset=self.offset + rows.start)
        weights = None if self.weights is None else self.weights[rows]
        return self._replace(row_ids=self.row_ids[rows], weights=weights)

    def positive(self, logits: Tensor) -> Tensor:
        """bool [M, N], True for those logits [M, N] that belong to positive pairs."""
        if self.row_ids is None or self.column_ids is None:
            row, column = (torch.arange(size, device=logits.device) for size in logits.shape)
            return row[:, None] + self.offset == column
        return self.row_ids[:, None] == self.column_ids


def occurrences(ids: Tensor, among: Tensor) -> Tensor:
    """Count how often each id [M] occurs in `among` [B]: int64 [M], by sorting: in O(B) memory, without the host."""
    ordered = among.sort().values
    return torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)


def strips(rows: int, height: int) -> list[slice]:
    """Cut all rows into pieces of `height`, the last one smaller."""
    return [slice(start, min(rows, start + height)) for start in range(0, rows, height)]
