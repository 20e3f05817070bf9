"""`key=value` settings of the commands on frozen models."""

from collections.abc import Sequence
from typing import Any, get_type_hints

from fastvtp.errors import UserError, unknown_name
from fastvtp.training.config import parse_value


def split_settings(overrides: Sequence[str], *classes: type, without: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The settings that `overrides` give to each of the dataclasses, which may share none.

    without: fields that follow from something else. Raises UserError with the nearest right key for a wrong one, or
    with the expected type for a wrong value.
    """
    owners = {name: (place, kind) for place, owner in enumerate(classes)
              for name, kind in get_type_hints(owner).items() if name not in without}  # fmt: skip
    values: list[dict[str, Any]] = [{} for _ in classes]
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise UserError(f"expected key=value, got {override!r}")
        if name not in owners:
            raise unknown_name("setting", name, owners)
        place, kind = owners[name]
        values[place][name] = parse_value(text, kind, name)
    return values
