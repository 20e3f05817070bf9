"""Tube masks and text masks in plain PyTorch: the specification."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import philox
from ..packing import locate_rows


def tube_mask(
    sample_ids: Tensor, slots: int, cells: int, hidden_cells: int, draw: Sequence[int], on_device: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return visible and masked tokens, int32 [B, slots * shown] and [B, slots * hidden], of sample_ids int64 [B].

    Cells are ranked by (32 random bits, cell index); the first `hidden_cells` are hidden in every time slot. `draw`
    and `on_device` are what `philox.for_kernels` returns.
    """
    key, time = philox.from_kernels(draw, on_device)
    cell = torch.arange(cells, device=sample_ids.device)
    sample = philox.split_words(sample_ids[:, None])
    bits = philox.random_words(philox.TUBE_MASK, key, (*sample, time, cell))[0]
    order = bits.argsort(dim=1, stable=True)
    slot_start = torch.arange(slots, device=cell.device)[:, None] * cells

    def tokens(chosen: Tensor) -> Tensor:
        ascending = chosen.sort(dim=1).values
        return (slot_start + ascending[:, None, :]).flatten(1).int()

    return tokens(order[:, hidden_cells:]), tokens(order[:, :hidden_cells])


def text_mask(
    input_ids: Tensor,
    cu_seqlens: Tensor,
    mask_ratio: float,
    special_ids: Sequence[int],
    seed: philox.Word,
    step: philox.Word,
    sample_ids: Tensor,
) -> Tensor:
    """Return bool [N]: a token is masked when its random number, keyed by (sample, position), is below the ratio."""
    sequence, position = locate_rows(cu_seqlens, input_ids.shape[0])
    maskable = sequence < sample_ids.shape[0]
    for special in special_ids:
        maskable = maskable & (input_ids != special)
    # Rows past the end belong to no sample; a zero keeps the lookup in range.
    sample = torch.cat([sample_ids, sample_ids.new_zeros(1)])[sequence]
    bits = philox.random_words(philox.TEXT_MASK, seed, (*philox.split_words(sample), step, position))[0]
    return maskable & philox.bernoulli(bits, mask_ratio)
