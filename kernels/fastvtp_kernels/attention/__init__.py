"""Attention over packed sequences and along one axis."""

from .op import axial_attention, varlen_attention

__all__ = ["axial_attention", "varlen_attention"]
