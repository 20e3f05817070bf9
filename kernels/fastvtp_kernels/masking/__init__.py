"""Tube masks for video, token masks for text."""

from .op import TubeMask, text_mask, tube_mask

__all__ = ["TubeMask", "text_mask", "tube_mask"]
