"""Tube masks and other patterns for video, token masks and their replacements for text."""

from .op import TubeMask, text_mask, tube_mask
from .patterns import block_tube_mask, running_cell_mask
from .replacement import replace_masked_tokens

__all__ = ["TubeMask", "block_tube_mask", "replace_masked_tokens", "running_cell_mask", "text_mask", "tube_mask"]
