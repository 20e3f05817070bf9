"""Reading lists that people write, and writing files and folders that a kill must not leave half-written."""

import hashlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastvtp.errors import UserError


def existing_file(path: str | os.PathLike[str], what: str = "file") -> Path:
    """Return the path of a file. Raises FileNotFoundError where there is nothing, UserError where there is a folder."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {what}")
    return path


def read_text(path: str | os.PathLike[str], what: str = "file", *, field: str | None = None) -> str:
    """Read the content of a UTF-8 file without the byte-order mark that some editors begin it with.

    Raises FileNotFoundError, and UserError for a folder or another encoding; this names the line, and the `field` that
    the file holds where it stands beside a list.
    """
    return decoded(existing_file(path, what).read_bytes(), path, field=field)


def decoded(
    content: bytes, path: str | os.PathLike[str], encoding: str = "utf-8-sig", *, field: str | None = None
) -> str:
    """Return the text of a file. Raises UserError with the line that is none in this encoding, and the field."""
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        named = "" if field is None else f"field '{field}': "
        expected = "UTF-16" if encoding == "utf-16" else "UTF-8"
        raise UserError(f"{path}, line {line}: {named}expected {expected} text: {error}") from None


def lines_of(text: str) -> list[str]:
    """Return lines without their ends, which are "\\n", "\\r\\n" or "\\r": U+2028 and others, at which `str.splitlines`
    cuts as well, may stand within a line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def json_digest(value: Any) -> str:
    """Compute a fingerprint of what JSON can write, in whatever order its names stand: 16 hexadecimal digits of
    SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is complete under its final name; an interrupted run leaves only a temporary name behind.

    A device or a pipe, such as /dev/stdout, is written to and stays what it is.
    """
    if path.parent == Path("/dev") or (path.exists() and not path.is_file()):
        path.write_bytes(content)
        return
    # processes of two machines that share the folder may have the same number
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish_folder(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder and give it its name only when it is complete and on the disk. Where it fails, what it
    wrote is deleted, and a folder that had the name before stays."""
    partial = partial_of(final)
    remove_partial(partial)
    try:
        partial.mkdir(parents=True)
        write(partial)
        for path in (*partial.rglob("*"), partial):
            sync(path)
        replace_folder(partial, final)
    except BaseException:
        remove_partial(partial)
        raise


def partial_of(final: Path) -> Path:
    """Return where the content of a folder is written before it gets its name."""
    return final.with_name(f"partial_{final.name}")


def remove_partial(partial: Path) -> None:
    """Delete what was written of a folder that has no name yet, as far as that is possible."""
    shutil.rmtree(partial, ignore_errors=True)


def replace_folder(partial: Path, final: Path) -> None:
    """Give a complete folder its name, in place of one that has it; a kill leaves nothing that looks whole and is
    not."""
    doomed = _out_of_the_way(final)
    partial.rename(final)
    sync(final.parent)
    if doomed is not None:
        shutil.rmtree(doomed)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path, block: int = 1 << 24) -> int:
    """Compute the CRC-32 of a file's bytes, as of zip and PNG files; it is read `block` bytes at a time."""
    value = 0
    with path.open("rb") as file:
        while content := file.read(block):
            value = zlib.crc32(content, value)
    return value


def remove_folder(folder: Path) -> None:
    """Delete a folder under another name, so that a kill half-way leaves nothing that looks whole."""
    if (doomed := _out_of_the_way(folder)) is not None:
        shutil.rmtree(doomed)


def _out_of_the_way(folder: Path) -> Path | None:
    if not folder.exists():
        return None
    doomed = folder.with_name(f"partial_old_{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    return folder.rename(doomed)
