"""Decoder input of a masked autoencoder in plain PyTorch: the specification."""

import torch
import torch.nn.functional as F
from torch import Tensor


def assemble_tokens(
    visible: Tensor,
    mask_token: Tensor,
    position: Tensor,
    visible_index: Tensor,
    masked_index: Tensor,
    permutation: Tensor | None,
) -> Tensor:
    """[B, Kv + Km, D]: visible tokens [B, Kv, D] and mask tokens, with positions, as the public op states."""
    mask_rows = mask_token.to(visible.dtype).flatten().expand(*masked_index.shape, -1)
    sequence = torch.cat([visible, mask_rows], dim=1)
    if permutation is None:
        # Looked up before the cast: the table's gradient is then summed over the batch in its own precision.
        index = torch.cat([visible_index, masked_index], dim=1)
        return sequence + F.embedding(index, position).to(visible.dtype)
    order = permutation.long().expand(visible.shape[0], -1)[..., None].expand_as(sequence)
    return sequence.gather(1, order) + position.to(visible.dtype)
