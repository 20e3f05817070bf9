"""The public ops: masking, tubelet embedding, losses and attention for masked video-text pretraining.

B clips, K listed tokens, N packed rows, S sequences, H heads. Video is uint8 [B, T, H, W, C]; token index =
(t * h + y) * w + x on the tubelet grid (t, h, w). Which implementation runs is decided in `dispatch`.
"""

from .attention import axial_attention, axial_attention_packed, varlen_attention, varlen_attention_packed
from .contrastive import HardNegatives, contrastive_loss, hard_negatives, sigmoid_loss
from .dispatch import BackendUnavailableError
from .masking import (
    BlockShapes,
    Replacement,
    TubeMask,
    block_tube_mask,
    replace_masked_tokens,
    running_cell_mask,
    text_mask,
    tube_mask,
)
from .pixel_loss import masked_pixel_loss
from .token_assembly import assemble_tokens
from .tubelets import gather_tubelets, tubelet_embed

__all__ = [
    "BackendUnavailableError",
    "BlockShapes",
    "HardNegatives",
    "Replacement",
    "TubeMask",
    "assemble_tokens",
    "axial_attention",
    "axial_attention_packed",
    "block_tube_mask",
    "contrastive_loss",
    "gather_tubelets",
    "hard_negatives",
    "masked_pixel_loss",
    "replace_masked_tokens",
    "running_cell_mask",
    "sigmoid_loss",
    "text_mask",
    "tube_mask",
    "tubelet_embed",
    "varlen_attention",
    "varlen_attention_packed",
]
