"""Checks that several model configurations share; each raises ValueError with one line."""

import math

SQUARE_FRAMES = "an integer, the side of square frames in pixels"
"""What is expected of an `image_size`, see `fastvtp.settings.check_types`."""


def check_positive(config: object, *names: str) -> None:
    """Check that these fields of a configuration are positive and finite."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")


def check_share(config: object, *names: str) -> None:
    """Check that these fields of a configuration are in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {getattr(config, name)}")


def check_heads(config: object, width: str, heads: str) -> None:
    """Check that the number of heads in one field divides the width in another."""
    if getattr(config, width) % getattr(config, heads):
        raise ValueError(f"{heads} {getattr(config, heads)} does not divide the {width} {getattr(config, width)}")


def check_choice(config: object, name: str, choices: tuple[str, ...]) -> None:
    """Check that a field of a configuration is one of `choices`."""
    if getattr(config, name) not in choices:
        listed = " or ".join(map(repr, choices)) if len(choices) == 2 else f"one of {', '.join(map(repr, choices))}"
        raise ValueError(f"{name} must be {listed}, got {getattr(config, name)!r}")


def check_ids(config: object, *names: str) -> None:
    """Check that these fields, an id or a tuple of ids each, are in the configuration's vocabulary."""
    vocab_size = getattr(config, "vocab_size")  # noqa: B009
    for name in names:
        ids = getattr(config, name)
        for number in ids if isinstance(ids, tuple) else (ids,):
            if not 0 <= number < vocab_size:
                raise ValueError(f"{name} {number} is outside the vocabulary of {vocab_size}")
