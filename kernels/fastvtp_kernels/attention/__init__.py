"""Attention over packed sequences and along an axis."""

from .op import axial_attention, varlen_attention, varlen_attention_packed

__all__ = ["axial_attention", "varlen_attention", "varlen_attention_packed"]
