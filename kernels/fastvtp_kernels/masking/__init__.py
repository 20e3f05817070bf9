"""Tube masks and other patterns for video, token masks and their replacements for text."""

from .op import TubeMask, text_mask, tube_mask
from .patterns import BlockShapes, block_tube_mask, running_cell_mask
from .replacement import Replacement, replace_masked_tokens

__all__ = [
    "BlockShapes",
    "Replacement",
    "TubeMask",
    "block_tube_mask",
    "replace_masked_tokens",
    "running_cell_mask",
    "text_mask",
    "tube_mask",
]
