"""The packed layout, rows [N, ...] with offsets cu_seqlens [S + 1], and its padded twin [S, L, ...]."""

import torch
from torch import Tensor


def locate_rows(cu_seqlens: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Sequence index and position within it, int64 [num_rows] each; rows from cu_seqlens[-1] on get sequence S."""
    row = torch.arange(num_rows, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    # right=True skips empty sequences: of equal offsets the last one owns the row.
    sequence = torch.searchsorted(cu_seqlens, row, right=True) - 1
    return sequence, (row - cu_seqlens[sequence]).long()


def padded_slots(cu_seqlens: Tensor, num_rows: int, max_seqlen: int) -> Tensor:
    """Slot of each row among the S * max_seqlen of the padded layout; a row of no sequence gets the one after them."""
    slots = (cu_seqlens.shape[0] - 1) * max_seqlen
    sequence, position = locate_rows(cu_seqlens, num_rows)
    return torch.where(position < max_seqlen, sequence * max_seqlen + position, slots).clamp(max=slots)


def pad_rows(rows: Tensor, slot: Tensor, sequences: int, max_seqlen: int) -> Tensor:
    """[N, ...] -> [S, max_seqlen, ...], zero where there is no row."""
    padded = rows.new_zeros(sequences * max_seqlen + 1, *rows.shape[1:]).index_copy_(0, slot, rows)
    return padded[:-1].unflatten(0, (sequences, max_seqlen))


def unpad_rows(padded: Tensor, slot: Tensor, valid: Tensor) -> Tensor:
    """[S, max_seqlen, ...] -> [N, ...], zero for rows of no sequence and where `valid` [S, max_seqlen] is False."""
    valid_row = torch.cat([valid.flatten(), valid.new_zeros(1)])[slot]
    rows = padded.flatten(0, 1).index_select(0, slot.clamp(max=valid.numel() - 1))
    return rows.masked_fill(~valid_row.view(-1, *[1] * (rows.ndim - 1)), 0)
