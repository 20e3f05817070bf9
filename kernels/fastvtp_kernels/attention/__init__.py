"""Attention over packed sequences and along an axis."""

from .op import axial_attention, axial_attention_packed, varlen_attention, varlen_attention_packed

__all__ = ["axial_attention", "axial_attention_packed", "varlen_attention", "varlen_attention_packed"]
