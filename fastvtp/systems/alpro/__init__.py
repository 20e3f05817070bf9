"""ALPRO (arXiv:2112.09583): video and text aligned before they are fused, and prompted entities."""
