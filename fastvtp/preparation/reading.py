"""Reading what is to be prepared, from whatever lists it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvtp.data.annotations import VideoRecord, record_of
from fastvtp.data.formats.listing import Listing
from fastvtp.data.formats.registry import Row
from fastvtp.data.video_files import content_of
from fastvtp.errors import UserError
from fastvtp.preparation.items import Item

# of a line: what names the clip, which is another one once it is prepared
_NAMING = ("video", "image", "start", "end", "start_frame", "end_frame")
_OTHER_TELLINGS = ("question", "label", "labels")


@dataclass(frozen=True)
class Source:
    """What is to be prepared.

    Attributes:
        items: the clips.
        folder: of what is no list but a folder, or tars in one, that folder.
        class_names: all classes that the list has, in the order of their numbers; () where there are none, or they are
            bare numbers.
        description: the list, its format, its split, and how much it holds, for a report.
    """

    items: tuple[Item, ...]
    folder: Path | None
    class_names: tuple[str, ...]
    description: dict[str, Any]


def read_items(source: str | os.PathLike[str]) -> list[Item]:
    """Read the clips that are to be prepared; arguments, order and errors as of `read_source`."""
    return list(read_source(source).items)


def read_source(source: str | os.PathLike[str]) -> Source:
    """Read what is to be prepared.

    Args:
        source: any list of videos, with or without captions, questions or classes, whose fields are all kept; a folder
            with such a list, of videos with texts beside them, of a folder for each class, or of videos alone; tars. A
            `VideoList` says more of a list than its path.

    Returns:
        It has each clip once, in the order of the list; several lines about the same clip are kept together. Among
        captions, videos without one are left out, with one warning.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a malformed list, with file, line number and field; no videos.
    """
    listing = _listing(source)
    rows = []
    for row, location in listing:
        captions = _captions_of(row)
        record = record_of(row.fields, listing.source.folder, row.place, captions or ("",), location=location)
        fields = {name: value for name, value in {**row.further, **row.fields}.items() if name not in _NAMING}
        rows.append((record, fields))
    captioned = any(record.captions != ("",) for record, _ in rows)
    together: dict[Any, list[tuple[VideoRecord, dict[str, Any]]]] = {}
    uncaptioned: list[str] = []
    for record, fields in rows:
        if record.captions == ("",) and "caption" in fields:
            del fields["caption"]
            if captioned and not any(fields.get(name) is not None for name in _OTHER_TELLINGS):
                if listing.entry.name == "folder":
                    uncaptioned.append(record.video.removeprefix(f"{listing.source.path}/"))
                else:
                    listing.empty += 1
                continue
        together.setdefault(record.clip, []).append((record, fields))
    if uncaptioned:
        listing.say_uncaptioned(uncaptioned, len(together))
    listing.close(len(together))
    if not together:
        raise UserError(f"{listing.path}: lists no videos")
    counts = {"videos": len({record.video for record, _ in rows}), "lines": len(rows), "clips": len(together)}
    if names := _class_names(listing, [fields for _, fields in rows]):
        counts["classes"] = len(names)
    return Source(
        tuple(_item(same) for same in together.values()),
        listing.source.path if listing.source.is_folder else None,
        names,
        {**listing.description(), **counts},
    )


def _class_names(listing: Listing, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the names of the classes as whoever reads the list numbers them."""
    said = [label for fields in rows for label in (fields.get("label"), *_several(fields.get("labels")))]
    said = [label for label in said if label is not None]
    if not said:
        return ()
    if (named := listing.class_names()) is not None:
        return named
    return tuple(sorted(set(said))) if all(isinstance(label, str) for label in said) else ()


def _several(labels: Any) -> Sequence[Any]:
    return labels if isinstance(labels, list) else ()


def _item(same: Sequence[tuple[VideoRecord, dict[str, Any]]]) -> Item:
    first, captions = same[0][0], dict.fromkeys(text for record, _ in same for text in record.captions if text)
    lines = tuple(fields for _, fields in same)
    return Item(first.id, first.video, first.start, first.end, tuple(captions), lines, first.frames)


def _listing(source: str | os.PathLike[str]) -> Listing:
    listing = Listing(source)
    if listing.entry.name == "class_folders":
        # texts beside videos say more than their folders, and videos beside the folders have no class
        content = content_of(listing.source.path)
        texts = any((listing.source.path / name).with_suffix(".txt").is_file() for name in content.videos)
        if texts or not all("/" in name for name in content.videos or content.frame_folders):
            return Listing(listing.source, read_as="folder")
    return listing


def _captions_of(row: Row) -> tuple[str, ...]:
    said = row.fields.get("caption")
    texts = said if isinstance(said, list) else [said]
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())
