"""Looking, before a command begins its work, whether what it is to write can be written."""

import os
from pathlib import Path

from fastvtp.errors import UserError


def check_output_file(path: Path | None, option: str = "--output") -> None:
    """Raise UserError, which names the option, where a file cannot be written for what lies there already."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder, expected the name of a file")
    _check_around(path, option)


def check_output_folder(path: Path | None, option: str = "--output") -> None:
    """Raise UserError, which names the option, where a folder cannot be written to for what lies there already."""
    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise UserError(f"{option} {path}: is a file, expected a folder")
    _check_around(path / "report.json", option)


def _check_around(path: Path, option: str) -> None:
    """Raise UserError where the folder that is to hold a path cannot be, or cannot be written to."""
    around = path.absolute().parent
    while not os.path.lexists(around):
        around = around.parent
    if not around.is_dir():
        raise UserError(f"{option} {path}: {around} is no folder")
    if not os.access(around, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: no permission to write in {around}")
