"""What a preparation is given: videos, or spans of them, each with all that lists say of it.

Imports little: the processes that work on videos are started often.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastvtp.data.timespans import FrameSpan, Span, TimeSpan


@dataclass(frozen=True)
class Item:
    """One video, or a span of one.

    Attributes:
        id: as the list has it; of several lines about the same clip the first one's.
        video: its location.
        start, end: the span in seconds from the first frame; None for the video's own bounds.
        captions: texts that describe it, of all lines; () where there are none.
        lines: the other fields of each line, as the list has them, its own id among them.
        frames: the span by frames, in place of `start` and `end`.
    """

    id: str
    video: str
    start: float | None
    end: float | None
    captions: tuple[str, ...]
    lines: tuple[dict[str, Any], ...]
    frames: FrameSpan | None = None

    @property
    def span(self) -> Span:
        """What is prepared of the video."""
        return TimeSpan(self.start or 0.0, self.end) if self.frames is None else self.frames


def digest_of(items: Sequence[Item]) -> str:
    """Compute a fingerprint of items in their order, 16 hexadecimal digits of SHA-256."""
    digest = hashlib.sha256()
    for item in items:
        # as `asdict` has it, without its copies of all that lists say
        said = {**vars(item), "frames": None if item.frames is None else vars(item.frames)}
        digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()[:16]
