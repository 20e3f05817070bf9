"""Capacities: shapes that stay the same though captions change.

Code that is compiled, or captured as a graph, is made for shapes. A plan therefore rounds what changes from batch to
batch, tokens of texts and masked words, up to a few sizes; what is behind the real rows is nobody's: rows that are in
no sequence, labels that no loss counts. A batch that needs more simply has the next size.
"""

import torch
from torch import Tensor

NO_LABEL = -100
"""The label of what no loss counts, torch's own."""
_LENGTHS = 64


def bucket(count: int, bits: int = 4) -> int:
    """Round a count up to `bits` significant binary digits, and to 1 at least: with 4 to 8, 9, ... 16, 18, ... 32, 36,
    so that the excess is at most an eighth, and a sixteenth in the middle."""
    step = 1 << max(count.bit_length() - bits, 0)
    return max(-(-count // step) * step, 1)


def length_bound(length: int, limit: int) -> int:
    """Return a bound on the longest sequence that changes seldom: a multiple of 64, at most `limit`, which no sequence
    exceeds."""
    return min(-(-length // _LENGTHS) * _LENGTHS, limit)


def pad_rows(rows: Tensor, capacity: int, value: int) -> Tensor:
    """Return `rows`, [N, ...], with rows of `value` behind them, up to `capacity`."""
    return torch.cat([rows, rows.new_full((capacity - len(rows), *rows.shape[1:]), value)])


def waste(real: int, capacity: int) -> float:
    """Return the share of `capacity` rows that are nobody's."""
    return 1 - real / capacity
