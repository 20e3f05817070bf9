"""What changed among the videos since the shards were made of them, and which of them may be worth another try."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastvtp.data.locations import is_remote, member_of
from fastvtp.data.storage.remote import look_up
from fastvtp.data.storage.stored_file import UnreadableError
from fastvtp.preparation.items import Item

UNREADABLE = ("unreadable", "lost")
"""Rules by which videos were rejected that may be readable another time."""


@dataclass(frozen=True)
class Staleness:
    """Of a shard that is finished. unreadable: how many of its samples could not be read. changed: locations of videos
    that are other files now than when it was made."""

    unreadable: int
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether making the shard anew may give another one."""
        return bool(self.unreadable or self.changed)


def stamp_of(item: Item) -> list[Any] | None:
    """Return what tells the file of a video from another one in its place: its size in bytes and when it was changed,
    in nanoseconds, or the version that an object store gives it; of a member of an archive those of the archive. None
    where nothing is there."""
    container = _container(item)
    try:
        if is_remote(container):
            found = look_up(container)
            return [found.size, found.version]
        status = os.stat(container)
    except (UnreadableError, OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def staleness_of(items: Sequence[Item], manifest: dict[str, Any], *, remote: bool) -> Staleness:
    """Compare the videos of a shard with what its manifest says of them; remote: ask object stores about theirs, too,
    which takes a request for each."""
    unreadable = [each for each in manifest["rejected"] if each["rule"] in UNREADABLE]
    known, changed = {each["video"] for each in unreadable}, dict[str, None]()
    for item, stamp in zip(items, manifest["sources"], strict=True):
        if item.video not in known and (remote or not is_remote(_container(item))) and stamp_of(item) != stamp:
            changed.setdefault(item.video)
    return Staleness(len(unreadable), tuple(changed))


def _container(item: Item) -> str:
    return (member_of(item.video) or (item.video,))[0]
