"""Data sets in tars, as video2dataset, Energon and open_clip write them for webdataset: their samples.

The files of a sample have one name up to the first dot, with the folder, and differ in what follows: `000017.mp4`,
`000017.txt`, `000017.json`, `000017.cls`. Nothing is unpacked, and no video is opened: all is read from the side
indexes, see `fastvtp.data.storage.tar_index`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastvtp.data.locations import in_archive, without_secrets
from fastvtp.data.storage.finding import read_file
from fastvtp.data.storage.shard_names import tars_of
from fastvtp.data.storage.stored_file import UnreadableError
from fastvtp.data.storage.tar_index import TEXT_SUFFIXES, TarListing, VideoFacts, tar_listings
from fastvtp.data.video_files import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from fastvtp.errors import UserError

_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
VIDEO_FIELDS = ("video", "videos", "image", "images")
CAPTION_FIELDS = ("caption", "captions", "text", "texts")
_FIELD = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")


@dataclass(frozen=True)
class TarSample:
    """The files of one sample.

    Attributes:
        key: their common name, with the folder within the tar.
        archive: the tar.
        video: the location of its video, or of its picture where it has none; None where it has neither.
        texts: content of the files of text, by the suffix in lower case, without the dot: "txt", "json", "cls".
        facts: of the video, where `fastvtp index` looked at it.
    """

    key: str
    archive: str
    video: str | None
    texts: Mapping[str, str] = field(default_factory=dict)
    facts: VideoFacts | None = None

    @property
    def place(self) -> str:
        """Name the sample for messages."""
        return in_archive(without_secrets(self.archive), self.key)

    def fields(self) -> dict[str, Any]:
        """Return the object in its .json; an empty one where it has none. Raises UserError where it is no object."""
        if "json" not in self.texts:
            return {}
        try:
            found = json.loads(self.texts["json"])
        except ValueError as error:
            raise UserError(f"{self.place}.json: not JSON: {error}") from None
        if not isinstance(found, dict):
            raise UserError(f"{self.place}.json: expected an object, got {type(found).__name__}")
        return found

    def captions(self, source: str | None = None) -> tuple[str, ...]:
        """Return the captions, without those that are blank.

        Args:
            source: "txt", or "json[name]" for a field of the .json, as Energon writes it. None: the text of the .txt,
                or without one the field "caption", "captions", "text" or "texts" of the .json, a text or a list of
                texts.
        """
        if source is not None:
            found = self._said(source)
        elif "txt" in self.texts:
            found = self.texts["txt"]
        else:
            fields = self.fields()
            found = next((fields[name] for name in CAPTION_FIELDS if fields.get(name)), None)
        texts = found if isinstance(found, list) else [found]
        return tuple(dict.fromkeys(" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip()))

    @property
    def label(self) -> str | None:
        """The content of the .cls, the number or name of its class; None where it has none."""
        return self.texts["cls"].strip() if "cls" in self.texts else None

    def _said(self, source: str) -> Any:
        match = _FIELD.fullmatch(source)
        if match is None:
            raise UserError(f"{source!r}: expected the suffix of a file, or one with a field such as json[caption]")
        if not match[2]:
            return self.texts.get(match[1].lower())
        found: Any = self.fields()
        for name in re.findall(r"\[([^\[\]]+)\]", match[2]):
            if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                found = found.get(name) if isinstance(found, dict) else None
        return found


def sample_key(name: str) -> tuple[str, str] | None:
    """Split the name of a member into the key of its sample and what follows the dot; None for one of no sample.

    The key is all before the first dot of the base name, with the folder, as webdataset has it.
    """
    match = _KEY.fullmatch(name)
    if match is None or re.fullmatch(r"__[^/]*__", match[1].rpartition("/")[2]):  # the second are its notes
        return None
    return match[1], match[2].lower()


def tar_samples(source: str | Sequence[str], *, split: str = "train", video: str | None = None) -> Iterator[TarSample]:
    """Read the samples of tars in their order.

    Args:
        source: a tar; a pattern of tars such as "/data/{00000..00099}.tar" or "s3://bucket/shards/*.tar"; a folder of
            tars, or with an Energon data set; or several of these. Paths or URLs.
        split: which part of an Energon data set, whose `.nv-meta` says which tars it has.
        video: the suffix of the file to take for the video, "mp4", or several as "mp4;webm"; None: the first that is a
            video's, or else the first that is a picture's.

    Raises:
        FileNotFoundError: nothing there.
        UserError: no tars there, or what is there is none.
    """
    archives = tars_of(source, split)
    for archive, listing in zip(archives, tar_listings(archives), strict=True):
        yield from _samples(archive, listing, video)


def _samples(archive: str, listing: TarListing, video: str | None) -> Iterator[TarSample]:
    members: dict[str, dict[str, str]] = {}
    for name in listing.names:
        if (parts := sample_key(name)) is not None:
            members.setdefault(parts[0], {})[parts[1]] = name
    for key, files in members.items():
        said = (suffix for suffix in files if f".{suffix}" in TEXT_SUFFIXES)
        texts = {suffix: _text(archive, files[suffix], listing) for suffix in said}
        shown = _video(files, video)
        place, facts = (None, None) if shown is None else (in_archive(archive, shown), listing.facts.get(shown))
        yield TarSample(key, archive, place, texts, facts)


def _video(files: Mapping[str, str], wanted: str | None) -> str | None:
    if wanted is not None:
        suffixes = (suffix.strip().removeprefix(".") for suffix in wanted.lower().split(";"))
        return next((files[suffix] for suffix in suffixes if suffix in files), None)
    for suffixes in (VIDEO_SUFFIXES, PICTURE_SUFFIXES):
        found = [name for suffix, name in files.items() if f".{suffix.rpartition('.')[2]}" in suffixes]
        if found:
            return found[0]
    return None


def _text(archive: str, name: str, listing: TarListing) -> str:
    if name in listing.texts:
        return listing.texts[name]
    try:
        return read_file(in_archive(archive, name)).decode("utf-8-sig", errors="replace")
    except UnreadableError as error:
        raise UserError(str(error)) from None
