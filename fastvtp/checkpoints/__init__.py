"""Weights of others: reading them, recognising them, and loading them into a model."""
