"""Sums of rows that belong together in plain PyTorch: the specification, and what runs without kernels."""

import torch
from torch import Tensor

from ..packing import locate_rows
from ..precision import compute_dtype


def sum_rows(gradient: Tensor, rows: Tensor, places: Tensor, starts: Tensor, ignored: int) -> Tensor:
    """Sum, for each row of a table, the gradients of those that took it; see `op.sum_rows`."""
    wide = gradient.to(compute_dtype(gradient.dtype))
    summed = torch.ops.aten.embedding_dense_backward(wide, rows, len(starts) - 1, ignored, False)
    return summed.to(gradient.dtype)


def sum_sequences(x: Tensor, offsets: Tensor) -> Tensor:
    """Sum the rows of each sequence; see `op.sum_sequences`."""
    lengths = offsets.diff().long()
    # unsafe: skips the check of the lengths, which would read them back from the device
    wide = x.to(compute_dtype(x.dtype))
    return torch.segment_reduce(wide, "sum", lengths=lengths, axis=0, unsafe=True, initial=0.0)


def spread_sequences(values: Tensor, offsets: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    """Give each row what its sequence has; see `op.sum_sequences`, of which it is the gradient."""
    sequence, _ = locate_rows(offsets, num_rows)
    padded = torch.cat([values, values.new_zeros(1, values.shape[1])])
    return padded.index_select(0, sequence).to(dtype)
