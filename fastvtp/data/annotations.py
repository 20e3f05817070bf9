"""Lists of captioned videos: reading them from disk, and the one fact about captions that augmentation must know."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from fastvtp.data.formats.listing import Listing
from fastvtp.data.formats.registry import CAPTIONS, text_of
from fastvtp.data.locations import located, normal, suffix_of, without_secrets
from fastvtp.data.timespans import MOST_SECONDS, FrameSpan, Span, TimeSpan, span_of_line
from fastvtp.data.video_files import PICTURE_SUFFIXES
from fastvtp.errors import UserError

_DIRECTION = re.compile(
    r"\b(?:(?:left|right)(?:wards?|most|handed)?|lefty|(?:anti|counter)?clockwise)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video, or a span of one, and its captions; `video` is a location (see `fastvtp.data.locations`), `captions`
    holds at least one.

    Training draws among the captions; retrieval scores them all. `mirrorable` says whether all
    that is said of the video, answers included, stays true of its mirror image; None: the captions decide.
    `start` and `end`, seconds from the first frame, bound what is shown of the video: frames from `start` to before
    `end` alone, see `Video.frames_within`. None: from the first frame on, to the last. `frames` bounds it by frames
    instead.
    """

    id: str
    video: str
    captions: tuple[str, ...]
    mirrorable: bool | None = None
    start: float | None = None
    end: float | None = None
    frames: FrameSpan | None = None

    def __post_init__(self) -> None:
        """Raise UserError where `start` and `end`, or `frames`, bound no span."""
        if self.frames is not None:
            first, last = self.frames.start, self.frames.end
            if first < 0 or (last is not None and last <= first) or not (self.start is None and self.end is None):
                name, bounds = without_secrets(self.video), f"{self.frames} and {self.start}-{self.end} s"
                raise UserError(f"{name}: expected a span by frames, 0 <= start < end, or by seconds, got {bounds}")
        first, last = (self.start or 0.0), (MOST_SECONDS if self.end is None else self.end)
        if not 0 <= first < last <= MOST_SECONDS:
            name, bounds = without_secrets(self.video), f"{self.start} and {self.end}"
            raise UserError(f"{name}: expected 0 <= start < end, in seconds, got {bounds}")

    @property
    def span(self) -> Span | None:
        """What is shown of the video; None: all of it."""
        if self.frames is not None:
            return self.frames
        whole = not self.start and self.end is None
        return None if whole else TimeSpan(self.start or 0.0, self.end)

    def within(self, span: Span | None) -> VideoRecord:
        """Return the record of that span of the video, None: of all of it."""
        if isinstance(span, FrameSpan):
            return replace(self, start=None, end=None, frames=span)
        start, end = span or (None, None)
        return replace(self, start=start, end=end, frames=None)

    @property
    def clip(self) -> tuple[str, Span | None]:
        """What is shown, as a key: equal for records of the same span of the same video, whatever their ids."""
        return normal(self.video), self.span

    @property
    def source(self) -> str:
        """The path of the video and, where it is a span of it, the span: "/films/a.mp4 60-70 s"."""
        return self.video if self.span is None else f"{self.video} {self.span.said}"

    def named(self) -> dict[str, Any]:
        """Return the fields of a line that names the record: id, video and, where it is a span of it, its bounds."""
        bounds = {} if self.span is None else self.span.fields()
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
            Or a published list of captions, by its content: docs/lists.md names them all. A `VideoList` says more of
            it than its path: the split, the folder of the videos, the columns of a table.

    Returns:
        The records in the order of the file, or of the sorted paths in a folder. Videos are not opened. Captions that
        are empty are left out and counted in one warning; so are videos of a published list that are not there.

    Raises:
        FileNotFoundError: nothing there.
        UserError: a malformed list, with file, line number and field; no videos, or none with a caption.
    """
    listing = Listing(path, CAPTIONS)
    folder, uncaptioned = listing.source.folder, []
    records: dict[Any, VideoRecord] = {}
    captions_of: dict[Any, list[str]] = {}
    for row, location in listing:
        with listing.faults:
            if "caption" not in row.fields:
                raise listing.lacks("caption", row)
            captions, empty = _captions(row.fields, row.place)
            if not captions and listing.entry.name == "folder":
                uncaptioned.append(row.fields["video"])
                continue
            listing.empty += empty
            if not captions:
                continue
            record = record_of(row.fields, folder, row.place, captions, location=location)
            clip = _key_of(record)
            first = records.setdefault(clip, record)
            if first is not record or len(captions) > 1:
                captions_of.setdefault(clip, [*first.captions]).extend(captions)
    for clip, captions in captions_of.items():
        records[clip] = replace(records[clip], captions=tuple(dict.fromkeys(captions)))
    if uncaptioned:
        listing.say_uncaptioned(uncaptioned, len(records))
    listing.close(len(records), captions=sum(len(record.captions) for record in records.values()))
    if not records:
        raise UserError(f"{listing.path}: all captions are empty") if listing.empty else listing.nothing()
    listing.say_repeated_ids([record.id for record in records.values()])
    return list(records.values())


def load_videos(path: str | os.PathLike[str]) -> list[VideoRecord]:
    """Read videos without what is said of them: any list that `load_annotations`, `load_questions` or `load_classes`
    reads, a `.jsonl` of {"video": path}, a list of paths, or a folder, with such a list or of videos. Each once.

    A line may say "start" and "end", see `record_of`: then each span comes once.

    Raises FileNotFoundError, or UserError with one line for a malformed list and where there are no videos.
    """
    listing = Listing(path)
    if listing.entry.name == "class_folders":  # videos at the top belong to no class, and are videos all the same
        listing = Listing(listing.source, read_as="folder")
    records: dict[Any, VideoRecord] = {}
    for row, location in listing:
        with listing.faults:
            record = record_of(row.fields, listing.source.folder, row.place, mirrorable=True, location=location)
            records.setdefault(record.clip, record)
    listing.close(len(records))
    if not records:
        raise listing.nothing()
    listing.say_repeated_ids([record.id for record in records.values()])
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
        # lists without spans, and those of spans in seconds, keep the digests that they had
        shown = () if record.span is None else (record.start or 0.0, record.end)
        shown = shown if record.frames is None else ("frames", record.frames.start, record.frames.end)
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


def record_of(
    fields: dict[str, Any],
    folder: Path,
    place: str,
    captions: tuple[str, ...] = ("",),
    *,
    mirrorable: bool | None = None,
    location: str | None = None,
) -> VideoRecord:
    """Make the record of the video, or of the span of a video, that a line names; location: where it was found.

    Without a location a path is made absolute from `folder` on. A picture may stand in the field "image" instead of
    "video". "start" and "end" bound the span in seconds from the first frame, numbers or texts such as "12.5" and
    "00:01:02.5"; either may be missing; "start_frame" and "end_frame" bound it by frames instead, counted from 0. Where
    the span's end lies beyond the video's, the video's counts. Without an "id" it is the path as written and, of a
    span, the span: "movie.mp4 60-70", "movie.mp4 frames 60-70".

    Raises:
        UserError: "video", "id", "start" or "end" is not what it should be, or a picture has a span; names the field.
    """
    video = text_of(fields.get("video", fields.get("image")), f"{place}: field 'video'")
    span = span_of_line(fields, place)
    if span is not None and ("video" not in fields or suffix_of(video) in PICTURE_SUFFIXES):
        bound = next(name for name, value in span.fields().items() if value)
        raise UserError(f"{place}: field '{bound}': a span of time needs a video, got the picture {video!r}")
    name = text_of(fields.get("id", video if span is None else f"{video} {span}"), f"{place}: field 'id'")
    record = VideoRecord(name, location or located(video, folder), captions, mirrorable)
    return record if span is None else record.within(span)


def _captions(fields: Mapping[str, Any], place: str) -> tuple[tuple[str, ...], int]:
    """Return the captions of a line, and how many empty ones it has beside them: blank, or null."""
    said = fields.get("caption")
    if isinstance(said, str) and said.strip():  # the usual case
        return (text_of(said, f"{place}: field 'caption'"),), 0
    listed = [""] if said is None else said if isinstance(said, list) else [said]
    written = [each for each in listed if not (isinstance(each, str) and not each.strip())]
    texts = tuple(text_of(each, f"{place}: field 'caption'") for each in written)
    return texts, max(1, len(listed)) - len(texts)


def _key_of(record: VideoRecord) -> Any:
    """Return what `VideoRecord.clip` says in little memory: for most records their own path."""
    video, span = record.clip
    video = record.video if video == record.video else video
    return video if span is None else (video, span)
