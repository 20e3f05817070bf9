"""Settings as people type them: key=value texts parsed against dataclasses, and the device that a name means."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, get_args, get_origin, get_type_hints

import torch

from fastvtp.errors import ConfigError, UserError, unknown_name

_COUNTS = {2: "two", 3: "three"}


def _annotations(config: Any, prefix: str = "") -> dict[str, Any]:
    """Type of each leaf setting by its dotted name."""
    annotations = {}
    hints = get_type_hints(type(config))
    for entry in dataclasses.fields(config):
        value, name = getattr(config, entry.name), prefix + entry.name
        annotations |= _annotations(value, name + ".") if dataclasses.is_dataclass(value) else {name: hints[entry.name]}
    return annotations


def setting_names(config: Any) -> list[str]:
    """Dotted names of all leaf settings."""
    return list(_annotations(config))


def parse_value(text: str, annotation: Any, name: str) -> Any:
    """`text` as a value of type `annotation`: JSON, a bare word, or numbers such as 3,5 or 3x5. Raises ConfigError."""
    from pydantic import TypeAdapter, ValidationError

    candidates: list[Any] = [text]
    try:
        candidates.insert(0, json.loads(text))
    except json.JSONDecodeError:
        if text.lower() == "none":
            candidates.insert(0, None)
        elif text.lower() in ("true", "false"):
            candidates.insert(0, text.lower() == "true")
    tuples = [kind for kind in (annotation, *get_args(annotation)) if get_origin(kind) is tuple]
    if tuples:
        candidates += [text.split(","), text.split("x")]
    for candidate in candidates:
        try:
            return TypeAdapter(annotation).validate_python(candidate)
        except ValidationError:
            continue
    expected = annotation.__name__ if isinstance(annotation, type) and get_origin(annotation) is None else annotation
    if tuples and (count := len(get_args(tuples[0]))) in _COUNTS and Ellipsis not in get_args(tuples[0]):
        expected = f"{_COUNTS[count]} numbers such as {','.join(('3', '15', '15')[:count])}"
    raise ConfigError(f"{name} expects {expected}, got {text!r}")


def _rebuild(config: Any, values: dict[str, Any], prefix: str = "") -> Any:
    """`config` with dotted `values`, every dataclass built once, so that the order of overrides does not matter."""
    changes = {}
    for entry in dataclasses.fields(config):
        name, current = prefix + entry.name, getattr(config, entry.name)
        if dataclasses.is_dataclass(current):
            changes[entry.name] = _rebuild(current, values, name + ".")
        elif name in values:
            changes[entry.name] = values[name]
    try:
        return dataclasses.replace(config, **changes)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from None


def choose_device(name: str) -> torch.device:
    """ "auto" -> cuda where there is one. Raises ConfigError for a device that this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name}: {str(error).splitlines()[0]}") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name}: expected auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count() or "no"
        raise ConfigError(f"device={name}: torch {torch.__version__} sees {found} CUDA device(s)")
    return device


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
