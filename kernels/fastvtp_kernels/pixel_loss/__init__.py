"""Masked pixel loss."""

from .op import masked_pixel_loss

__all__ = ["masked_pixel_loss"]
