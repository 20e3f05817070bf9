"""Lists of captioned videos: reading them from disk, and the one fact about captions that augmentation must know."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from fastvtp.data.formats.listing import Listing
from fastvtp.data.formats.registry import CAPTIONS, text_of
from fastvtp.data.locations import located, normal, suffix_of
from fastvtp.data.records import RecordTable, VideoRecord
from fastvtp.data.timespans import span_of_line
from fastvtp.data.video_files import PICTURE_SUFFIXES
from fastvtp.errors import UserError


def load_annotations(path: str | os.PathLike[str]) -> RecordTable:
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
    folder, uncaptioned, clips = listing.source.folder, list[str](), array("q")

    def captioned() -> Iterator[VideoRecord]:
        for row, location in listing:
            with listing.faults:
                if "caption" not in row.fields:
                    raise listing.lacks("caption", row)
                captions, empty = _captions(row.fields, row.place)
                if not captions and listing.entry.name == "folder":
                    uncaptioned.append(row.fields["video"])
                    continue
                listing.empty += empty
                if unique := tuple(dict.fromkeys(captions)):
                    record = record_of(row.fields, folder, row.place, unique, location=location)
                    clips.append(hash(record.clip))
                    yield record

    records = RecordTable(captioned()).merged(clips)
    if uncaptioned:
        listing.say_uncaptioned(uncaptioned, len(records))
    listing.close(len(records), captions=records.num_captions)
    if not records:
        raise UserError(f"{listing.path}: all captions are empty") if listing.empty else listing.nothing()
    listing.say_repeated_ids(records.ids)
    return records


def load_videos(path: str | os.PathLike[str]) -> RecordTable:
    """Read videos without what is said of them: any list that `load_annotations`, `load_questions` or `load_classes`
    reads, a `.jsonl` of {"video": path}, a list of paths, or a folder, with such a list or of videos. Each once.

    A line may say "start" and "end", see `record_of`: then each span comes once.

    Raises FileNotFoundError, or UserError with one line for a malformed list and where there are no videos.
    """
    listing = Listing(path)
    if listing.entry.name == "class_folders":  # videos at the top belong to no class, and are videos all the same
        listing = Listing(listing.source, read_as="folder")
    clips = array("q")

    def listed() -> Iterator[VideoRecord]:
        for row, location in listing:
            with listing.faults:
                record = record_of(row.fields, listing.source.folder, row.place, mirrorable=True, location=location)
                clips.append(hash(record.clip))
                yield record

    records = RecordTable(listed()).merged(clips)
    listing.close(len(records))
    if not records:
        raise listing.nothing()
    listing.say_repeated_ids(records.ids)
    return records


def annotations_digest(records: Sequence[VideoRecord]) -> str:
    """Compute the fingerprint of the records in their order, 16 hexadecimal digits of SHA-256.

    It changes with any id, caption, video path, span or `mirrorable` that is set, but not when the folder that holds
    all the videos moves.
    """
    folder = _common_folder(normal(record.video) for record in records)
    digest = hashlib.sha256()
    for record in records:
        video = normal(record.video)
        said = record.captions if record.mirrorable is None else (*record.captions, record.mirrorable)
        # lists without spans, and those of spans in seconds, keep the digests that they had
        shown = () if record.span is None else (record.start or 0.0, record.end)
        shown = shown if record.frames is None else ("frames", record.frames.start, record.frames.end)
        digest.update(json.dumps([record.id, video[len(folder) :].lstrip("/"), said, *shown]).encode())
    return digest.hexdigest()[:16]


def _common_folder(videos: Iterable[str]) -> str:
    """Return the folder that all lie in, be it on disk, in a tar or in a store; "" where there is none."""
    common: list[str] | None = None
    for video in videos:
        parts = video.split("/")[:-1]
        if common is None:
            common = parts
        elif parts[: len(common)] != common:
            pairs = zip(common, parts, strict=False)
            common = [mine for mine, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return "/".join(common or ())


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
    if "video" not in fields and "image" not in fields:
        own = "a field of another name is given by data.columns.video=NAME or --column video=NAME"
        raise UserError(f"{place}: field 'video': there is none among {', '.join(map(repr, fields))}; {own}")
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
