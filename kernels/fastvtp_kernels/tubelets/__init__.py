"""Gathering and embedding of tubelets."""

from .op import gather_tubelets, tubelet_embed

__all__ = ["gather_tubelets", "tubelet_embed"]
