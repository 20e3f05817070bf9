"""Settings as people type them and as JSON holds them: dataclasses, their leaf fields by dotted names.

A field that is itself a dataclass is a section: `data.flip` is the field `flip` of the section `data`. A section whose
field bears the metadata `FLAT` lends its settings to the dataclass around it: they have no prefix of their own, neither
on the command line nor in JSON. A field that was once called otherwise bears `renamed_from(...)`: JSON with the earlier
name is still read, and on the command line the earlier name is answered with the new one.
"""

from __future__ import annotations

import dataclasses
import json
import numbers
import os
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from fastvtp.errors import ConfigError, UserError, unknown_name

if TYPE_CHECKING:
    import torch

FLAT: Mapping[str, Any] = types.MappingProxyType({"flat": True})
_COUNTS = {2: "two", 3: "three"}


def renamed_from(name: str) -> dict[str, Any]:
    """Return the metadata of a field that was called `name` before."""
    return {"renamed_from": name}


def a_path(what: str, *, free_on_resume: bool = False) -> Mapping[str, Any]:
    """Return the metadata of a setting that names something, or several things, which must exist when a run starts;
    `what` says what is expected there. free_on_resume: whether a run may be resumed with another one."""
    return {"path": what, "free_on_resume": free_on_resume}


def setting_types(config: Any) -> dict[str, Any]:
    """Return the type of each leaf setting of a dataclass instance, by its dotted name.

    Raises TypeError where a flat section has a setting that the dataclass around it has, too.
    """
    hints: dict[str, Any] = {}
    for name, owner, entry in _leaves(config):
        if name in hints:
            raise TypeError(f"{type(config).__name__} has two settings of the name {name!r}")
        hints[name] = get_type_hints(type(owner))[entry.name]
    return hints


def check_types(config: Any, **expected: str) -> None:
    """Check that the fields of a dataclass instance hold what their type hints say, before anything computes with them.

    A list where a tuple belongs becomes that tuple, a path becomes its text, numpy's numbers become Python's. expected:
    what messages say of some fields, in place of what follows from their hints. Raises UserError with one line that
    begins with the field's name: "image_size must be an integer, got (224, 398)".
    """
    for name, kind in _hints(type(config)).items():
        value = getattr(config, name)
        try:
            typed = _as_hinted(value, kind)
        except TypeError:
            raise UserError(f"{name} must be {expected.get(name) or _in_words(kind)}, got {value!r}") from None
        if typed is not value:
            object.__setattr__(config, name, typed)


@cache
def _hints(config_class: type) -> dict[str, Any]:
    hints = get_type_hints(config_class)
    return {entry.name: hints[entry.name] for entry in dataclasses.fields(config_class)}


_NUMBERS = {int: (numbers.Integral, "an integer", "integers"), float: (numbers.Real, "a number", "numbers")}
_NAMES = {**{kind: word for kind, (_, word, _) in _NUMBERS.items()}, bool: "true or false", str: "a text"}


def _as_hinted(value: Any, kind: Any) -> Any:
    """Return a value as the type hint `kind` has it. Raises TypeError where it is something else."""
    members, origin = get_args(kind), get_origin(kind)
    if origin in (Union, types.UnionType):
        for member in members:
            try:
                return _as_hinted(value, member)
            except TypeError:
                continue
        raise TypeError
    if origin is Literal:
        if value not in members:
            raise TypeError
    elif origin is tuple:
        if not isinstance(value, tuple | list):
            raise TypeError
        kinds = members[:1] * len(value) if members[1:] == (Ellipsis,) else members
        if len(kinds) != len(value):
            raise TypeError
        typed = tuple(_as_hinted(item, member) for item, member in zip(value, kinds, strict=True))
        same = isinstance(value, tuple) and all(new is old for new, old in zip(typed, value, strict=True))
        return value if same else typed
    elif kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    elif kind in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, _NUMBERS[kind][0]):
            raise TypeError
        # a whole number where any will do stays one, as JSON has it
        return value if type(value) in (int, float) else kind(value)
    elif kind is not Any and isinstance(origin or kind, type) and not isinstance(value, origin or kind):
        raise TypeError
    return value


def _in_words(kind: Any) -> str:
    """Say what a type hint asks for."""
    members, origin = get_args(kind), get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(member) for member in members)
    if origin is Literal:
        return f"one of {', '.join(map(repr, members))}"
    if origin is tuple:
        plural = {item: words for item, (_, _, words) in _NUMBERS.items()} | {str: "texts"}
        kinds = {member for member in members if member is not Ellipsis}
        what = plural.get(next(iter(kinds)), "values") if len(kinds) == 1 else "values"
        return f"a list of {what}" if Ellipsis in members else f"{_COUNTS.get(len(members), len(members))} {what}"
    return "none" if kind is type(None) else _NAMES.get(kind, f"a {getattr(kind, '__name__', kind)}")


def setting_names(config: Any) -> list[str]:
    """Return the dotted names of all leaf settings, in the order of the fields."""
    return list(setting_types(config))


def earlier_names(config: Any) -> dict[str, str]:
    """Return the dotted names that settings had in earlier versions, each with the name of today."""
    return {
        name.removesuffix(entry.name) + entry.metadata["renamed_from"]: name
        for name, _, entry in _leaves(config)
        if "renamed_from" in entry.metadata
    }


def setting_values(config: Any) -> dict[str, Any]:
    """Return the value of each leaf setting, as JSON holds it, by its dotted name."""
    return {name: _as_json(getattr(owner, entry.name)) for name, owner, entry in _leaves(config)}


def setting_defaults(config: Any) -> dict[str, Any]:
    """Return the default of each leaf setting that has one, as JSON holds it, by its dotted name."""
    defaults = {name: _default(entry) for name, _, entry in _leaves(config)}
    return {name: value for name, value in defaults.items() if value is not dataclasses.MISSING}


def settings_with(config: Any, key: str) -> dict[str, tuple[Any, Any]]:
    """Return the value of each leaf setting whose field has the metadata `key`, and that metadata, by its dotted
    name."""
    return {
        name: (getattr(owner, entry.name), entry.metadata[key])
        for name, owner, entry in _leaves(config)
        if key in entry.metadata
    }


def split_pairs(overrides: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Split texts such as "data.flip=false" into names and values. Raises ConfigError for a text without "=", or one
    that is written as an option."""
    for override in overrides:
        name, separator, text = override.partition("=")
        if name.startswith("-"):
            setting = f"{name.lstrip('-').replace('-', '_')}={text or 'VALUE'}"
            raise ConfigError(f"no option {name} (see --help); a setting is given without dashes: {setting}")
        if not separator:
            raise ConfigError(f"expected key=value, got {override!r}")
        yield name, text


def parse_value(text: str, annotation: Any, name: str) -> Any:
    """Read `text` as a value of type `annotation`: JSON, a bare word, or numbers such as 3,5 or 3x5.

    Raises ConfigError that calls the setting `name` and says what was expected.
    """
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
    elif tuples:
        expected = f"{_in_words(tuples[0])}, separated by commas"
    raise ConfigError(f"{name} expects {expected}, got {text!r}")


def rebuild(config: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Return a copy of `config` with `values` by dotted names; names that it does not have are left aside.

    Every dataclass is built once, so that the order of the values does not matter. Raises ConfigError with the dotted
    name of what a dataclass refuses, where its message begins with the field's name.
    """
    changes = {}
    for entry in dataclasses.fields(config):
        current = getattr(config, entry.name)
        if dataclasses.is_dataclass(current):
            changes[entry.name] = rebuild(current, values, _inner_prefix(entry, prefix))
        elif prefix + entry.name in values:
            changes[entry.name] = values[prefix + entry.name]
    try:
        return dataclasses.replace(config, **changes)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from None


def split_settings(
    overrides: Sequence[str], *classes: type, without: Sequence[str] = (), what: str = "setting"
) -> list[dict[str, Any]]:
    """Return the values that `overrides`, texts such as "steps=9", give to each of the dataclasses, which may share no
    name.

    without: fields that follow from something else, and are no settings here. what: what a message calls a setting.
    Raises UserError with the nearest right key for a wrong one, or with the expected type for a wrong value.
    """
    owners = {
        name: (place, kind)
        for place, owner in enumerate(classes)
        for name, kind in get_type_hints(owner).items()
        if name not in without
    }
    values: list[dict[str, Any]] = [{} for _ in classes]
    for name, text in split_pairs(overrides):
        if name not in owners:
            raise unknown_name(what, name, owners)
        place, kind = owners[name]
        values[place][name] = parse_value(text, kind, name)
    return values


def to_json(config: Any) -> dict[str, Any]:
    """Return the values of a dataclass instance as JSON will hold them: sections nested, flat ones merged, tuples as
    lists."""
    values: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if not dataclasses.is_dataclass(value):
            values[entry.name] = _as_json(value)
        elif _is_flat(entry):
            values |= to_json(value)
        else:
            values[entry.name] = to_json(value)
    return values


def from_json(config_class: Any, values: Mapping[str, Any]) -> Any:
    """Build `config_class`, a dataclass, from what JSON holds of it: the inverse of `to_json`.

    The lists of JSON become the tuples that the type hints ask for, and its objects the dataclasses, at any depth.
    Raises TypeError that names the values which `config_class` does not know, and whatever it raises itself.
    """
    left, hints = dict(values), get_type_hints(config_class)
    arguments = {}
    for entry in dataclasses.fields(config_class):
        kind = hints[entry.name]
        if _is_flat(entry):
            own = {name: left.pop(name) for name in _json_names(kind) if name in left}
            arguments[entry.name] = from_json(kind, own)
            continue
        for name in (entry.name, entry.metadata.get("renamed_from")):
            if name in left:
                arguments[entry.name] = _typed(left.pop(name), kind)
                break
    if left:
        raise TypeError(f"unknown {config_class.__name__} fields: {', '.join(sorted(left))}")
    return config_class(**arguments)


def choose_device(name: str) -> torch.device:
    """Return the device that `name` means, "auto" being cuda where there is one.

    Raises ConfigError for a device that this machine lacks.
    """
    import torch  # here, since workers that read clips read settings too

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


def _is_flat(entry: dataclasses.Field) -> bool:
    return bool(entry.metadata.get("flat"))


def _default(entry: dataclasses.Field) -> Any:
    """Return the default of a field as JSON holds it, or `dataclasses.MISSING`."""
    if entry.default_factory is not dataclasses.MISSING:
        return _as_json(entry.default_factory())
    return dataclasses.MISSING if entry.default is dataclasses.MISSING else _as_json(entry.default)


def _as_json(value: Any) -> Any:
    """Return a value as it comes back from JSON: tuples as lists."""
    return json.loads(json.dumps(value))


def _inner_prefix(entry: dataclasses.Field, prefix: str) -> str:
    """Return what the names of a section's settings begin with, where those of the dataclass around it begin with
    `prefix`."""
    return prefix if _is_flat(entry) else f"{prefix}{entry.name}."


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """Return each leaf setting: its dotted name, the dataclass instance that holds it, and the field there."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, _inner_prefix(entry, prefix))
        else:
            yield prefix + entry.name, config, entry


def _json_names(config_class: Any) -> Iterator[str]:
    """Return the names under which JSON holds the fields of a dataclass, those of earlier versions included."""
    hints = get_type_hints(config_class)
    for entry in dataclasses.fields(config_class):
        if _is_flat(entry):
            yield from _json_names(hints[entry.name])
        else:
            yield entry.name
            if "renamed_from" in entry.metadata:
                yield entry.metadata["renamed_from"]


def _typed(value: Any, kind: Any) -> Any:
    """Return a value of JSON as the type hint `kind` wants it: unchanged, unless that is a tuple or a dataclass."""
    if get_origin(kind) in (Union, types.UnionType):
        wanted = [member for member in get_args(kind) if _asks_for(member, value)]
        return _typed(value, wanted[0]) if wanted else value
    if not _asks_for(kind, value):
        return value
    if isinstance(value, Mapping):
        return from_json(kind, value)
    members = get_args(kind)
    if len(members) == 2 and members[1] is Ellipsis:
        return tuple(_typed(item, members[0]) for item in value)
    if len(members) != len(value):
        return tuple(value)  # of a wrong length, which is for the dataclass to say
    return tuple(_typed(item, member) for item, member in zip(value, members, strict=True))


def _asks_for(kind: Any, value: Any) -> bool:
    """Tell whether the hint `kind` wants a tuple where JSON has the list `value`, or a dataclass where it has an
    object."""
    if isinstance(value, list | tuple):
        return kind is tuple or get_origin(kind) is tuple
    return isinstance(value, Mapping) and isinstance(kind, type) and dataclasses.is_dataclass(kind)
