"""Reading lists that people write, and writing files and folders that a kill must not leave half-written."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from fastvtp.errors import UserError


def existing_file(path: str | os.PathLike[str], what: str = "file") -> Path:
    """Return the path of a file. Raises FileNotFoundError where there is nothing, UserError where there is a folder."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {what}")
    return path


def read_text(path: str | os.PathLike[str], what: str = "file") -> str:
    """Read the content of a UTF-8 file without the byte-order mark that some editors begin it with.

    Raises FileNotFoundError, and UserError for a folder or another encoding.
    """
    try:
        return existing_file(path, what).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected UTF-8 text: {error}") from None


def lines_of(text: str) -> list[str]:
    """Return lines without their ends, which are "\\n", "\\r\\n" or "\\r": U+2028 and others, at which `str.splitlines`
    cuts as well, may stand within a line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is complete under its final name; an interrupted run leaves only a temporary name behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def publish_folder(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder and give it its name only when it is complete and on the disk."""
    partial = final.with_name(f"partial_{final.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    for path in (*partial.iterdir(), partial):
        _sync(path)
    remove_folder(final)
    partial.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Delete a folder under another name, so that a kill half-way leaves nothing that looks whole."""
    if folder.exists():
        doomed = folder.with_name(f"partial_old_{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)
