"""Lists of captioned videos: reading them from disk, and the one fact about captions that augmentation must know."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastvtp.errors import UserError

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm"})
FOLDER_LISTS = ("captions.jsonl", "train.jsonl")

_NAMED_IN_WARNING = 5

_DIRECTION = re.compile(
    r"\b(?:(?:left|right)(?:wards?|most|handed)?|lefty|(?:anti|counter)?clockwise)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class VideoRecord:
    """One video and its captions; `video` is an absolute path, `captions` holds at least one.

    Training draws among the captions; evaluation scores a video by its first one alone.
    """

    id: str
    video: str
    captions: tuple[str, ...]


def load_annotations(path: str | os.PathLike[str]) -> list[VideoRecord]:
    """Read the captioned videos that `path` lists.

    Args:
        path: either a `.jsonl` file with one object a line, `{"video": path, "caption": str | [str], "id": str}`, where
            a relative video path starts from the folder of the file, `id` may be missing (then: the video path as
            written) and other fields are ignored. Lines that name the same video make one record, with the id of the
            first line and all captions in their order, equal ones once. Or a folder that holds such a list named
            `captions.jsonl` or `train.jsonl`, or else video files each beside a `.txt` file of the same name with one
            caption a line; videos without a caption are left out, with one warning.

    Returns:
        The records in the order of the file, or of the sorted paths in a folder. Videos are not opened.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a malformed list, with file, line number and field; no videos, or none with a caption.
    """
    path = Path(path).absolute()
    if path.is_dir():
        listed = [path / name for name in FOLDER_LISTS if (path / name).is_file()]
        records = _read_jsonl(listed[0]) if listed else _read_folder(path)
    elif path.is_file():
        if path.suffix != ".jsonl":
            raise UserError(f"{path}: expected a .jsonl file or a folder of videos")
        records = _read_jsonl(path)
    else:
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not records:
        raise UserError(f"{path}: lists no videos")
    return records


def annotations_digest(records: Sequence[VideoRecord]) -> str:
    """Fingerprint of the records in their order, 16 hexadecimal digits of SHA-256.

    It changes with any id, caption or video path, but not when the folder that holds all the videos moves.
    """
    videos = [os.path.normpath(record.video) for record in records]
    folder = os.path.commonpath([os.path.dirname(video) for video in videos]) if videos else ""
    digest = hashlib.sha256()
    for record, video in zip(records, videos, strict=True):
        digest.update(json.dumps([record.id, video[len(folder) :].lstrip(os.sep), record.captions]).encode())
    return digest.hexdigest()[:16]


def mentions_direction(caption: str) -> bool:
    """Whether `caption` names a direction (left, rightwards, clockwise, ...) that mirroring the video makes untrue."""
    return _DIRECTION.search(caption) is not None


def _read_jsonl(path: Path) -> list[VideoRecord]:
    with path.open("rb") as file:
        lines = [_parse_line(line, path, number) for number, line in enumerate(file, start=1) if line.strip()]
    by_video: dict[str, list[VideoRecord]] = {}
    for line in lines:
        by_video.setdefault(os.path.normpath(line.video), []).append(line)
    return [
        replace(same[0], captions=tuple(dict.fromkeys(caption for line in same for caption in line.captions)))
        for same in by_video.values()
    ]


def _parse_line(line: bytes, path: Path, number: int) -> VideoRecord:
    place = f"{path}, line {number}"
    try:
        fields = json.loads(line)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError alike
        raise UserError(f"{place}: not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{place}: expected an object, got {type(fields).__name__}")
    video = _text(fields.get("video"), f"{place}: field 'video'")
    caption = fields.get("caption")
    captions = caption if isinstance(caption, list) and caption else [caption]
    return VideoRecord(
        id=_text(fields.get("id", video), f"{place}: field 'id'"),
        video=os.path.join(path.parent, video),
        captions=tuple(_text(text, f"{place}: field 'caption'") for text in captions),
    )


def _read_folder(folder: Path) -> list[VideoRecord]:
    records, skipped = [], []
    for video in sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES):
        sidecar, name = video.with_suffix(".txt"), video.relative_to(folder)
        try:
            text = sidecar.read_text(encoding="utf-8") if sidecar.is_file() else ""
        except UnicodeDecodeError as error:
            raise UserError(f"{sidecar}: expected UTF-8 text: {error}") from None
        captions = tuple(line.strip() for line in text.splitlines() if line.strip())
        if captions:
            records.append(VideoRecord(id=name.with_suffix("").as_posix(), video=str(video), captions=captions))
        else:
            skipped.append(name.as_posix())
    if skipped:
        named = ", ".join(skipped[:_NAMED_IN_WARNING]) + (", ..." if len(skipped) > _NAMED_IN_WARNING else "")
        without = f"without a caption (no .txt file of the same name beside them, or an empty one): {named}"
        if not records:
            raise UserError(f"{folder}: all {len(skipped)} videos are {without}")
        logger.warning("%s: skipped %d of %d videos %s", folder, len(skipped), len(skipped) + len(records), without)
    return records


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: expected non-empty text, got {value!r}")
    return value.strip()
