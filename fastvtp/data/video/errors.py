"""What is wrong with a video, in one line that names it."""

from __future__ import annotations

from typing import Any

from fastvtp.data.locations import without_secrets
from fastvtp.errors import UserError


class VideoDecodeError(UserError):
    """A video that cannot be decoded; `path` is its location and `reason` says why, each fit for one line."""

    def __init__(self, path: str, reason: str):
        super().__init__(without_secrets(path), reason)  # what shows in tracebacks
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{without_secrets(self.path)}: {self.reason}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)
