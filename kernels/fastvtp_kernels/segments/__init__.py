"""Sums of rows that belong together, in a fixed order: for models and for other ops, no op of the public table."""

from . import op as op

__all__: list[str] = []
