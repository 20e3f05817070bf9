"""Decoder input of masked autoencoders."""

from .op import assemble_tokens

__all__ = ["assemble_tokens"]
