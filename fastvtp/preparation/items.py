"""What a preparation is given: videos, or spans of them, each with all that lists say of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastvtp.data.annotations import FOLDER_LISTS, VideoRecord, load_annotations, load_videos, read_lines, record_of
from fastvtp.data.locations import is_remote, suffix_of
from fastvtp.data.shard_names import ENERGON
from fastvtp.data.shards import tar_samples
from fastvtp.data.timespans import span_of_line
from fastvtp.errors import UserError

# of a line: what names the clip, which is another one once it is prepared
_NAMING = ("video", "image", "start", "end")


@dataclass(frozen=True)
class Item:
    """One video, or a span of one.

    Attributes:
        id: as the list has it; of several lines about the same clip the first one's.
        video: its location.
        start, end: the span in seconds from the first frame; None for the video's own bounds.
        captions: texts that describe it, of all lines; () where there are none.
        lines: the other fields of each line, as the list has them, its own id among them.
    """

    id: str
    video: str
    start: float | None
    end: float | None
    captions: tuple[str, ...]
    lines: tuple[dict[str, Any], ...]

    @property
    def record(self) -> VideoRecord:
        """The clip as a record."""
        return VideoRecord(self.id, self.video, self.captions or ("",), None, self.start, self.end)


def read_items(source: str | os.PathLike[str]) -> list[Item]:
    """Read what is to be prepared.

    Args:
        source: a `.jsonl` list of captions, questions, classes or bare videos, whose fields are all kept; a `.csv` of
            paths and classes; a folder with such a list, of videos with texts beside them, or of videos alone; tars as
            of webdataset, in a folder or by a path, pattern or URL; and whatever else `load_annotations` reads.

    Returns:
        Each clip once, in the order of the list; several lines about the same clip are kept together.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a malformed list, with file, line number and field; no videos.
    """
    place = Path(source).absolute()
    if is_remote(os.fspath(source)) or suffix_of(os.fspath(source)) == ".tar":
        return _together(_tars(os.fspath(source)), source)
    if place.is_dir():
        place = next((place / name for name in FOLDER_LISTS if (place / name).is_file()), place)
    if place.suffix == ".jsonl":
        rows: Iterator[tuple[VideoRecord, dict[str, Any]]] = _rows(place)
    elif place.suffix == ".csv":
        rows = _classes(place)
    elif (place / ENERGON).is_dir() or any(place.rglob("*.tar")):
        rows = _tars(str(place))
    else:
        rows = _records(place)
    return _together(rows, source)


def _together(rows: Iterable[tuple[VideoRecord, dict[str, Any]]], source: str | os.PathLike[str]) -> list[Item]:
    together: dict[Any, list[tuple[VideoRecord, dict[str, Any]]]] = {}
    for record, fields in rows:
        together.setdefault(record.clip, []).append((record, fields))
    if not together:
        raise UserError(f"{source}: lists no videos")
    return [_item(same) for same in together.values()]


def digest_of(items: Sequence[Item]) -> str:
    """Compute a fingerprint of items in their order, 16 hexadecimal digits of SHA-256."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(asdict(item), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _item(same: Sequence[tuple[VideoRecord, dict[str, Any]]]) -> Item:
    first, captions = same[0][0], dict.fromkeys(text for record, _ in same for text in record.captions if text)
    return Item(first.id, first.video, first.start, first.end, tuple(captions), tuple(fields for _, fields in same))


def _rows(path: Path) -> Iterator[tuple[VideoRecord, dict[str, Any]]]:
    for place, fields in read_lines(path):
        said = fields.get("caption")
        texts = said if isinstance(said, list) else [said]
        captions = tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())
        record = record_of(fields, path.parent, place, captions or ("",))
        yield record, {name: value for name, value in fields.items() if name not in _NAMING}


def _classes(path: Path) -> Iterator[tuple[VideoRecord, dict[str, Any]]]:
    from fastvtp.data.classes import load_classes  # here: it imports torch

    found = load_classes(path)
    for record, label in zip(found.records, found.labels, strict=True):
        name = found.class_names[label]
        yield VideoRecord(record.id, record.video, ("",)), {"label": label if found.unnamed else name}


def _tars(source: str) -> Iterator[tuple[VideoRecord, dict[str, Any]]]:
    """Read the samples of tars: what their .json says, the text of their .txt as "caption", their .cls as "label"."""
    seen: set[str] = set()
    for sample in tar_samples(source):
        if sample.video is None:
            continue
        fields, captions = sample.fields(), sample.captions()
        span = span_of_line(fields, f"{sample.place}.json")
        name = sample.key if sample.key not in seen else f"{Path(sample.archive).stem}/{sample.key}"
        seen.add(name)
        kept = {key: value for key, value in fields.items() if key not in _NAMING}
        kept |= {} if sample.label is None else {"label": sample.label}
        if captions:
            kept["caption"] = list(captions) if len(captions) > 1 else captions[0]
        yield VideoRecord(name, sample.video, captions or ("",), None, *(span or (None, None))), kept


def _records(place: Path) -> Iterator[tuple[VideoRecord, dict[str, Any]]]:
    captioned = not place.is_dir() or any(place.rglob("*.txt"))
    for record in load_annotations(place) if captioned else load_videos(str(place)):
        captions = [text for text in record.captions if text]
        fields = {} if record.mirrorable is None or not captions else {"mirrorable": record.mirrorable}
        yield record, fields | ({"caption": captions if len(captions) > 1 else captions[0]} if captions else {})
