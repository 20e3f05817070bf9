"""Writing files that a kill must not leave half-written."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """A file under its final name is complete: an interrupted run leaves only a temporary name behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
