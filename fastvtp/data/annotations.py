"""Lists of captioned videos: reading them from disk, and the one fact about captions that augmentation must know."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from fastvtp.data.locations import normal
from fastvtp.data.timespans import MOST_SECONDS, TimeSpan, span_of_line
from fastvtp.errors import UserError
from fastvtp.files import (
    existing_file,
    lines_of,
    read_text,
)

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm"})
PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
FOLDER_LISTS = ("captions.jsonl", "train.jsonl")

_NAMED_IN_WARNING = 5

_DIRECTION = re.compile(
    r"\b(?:(?:left|right)(?:wards?|most|handed)?|lefty|(?:anti|counter)?clockwise)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class VideoRecord:
    """One video, or a span of one, and its captions; `video` is an absolute path, `captions` holds at least one.

    Training draws among the captions; retrieval scores them all. `mirrorable` says whether all
    that is said of the video, answers included, stays true of its mirror image; None: the captions decide.
    `start` and `end`, seconds from the first frame, bound what is shown of the video: frames from `start` to before
    `end` alone, see `Video.frames_within`. None: from the first frame on, to the last.
    """

    id: str
    video: str
    captions: tuple[str, ...]
    mirrorable: bool | None = None
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        """Raise UserError where `start` and `end` bound no span."""
        first, last = (self.start or 0.0), (MOST_SECONDS if self.end is None else self.end)
        if not 0 <= first < last <= MOST_SECONDS:
            bounds = f"{self.start} and {self.end}"
            raise UserError(f"{self.video}: expected 0 <= start < end, in seconds, got {bounds}")

    @property
    def span(self) -> TimeSpan | None:
        """What is shown of the video; None: all of it."""
        whole = not self.start and self.end is None
        return None if whole else TimeSpan(self.start or 0.0, self.end)

    @property
    def clip(self) -> tuple[str, TimeSpan | None]:
        """What is shown, as a key: equal for records of the same span of the same video, whatever their ids."""
        return normal(self.video), self.span

    @property
    def source(self) -> str:
        """The path of the video and, where it is a span of it, the span: "/films/a.mp4 60-70 s"."""
        return self.video if self.span is None else f"{self.video} {self.span} s"

    def named(self) -> dict[str, Any]:
        """Return the fields of a line that names the record: id, video and, where it is a span of it, start and end."""
        bounds = {} if self.span is None else self.span._asdict()
        return {"id": self.id, "video": self.video, **bounds}

    @property
    def may_be_mirrored(self) -> bool:
        """Whether clips of it may be mirrored: `mirrorable`, or where that is None whether no caption names a
        direction."""
        if self.mirrorable is not None:
            return self.mirrorable
        return not any(map(mentions_direction, self.captions))


def load_annotations(path: str | os.PathLike[str]) -> list[VideoRecord]:
    """Read the captioned videos that `path` lists.

    Args:
        path: either a `.jsonl` file with one object a line, `{"video": path, "caption": str | [str], "id": str}`
            ("image" for a picture), where a relative path starts from the folder of the file, `id` may be missing
            (then: see `record_of`) and other fields are ignored. A line of a video may say "start" and "end", in
            seconds: it is of that span of the video alone, see `record_of`. Lines that name the same video and the
            same span make one record, with the id of the first line and all captions in their order, equal ones once.
            Or a folder that holds such a list named `captions.jsonl` or `train.jsonl`, or else video files each beside
            a `.txt` file of the same name with one caption a line; videos without a caption are left out, with one
            warning.

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


def load_videos(path: str) -> list[VideoRecord]:
    """Read videos without captions: a .jsonl of {"video": path}, or a folder, with such a list or of videos. Each once.

    A line may say "start" and "end", see `record_of`: then each span comes once.

    Raises FileNotFoundError, or UserError with one line for a malformed list and where there are no videos.
    """
    place = Path(path).absolute()
    if place.is_dir():
        listed = [place / name for name in FOLDER_LISTS if (place / name).is_file()]
        place = listed[0] if listed else place
    if place.is_dir():
        found = [
            VideoRecord(video.relative_to(place).with_suffix("").as_posix(), str(video), ("",))
            for video in videos_under(place)
        ]
    elif place.suffix != ".jsonl":
        raise UserError(f"{path}: expected a .jsonl file or a folder of videos")
    else:
        found = [record_of(fields, place.parent, line) for line, fields in read_lines(place)]
    records: dict[Any, VideoRecord] = {}
    for record in found:
        records.setdefault(record.clip, replace(record, mirrorable=True))
    if not records:
        raise UserError(f"{path}: lists no videos")
    return list(records.values())


def annotations_digest(records: Sequence[VideoRecord]) -> str:
    """Compute the fingerprint of the records in their order, 16 hexadecimal digits of SHA-256.

    It changes with any id, caption, video path, span or `mirrorable` that is set, but not when the folder that holds
    all the videos moves.
    """
    videos = [normal(record.video) for record in records]
    folder = _common_folder(videos)
    digest = hashlib.sha256()
    for record, video in zip(records, videos, strict=True):
        said = record.captions if record.mirrorable is None else (*record.captions, record.mirrorable)
        shown = () if record.span is None else record.span  # lists without spans keep the digests that they had
        digest.update(json.dumps([record.id, video[len(folder) :].lstrip("/"), said, *shown]).encode())
    return digest.hexdigest()[:16]


def _common_folder(videos: Sequence[str]) -> str:
    """Return the folder that all lie in, be it on disk, in a tar or in a store; "" where there is none."""
    parts = zip(*(video.split("/")[:-1] for video in videos), strict=False)
    return "/".join(same[0] for same in takewhile(lambda names: len(set(names)) == 1, parts))


def mentions_direction(caption: str) -> bool:
    """Tell whether `caption` names a direction (left, rightwards, clockwise, ...) that mirroring the video makes
    untrue."""
    return _DIRECTION.search(caption) is not None


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the objects of a `.jsonl` file in order, each behind its place, "file, line number", for error messages.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a line that is not a JSON object.
    """
    with existing_file(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                fields = json.loads(line)
            except ValueError as error:  # JSONDecodeError and UnicodeDecodeError alike
                raise UserError(f"{place}: not JSON: {error}") from None
            if not isinstance(fields, dict):
                raise UserError(f"{place}: expected an object, got {type(fields).__name__}")
            yield place, fields


def text_of(value: Any, place: str) -> str:
    """Return `value` without surrounding space; raises UserError at `place` where it is not text, or blank."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: expected non-empty text, got {value!r}")
    return value.strip()


def record_of(
    fields: dict[str, Any],
    folder: Path,
    place: str,
    captions: tuple[str, ...] = ("",),
    *,
    mirrorable: bool | None = None,
) -> VideoRecord:
    """Make the record of the video, or of the span of a video, that a line names.

    A path is made absolute from `folder` on; a picture may stand in the field "image" instead of "video". "start" and
    "end" bound the span in seconds from the first frame, numbers or texts such as "12.5" and "00:01:02.5"; either may
    be missing. Where the span's end lies beyond the video's, the video's counts. Without an "id" it is the path as
    written and, of a span, the span: "movie.mp4 60-70".

    Raises:
        UserError: "video", "id", "start" or "end" is not what it should be, or a picture has a span; names the field.
    """
    video = text_of(fields.get("video", fields.get("image")), f"{place}: field 'video'")
    span = span_of_line(fields, place)
    if span is not None and ("video" not in fields or Path(video).suffix.lower() in PICTURE_SUFFIXES):
        bound = "start" if span.start else "end"
        raise UserError(f"{place}: field '{bound}': a span of time needs a video, got the picture {video!r}")
    name = text_of(fields.get("id", video if span is None else f"{video} {span}"), f"{place}: field 'id'")
    start, end = span or (None, None)
    return VideoRecord(name, os.path.join(folder, video), captions, mirrorable, start, end)


def videos_under(folder: Path) -> list[Path]:
    """List every video file in `folder` and its subfolders, known by its suffix, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)


def _read_jsonl(path: Path) -> list[VideoRecord]:
    by_clip: dict[Any, list[VideoRecord]] = {}
    for place, fields in read_lines(path):
        record = _captioned(fields, path.parent, place)
        by_clip.setdefault(record.clip, []).append(record)
    return [
        replace(same[0], captions=tuple(dict.fromkeys(caption for record in same for caption in record.captions)))
        for same in by_clip.values()
    ]


def _captioned(fields: dict[str, Any], folder: Path, place: str) -> VideoRecord:
    record, caption = record_of(fields, folder, place), fields.get("caption")
    captions = caption if isinstance(caption, list) and caption else [caption]
    return replace(record, captions=tuple(text_of(text, f"{place}: field 'caption'") for text in captions))


def _read_folder(folder: Path) -> list[VideoRecord]:
    records, skipped = [], []
    for video in videos_under(folder):
        sidecar, name = video.with_suffix(".txt"), video.relative_to(folder)
        text = read_text(sidecar) if sidecar.is_file() else ""
        captions = tuple(line.strip() for line in lines_of(text) if line.strip())
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
