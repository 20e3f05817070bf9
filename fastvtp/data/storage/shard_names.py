"""Which tars a data set has: patterns with braces and stars, folders, URLs, and Energon's lists of splits."""

from __future__ import annotations

import glob
import logging
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fastvtp.data.locations import is_pattern, is_remote, located, to_be_unpacked, without_query, without_secrets
from fastvtp.data.storage.finding import read_file
from fastvtp.data.storage.remote import matching
from fastvtp.data.storage.stored_file import UnreadableError
from fastvtp.errors import UserError

logger = logging.getLogger(__name__)

ENERGON = ".nv-meta"
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(\d+))?")
_MOST_NAMES = 10_000_000


def tars_of(source: str | Sequence[str], split: str = "train") -> list[str]:
    """List tars by a pattern, a folder, a path or URL, or several of them, each as an absolute location.

    Args:
        source: "{0..9}" and "{a,b}" are spelled out, in the order of what they say; "*", "?" and "[...]" are looked up,
            sorted, as are the tars in a folder and its subfolders. A folder with `.nv-meta` is an Energon data set.
        split: of an Energon data set.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a folder or pattern without tars, a split that is not there.
    """
    found: list[str] = []
    for text in [source] if isinstance(source, str | os.PathLike) else source:
        place = located(os.fspath(text), os.getcwd())
        found += [tar for name in braces_expanded(place) for tar in _tars_at(name, split)]
    return list(dict.fromkeys(found))


def braces_expanded(pattern: str) -> Iterator[str]:
    """Spell out "{000..010}", "{0..20..5}" and "{a,b}" in a text, several of them and nested ones too.

    Numbers keep the width that they are written with. Braces of another kind stay.
    """
    for start, end in _pairs(pattern):
        inner = pattern[start + 1 : end]
        choices = _choices(inner)
        if choices is not None:
            for choice in choices:
                for middle in braces_expanded(choice):
                    for rest in braces_expanded(pattern[end + 1 :]):
                        yield pattern[:start] + middle + rest
            return
    yield pattern


def _pairs(pattern: str) -> Iterator[tuple[int, int]]:
    """Return the outermost pairs of braces."""
    depth, start = 0, 0
    for at, letter in enumerate(pattern):
        if letter == "{":
            start, depth = (at if depth == 0 else start), depth + 1
        elif letter == "}" and depth:
            depth -= 1
            if depth == 0:
                yield start, at


def _choices(inner: str) -> list[str] | None:
    if match := _RANGE.fullmatch(inner):
        first, last, step = int(match[1]), int(match[2]), int(match[3] or 1) or 1
        if abs(last - first) // step > _MOST_NAMES:
            raise UserError(f"{{{inner}}}: expected at most {_MOST_NAMES} names")
        padded = any(re.match(r"-?0\d", text) for text in (match[1], match[2]))
        width = max(len(match[1]), len(match[2])) if padded else 0
        sign = 1 if last >= first else -1
        return [f"{number:0{width}d}" for number in range(first, last + sign, sign * step)]
    parts, depth, part = [], 0, ""
    for letter in inner:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += letter
    return [*parts, part] if parts else None


def _tars_at(place: str, split: str) -> list[str]:
    remote = is_remote(place)
    name = without_query(place)
    if glob.has_magic(name) and _is_no_name(place):
        return _expect_some([found for found in _matching(place) if without_query(found).endswith(".tar")], place)
    if name.endswith(".tar"):
        return [place if remote else os.path.normpath(place)]
    if remote:
        return _remote_folder(place.rstrip("/"), split)
    folder = Path(place)
    if not folder.exists():
        raise FileNotFoundError(f"{place}: no such file or folder")
    if not folder.is_dir():
        expected = "expected a .tar file, a folder of them or a pattern such as {00000..00010}.tar"
        packed = f"; {how}" if (how := to_be_unpacked(place)) else ""
        raise UserError(f"{place}: {expected}{packed}")
    if (folder / ENERGON).is_dir():
        return _energon(str(folder), split)
    return _expect_some(sorted(str(path) for path in folder.rglob("*.tar")), place)


def _is_no_name(place: str) -> bool:
    """Tell whether a text that may be a pattern is not itself what something on this machine is called."""
    return is_remote(place) or not os.path.exists(place)


def _matching(pattern: str) -> list[str]:
    return matching(pattern) if is_remote(pattern) else sorted(glob.glob(pattern, recursive=True))


def _expect_some(found: list[str], place: str) -> list[str]:
    if not found:
        raise UserError(f"{without_secrets(place)}: no .tar files there")
    return found


def _remote_folder(folder: str, split: str) -> list[str]:
    try:
        return _energon(folder, split)
    except UnreadableError:
        return _expect_some(matching(f"{folder}/**/*.tar") or matching(f"{folder}/*.tar"), folder)


def _energon(folder: str, split: str) -> list[str]:
    """Return the tars of a split that an Energon data set lists. Raises UnreadableError where there is no list."""
    place = f"{folder}/{ENERGON}/split.yaml"
    parts = _yaml(place).get("split_parts")
    if not isinstance(parts, dict) or split not in parts:
        known = ", ".join(map(str, parts)) if isinstance(parts, dict) else "none"
        raise UserError(f"{without_secrets(place)}: no split {split!r}; it has: {known}")
    excluded = {name for text in _yaml(place).get("exclude") or () for name in braces_expanded(str(text))}
    names = [name for text in parts[split] or () for name in braces_expanded(str(text))]
    if inside := [name for name in excluded if "/" in name and name.split("/")[0].endswith(".tar")]:
        _warn_once(f"{without_secrets(place)}: samples excluded one by one are read, such as {inside[0]}")
    kept = [name for name in names if name not in excluded]
    return _expect_some([posixpath.join(folder, name) for name in kept], place)


def energon_fields(folder: str) -> dict[str, str]:
    """Return which file holds what by an Energon data set's `dataset.yaml`: {"video": "mp4", "caption": "txt"}, say;
    empty where it has none, or a program in its place."""
    if folder.endswith(".tar") or (is_pattern(folder) and _is_no_name(folder)):
        return {}
    try:
        said = _yaml(f"{located(folder, os.getcwd()).rstrip('/')}/{ENERGON}/dataset.yaml")
    except UnreadableError:
        return {}
    fields = said.get("field_map")
    if not isinstance(fields, dict):
        if "sample_loader" in said:
            note = "its sample_loader is a program, which is not run: files are taken by suffix"
            _warn_once(f"{without_secrets(folder)}: {note}")
        return {}
    return {str(name): str(value) for name, value in fields.items()}


@cache
def _warn_once(line: str) -> None:
    """Say it by the first who reads a data set: its format is recognised, its tars are listed, its fields looked up."""
    logger.warning("%s", line)


def _yaml(place: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(read_file(place))
    except yaml.YAMLError as error:
        raise UserError(f"{without_secrets(place)}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise UserError(f"{without_secrets(place)}: expected names with values, got {type(found).__name__}")
    return found
