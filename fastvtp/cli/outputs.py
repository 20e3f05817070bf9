"""Looking, before a command begins its work, whether what it is to write can be written."""

import os
from pathlib import Path

from fastvtp.data.locations import refused_url
from fastvtp.errors import UserError


def check_output_file(path: Path | None, option: str = "--output") -> None:
    """Raise UserError, which names the option, where a file cannot be written for what lies there already.

    A device or a pipe may be written to, whatever holds it.
    """
    if path is None:
        return
    _check_here(path, f"{option} ", "file")
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder, expected the name of a file")
    if path.is_file() or not path.exists():
        _check_around(path, path.absolute().parent, option)


def check_output_folder(path: Path | None, option: str = "--output") -> None:
    """Raise UserError, which names the option, where a folder cannot be written to for what lies there already."""
    if path is None:
        return
    _check_here(path, f"{option} ", "folder")
    if path.exists() and not path.is_dir():
        raise UserError(f"{option} {path}: is a file, expected a folder")
    _check_around(path, path.absolute(), option)


def _check_here(path: Path, named: str, kind: str) -> None:
    if refused := refused_url(path, named, kind):
        raise UserError(refused)


def _check_around(path: Path, around: Path, option: str) -> None:
    """Raise UserError where the folder that a path is written to, `around`, cannot be, or cannot be written to."""
    while not os.path.lexists(around):
        around = around.parent
    if not around.is_dir():
        raise UserError(f"{option} {path}: {around} is no folder")
    if not os.access(around, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: no permission to write in {around}")
