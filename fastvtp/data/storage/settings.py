"""Settings of reading from object stores, which worker processes get through the environment."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from fastvtp.errors import UserError
from fastvtp.settings import check_types


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """How bytes of object stores are read, and where copies of them are kept.

    Each setting is also an environment variable, named beside it: what a run sets holds for the processes that it
    starts.

    Raises:
        UserError: a value out of range.
    """

    cache_dir: str | None = None
    """FASTVTP_CACHE: folder of the copies, and of the indexes of tars beside which none can be written. None:
    `fastvtp` in $XDG_CACHE_HOME or ~/.cache."""
    cache_gb: float = 16.0
    """FASTVTP_CACHE_GB: most GB (1e9 bytes) of copies, of all processes together; 0: no copies."""
    whole_mb: float = 64.0
    """FASTVTP_WHOLE_MB: objects of up to so many MB are fetched whole, larger ones read in blocks."""
    tries: int = 5
    """FASTVTP_TRIES: how often a request is made, where connections break or the server asks for patience."""
    request_seconds: float = 12.0
    """FASTVTP_REQUEST_SECONDS: a request without an answer after so long counts as failed. One request is of 0.25 to 8
    MB: over a slow link of few, over a fast one of many."""
    object_seconds: float = 40.0
    """FASTVTP_OBJECT_SECONDS: all that is asked for to open a video, all tries and waiting included; of a video that is
    read in blocks also each later read. It should stay well below `data.file_seconds`."""

    def __post_init__(self) -> None:
        check_types(self)
        for name, least in (("cache_gb", 0), ("whole_mb", 0), ("tries", 1)):
            if not getattr(self, name) >= least:
                raise UserError(f"storage: {name} must be at least {least}, got {getattr(self, name)}")
        for name in ("request_seconds", "object_seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"storage: {name} must be positive, got {getattr(self, name)}")

    @property
    def folder(self) -> Path:
        """The folder of the copies and indexes."""
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser().absolute()
        try:
            home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        except RuntimeError:  # a container whose user has no home
            home = tempfile.gettempdir()
        return Path(home) / "fastvtp"

    @property
    def cache_bytes(self) -> int:
        """Most bytes of copies."""
        return int(self.cache_gb * 1e9)

    @property
    def whole_bytes(self) -> int:
        """Most bytes of an object that is fetched whole."""
        return int(self.whole_mb * 1e6)


_VARIABLES = {
    "cache_dir": "FASTVTP_CACHE",
    "cache_gb": "FASTVTP_CACHE_GB",
    "whole_mb": "FASTVTP_WHOLE_MB",
    "tries": "FASTVTP_TRIES",
    "request_seconds": "FASTVTP_REQUEST_SECONDS",
    "object_seconds": "FASTVTP_OBJECT_SECONDS",
}


def storage_settings() -> StorageSettings:
    """Return the settings of this process, those of its environment.

    Raises:
        UserError: a variable holds no number, or one out of range; names the variable.
    """
    return _read(tuple(os.environ.get(name) for name in _VARIABLES.values()))


def use_storage(settings: StorageSettings) -> None:
    """Let this process, and those that it starts from now on, read by these settings."""
    for name, variable in _VARIABLES.items():
        value = getattr(settings, name)
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = str(value)


@lru_cache(maxsize=4)
def _read(texts: tuple[str | None, ...]) -> StorageSettings:
    values = {}
    kinds = {entry.name: int if entry.type == "int" else float for entry in fields(StorageSettings)}
    for (name, variable), text in zip(_VARIABLES.items(), texts, strict=True):
        if text is None or not text.strip():
            continue
        if name == "cache_dir":
            values[name] = text
            continue
        try:
            values[name] = kinds[name](text)
        except ValueError:
            raise UserError(f"environment variable {variable}: expected a number, got {text!r}") from None
    return StorageSettings(**values)
