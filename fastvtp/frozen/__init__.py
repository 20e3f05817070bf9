"""Frozen video models: their features, and the heads that are trained on these."""
