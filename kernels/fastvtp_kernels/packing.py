"""The packed layout, rows [N, ...] with offsets cu_seqlens [S + 1], and its padded twin [S, L, ...]."""

import torch
from torch import Tensor


def locate_rows(cu_seqlens: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return each row's sequence and position there, int64 [num_rows]; rows from cu_seqlens[-1] on get sequence S."""
    row = torch.arange(num_rows, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    # right=True skips empty sequences: of equal offsets the last one owns the row.
    sequence = torch.searchsorted(cu_seqlens, row, right=True) - 1
    return sequence, (row - cu_seqlens[sequence]).long()


def padded_slots(cu_seqlens: Tensor, num_rows: int, max_seqlen: int) -> Tensor:
    """Return each row's slot among the S * max_seqlen of the padded layout; rows of no sequence get the one after."""
    slots = (cu_seqlens.shape[0] - 1) * max_seqlen
    sequence, position = locate_rows(cu_seqlens, num_rows)
    return torch.where(position < max_seqlen, sequence * max_seqlen + position, slots).clamp(max=slots)


def pad_rows(rows: Tensor, slot: Tensor, sequences: int, max_seqlen: int) -> Tensor:
    """Pad rows [N, ...] to [S, max_seqlen, ...], zero where there is no row."""
    padded = rows.new_zeros(sequences * max_seqlen + 1, *rows.shape[1:]).index_copy_(0, slot, rows)
    return padded[:-1].unflatten(0, (sequences, max_seqlen))


def unpad_rows(padded: Tensor, slot: Tensor, valid: Tensor) -> Tensor:
    """Pack [S, max_seqlen, ...] to rows [N, ...], zero for rows of no sequence and where `valid` [S, L] is False."""
    valid_row = torch.cat([valid.flatten(), valid.new_zeros(1)])[slot]
    rows = padded.flatten(0, 1).index_select(0, slot.clamp(max=valid.numel() - 1))
    return rows.masked_fill(~valid_row.view(-1, *[1] * (rows.ndim - 1)), 0)
