"""Reading any list: its format is recognised, its videos are found, and what is left out is said."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from fastvtp.data.formats.catalogue import EXPECTED, find_format, recognise
from fastvtp.data.formats.complaints import no_field, nothing_listed, say_unread, several_splits
from fastvtp.data.formats.lists import WHAT_BECOMES, VideoList
from fastvtp.data.formats.registry import LABEL, LABELS, TELLINGS, Row, split_name
from fastvtp.data.formats.source import CLASS_NAMES, FOLDER_METADATA, ListSource
from fastvtp.data.locations import is_remote, located, member_of, normal, to_be_unpacked, without_secrets
from fastvtp.data.storage.shard_names import ENERGON
from fastvtp.data.video_files import FolderContent, content_of, content_of_url, known_suffix, without_suffix
from fastvtp.errors import UserError, counted, few
from fastvtp.files import lines_of, read_text

logger = logging.getLogger(__name__)

_NAMED = 5
_SAID = ("start", "end", "start_frame", "end_frame", "caption", "label", "labels", "question", "answer", "options")
ALL = "all"


class Listing:
    """A list that is being read. Iterating gives each row with the location of its video; `close` says what was read.

    Attributes:
        listed: what was asked for.
        entry: the format that the list has.
        faults: what becomes of malformed rows: `with` it a reader makes something of a row.
        empty: captions that were empty and left out; readers of captions count them.
        dropped_questions: questions that were left out; readers of questions count them.
    """

    def __init__(self, path: str | os.PathLike[str], wanted: str | None = None, *, read_as: str | None = None):
        """Recognise the list at `path`, or a `ListSource` that another reader looked at; wanted: what is to be read of
        it, one of `TELLINGS`, or None for videos alone; read_as: a format in place of its own.

        Raises:
            FileNotFoundError: nothing there.
            UserError: no format fits, several do, or the one that does says nothing of what is wanted.
        """
        self.source = _source(ListSource.of(path), wanted)
        self.listed, self.faults = self.source.listed, self.source.faults
        self.entry = recognise(self.source, wanted) if read_as is None else find_format(read_as)
        if wanted is not None and wanted not in self.entry.tells:
            said = " and ".join(TELLINGS[each] for each in self.entry.tells) or "paths alone"
            raise UserError(f"{self.path}: {self.entry.title} tells {said}; expected {EXPECTED[wanted]}")
        self.empty = self.dropped_questions = 0
        self.policy = self.listed.missing or ("drop" if self.entry.searched else "keep")
        self._folder = self.source.home  # which holds its videos itself, where it is no list
        if self.listed.videos is not None and not self.entry.holds_videos:
            self._folder = _place_of(self.listed.videos)
        self._remote = is_remote(self._folder)
        self._splits: dict[str, None] = {}
        self._found: set[str] = set()
        self._absent: dict[str, None] = {}
        self._several: dict[str, None] = {}
        self._bad_spans = 0
        self._without_split = ""

    @property
    def path(self) -> str:
        """The list as messages name it."""
        return self.source.shown if self.source.path.exists() else str(self.listed)

    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of all classes where a file beside the list has them."""
        if self.entry.class_names is not None:
            return self.entry.class_names(self.source)
        path = self.source.folder / CLASS_NAMES
        if not (self.entry.own and not self.source.is_folder and path.is_file()):
            return None
        names = tuple(lines_of(read_text(path).rstrip()))
        logger.info("%s: its classes are named by %s, %d of them", self.path, CLASS_NAMES, len(names))
        return names

    def first(self) -> dict[str, Any]:
        """Return the fields of the first row, empty where there is none."""
        row = self.source.first_row(self.entry.read)
        return {} if row is None else row.fields

    def tells_classes(self) -> bool:
        """Tell whether the first row has a class, or several. A list of captions within a folder has none."""
        in_folder = os.path.isdir(self.listed.path) and not self.source.is_folder
        other = in_folder and self.entry.own and not self.source.prepared
        if not {LABEL, LABELS} & set(self.entry.tells) or other:
            return False
        return bool({LABEL, LABELS} & set(self.first()))

    def description(self, counts: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Return the list, its format and its split for a report; and of one that was read how much it holds, `counts`
        by what they are of, and what of it is missing or was left out."""
        absent, found = len(self._absent), len(self._found)
        missing = {"videos": absent, "of": absent + found, "first": list(self._absent)[:_NAMED]}
        said = {
            "list": str(self.listed),
            "format": self.entry.name,
            "split": self._split(),
            **(counts or {}),
            "missing": missing | {"kept": self.policy == "keep"} if absent else None,
            "empty_captions": self.empty or None,
            "dropped_spans": self._bad_spans or None,
            "dropped_questions": self.dropped_questions or None,
        }
        return {name: value for name, value in said.items() if value is not None}

    def _split(self) -> str | None:
        """Return the split that was asked for, or the only one that was met."""
        return self.listed.split or (next(iter(self._splits)) if len(self._splits) == 1 else None)

    def __iter__(self) -> Iterator[tuple[Row, str]]:
        """Return the rows of the split, each with the location of its video.

        Raises:
            UserError: a malformed row; several splits, and none was chosen.
        """
        asked = None if self.listed.split in (None, ALL) else split_name(self.listed.split)
        looks = self.entry.splits or asked is not None
        rows = self.source.all_rows(self.entry.read)
        for row in rows:
            if looks and not self._of_split(row, asked):
                continue
            if len(self._splits) > 1 and self.listed.split is None:
                raise self._several_splits(rows)
            start, end = row.fields.get("start"), row.fields.get("end")
            if self.entry.searched and start is not None and end is not None and not 0 <= start < end:
                self._bad_spans += 1
                continue
            row, location = self._located(row)
            if location is None:
                continue
            if not self.faults.collects:
                yield row, location
                continue
            before = len(self.faults.found)
            yield row, location
            if len(self.faults.found) == before:
                self.faults.compare(row.place, (normal(location), [row.fields.get(name) for name in _SAID]))

    def close(self, videos: int, **counts: int) -> None:
        """Say what was read, in one line, and what was left out, in one line each; counts: of what else, by its name.

        Raises:
            UserError: no video is there, or some are missing and are not to be; the split is empty.
        """
        if self.listed.split not in (None, ALL):
            self._check_split(self.listed.split)
        self._say_missing()
        _descriptions[self.listed] = self.description({"videos": videos, **counts})
        _left_out[self.listed] = tuple(self._absent) if self.policy == "drop" else ()
        if not videos and not self.empty:
            return
        if self.entry.holds_videos and self.listed.videos is not None:
            elsewhere = without_secrets(self.listed.videos)
            logger.warning("%s: its videos are those in it, and not looked for in videos=%s", self.path, elsewhere)
        hidden = self.source.content.hidden if self.source.is_folder else []
        if hidden := [name for name in hidden if name != ENERGON]:
            number = counted(len(hidden), "name", "are")
            logger.warning("%s: %s hidden, and passed over: %s", self.path, number, few(hidden))
        for name, column in self.listed.columns.given().items():
            if name not in self.entry.columns:
                of = f"{self.entry.title} has its own"
                logger.warning("%s: columns.%s=%s is not looked at: %s", self.path, name, column, of)
        say_unread(self.path, self.source, self.entry)
        if self.empty:
            logger.warning("%s: %s left out", self.path, counted(self.empty, "empty caption", "are"))
        if self._bad_spans:
            spans = counted(self._bad_spans, "span", "are")
            logger.warning("%s: %s left out for an end that is its beginning or before", self.path, spans)
        if self._several:
            videos_said, named = counted(len(self._several), "video"), few(list(self._several))
            logger.warning("%s: several files bear the name of %s, the first by path is taken: %s",
                           self.path, videos_said, named)  # fmt: skip
        from fastvtp import processes  # here: it imports torch, which workers do without

        if processes.is_first():
            known = self._split()
            split = f", split {known!r}" if known else ""
            remark = f" ({self.entry.remark})" if self.entry.remark else ""
            held = {"videos": videos, **counts}.items()
            numbers = "".join(f", {counted(count, name.removesuffix('s'))}" for name, count in held)
            logger.info("%s: %s%s%s%s", self.source.path.name, self.entry.title, remark, split, numbers)

    def say_repeated_ids(self, ids: Callable[[], Iterable[str]]) -> None:
        """Warn where several records bear one id: reports and features call them by it. ids: returns them, and once
        more the second time."""
        hashes = np.fromiter(map(hash, ids()), np.int64)  # of millions of lines the ids themselves are not kept
        if len(np.unique(hashes)) < len(hashes):
            repeated = [name for name, count in Counter(ids()).items() if count > 1]
            number = counted(len(repeated), "id", "are")
            logger.warning("%s: %s of several records: %s", self.path, number, few(repeated))

    def say_uncaptioned(self, videos: Sequence[str], kept: int) -> None:
        """Warn that videos of a folder have no caption file beside them, or an empty one.

        videos: their paths within the folder. kept: how many others there are. Raises UserError where there is none.
        """
        beside = {video: f"{without_suffix(video)}.txt" for video in videos}
        empty = {video: text for video, text in beside.items() if (self.source.path / text).is_file()}
        lacking, told = [video for video in videos if video not in empty], []
        if lacking:
            named = few([f"{lacking[0]} (expected {beside[lacking[0]]})", *lacking[1:]])
            told.append(f"no caption file beside {len(lacking)} of {counted(len(videos) + kept, 'video')}: {named}")
        if empty:
            told.append(f"{counted(len(empty), 'caption file')} without a text: {few([*empty.values()])}")
        said = "; ".join(told)
        if not kept:
            raise UserError(f"{self.path}: {said}; no video has a caption")
        logger.warning("%s: %s; left out", self.path, said)

    def nothing(self, what: str = "videos") -> UserError:
        """Return the error for a list without any; of a folder it says what is there instead."""
        return nothing_listed(self.path, what, self.source.content.others if self.source.is_folder else {})

    def lacks(self, field: str, row: Row) -> UserError:
        """Return the error for a row that says nothing in a field that is to be read."""
        return no_field(field, row, self.source, self.entry)

    def _of_split(self, row: Row, asked: str | None) -> bool:
        written = row.fields.get("split")
        if written in (None, ""):
            self._without_split = self._without_split or row.place
            return asked is None
        own = split_name(written)
        self._splits.setdefault(own)
        return asked is None or own == asked

    def _several_splits(self, rest: Iterator[Row]) -> UserError:
        """Return the error for a list of several splits of which none was chosen; rest: the rows that are to come."""
        with contextlib.suppress(UserError):  # a row that cannot be read is said once a split is chosen
            for row in rest:
                if row.fields.get("split") not in (None, ""):
                    self._splits.setdefault(split_name(row.fields["split"]))
        return several_splits(self.path, self._splits, ALL)

    def _check_split(self, asked: str) -> None:
        """Raise UserError where the list has no such split, or some of its rows are of none."""
        if not self._splits and self._without_split:
            raise UserError(f"{self.path}: no split {asked!r}: no line of it says a split; leave split={asked} out")
        if split_name(asked) not in self._splits:
            has = ", ".join(map(repr, self._splits)) or "none"
            raise UserError(f"{self.path}: no split {asked!r}; it has {has}")
        if self._without_split and self.entry.own:
            raise UserError(f"{self._without_split}: field 'split': expected a split such as {asked!r}, got None")

    def _located(self, row: Row) -> tuple[Row, str | None]:
        video = row.fields.get("video", row.fields.get("image"))
        if not isinstance(video, str) or not video.strip():
            return row, ""  # whoever makes the record says what is wrong
        if not self.entry.searched:
            return row, self._by_path(video)
        if self._content is None:
            return row, located(video if known_suffix(video) else f"{video}.mp4", self._folder)
        split = row.fields.get("split")
        location = self._by_name(video, split)
        if location is None and row.whole is not None:
            name, start, end = row.whole
            if (location := self._by_name(name, split)) is not None:
                row = row._replace(fields={**row.fields, "id": row.fields.get("id", video), "start": start, "end": end})
        if location is not None:
            self._found.add(location)
            return row, location
        self._absent.setdefault(video)
        return row, os.path.join(self._folder, video) if self.policy == "keep" else None

    @cached_property
    def _content(self) -> FolderContent | None:
        """What lies where the videos do; None where that cannot be listed."""
        if not self._remote:
            return content_of(self._folder)
        if (content := content_of_url(self._folder)) is None:
            folder = without_secrets(self._folder)
            logger.warning("%s: %s is not listed: names become %s/NAME.mp4", self.path, folder, folder)
        return content

    def _by_name(self, video: str, split: object = None) -> str | None:
        content = self._content
        assert content is not None  # there is nothing to find in what cannot be listed
        own = None if split is None else split_name(split)
        folder_of_split = None if own is None else lambda folder: split_name(folder) == own
        location = content.find(video, pictures=self.entry.pictures, prefer=folder_of_split)
        several = location is not None and not self.entry.pictures and content.others_of(video)
        if several and not (own is not None and own in map(split_name, str(location).split("/"))):
            self._several.setdefault(video)
        return location

    def _by_path(self, video: str) -> str | None:
        plain = video[0].isalnum() and ":" not in video and not video[-1].isspace() and not self._remote
        location = f"{self._folder}/{video}" if plain else located(video, self._folder)
        if plain and self.entry.own and self.policy == "keep":
            return location  # the usual case, of lists of millions
        if not self.entry.own and not known_suffix(location) and not is_remote(location) and not member_of(location):
            found = location if os.path.exists(location) else self._by_name(video)
            if found is None and self.policy == "keep":
                self._absent.setdefault(video)
            elif found is not None:
                self._found.add(found)
            location = found or location
        if self.policy != "keep" and not is_remote(location) and not member_of(location):
            if not os.path.exists(location):
                self._absent.setdefault(video)
                return None
            self._found.add(location)
        return location

    def _say_missing(self) -> None:
        absent, found = len(self._absent), len(self._found)
        if not absent:
            return
        share = f"{absent} of {counted(absent + found, 'video', 'are')}"
        where = f"{share} not in {without_secrets(self._folder)}: {few(list(self._absent))}"
        if self.policy == "refuse" or (not found and self.policy != "keep"):
            cure = "" if self.listed.videos else "; say where they lie with data.videos=FOLDER or --videos FOLDER"
            raise UserError(f"{self.path}: {where}{cure}")
        becomes = WHAT_BECOMES[self.policy]
        logger.warning("%s: %.1f %% missing, %s; %s", self.path, 100 * absent / (absent + found), where, becomes)


# of the lists that were read: a list may be gone before the report of a run is written
_descriptions: dict[VideoList, dict[str, Any]] = {}
_left_out: dict[VideoList, tuple[str, ...]] = {}


def left_out_of(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the videos, as it names them, that were left out of a list when this process last read it, since they are
    not there."""
    return _left_out.get(ListSource.of(path).listed, ())


def describe_list(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a list for a report: path, format, split, and where this process read it the counts of what it holds, of
    what is missing and of what was left out, as they were then. Errors, of a list that was not read, as of
    `Listing`."""
    known = _descriptions.get(ListSource.of(path).listed)
    return dict(known) if known is not None else Listing(path).description()


def describe_scored_list(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return `describe_list` of what was scored on, and warn where scores are of a part of it alone."""
    told = describe_list(path)
    missing = told.get("missing")
    if missing is not None:
        share = f"{100 * missing['videos'] / missing['of']:.1f} % ({missing['videos']} of {missing['of']})"
        logger.warning("%s: %s of its videos are missing: the scores are of the others alone", told["list"], share)
    return told


def _source(given: ListSource, wanted: str | None) -> ListSource:
    """Return the source of what is wanted of a list: in a folder of class folders a list of captions says nothing of
    the classes."""
    listed = given.listed
    if wanted not in (LABEL, LABELS) or str(given.path) == os.path.abspath(listed):
        return given
    other = not given.prepared and given.path.name not in FOLDER_METADATA
    source = ListSource(listed, FOLDER_METADATA, given.faults) if other else given
    named = {wanted, listed.columns.label} & {*source.first, *source.cells}
    in_folder = str(source.path) != os.path.abspath(listed)
    return ListSource(listed, (), given.faults) if in_folder and not named else source


def _place_of(folder: str) -> str:
    """Return a folder of videos, given by whoever reads the list, as an absolute path or the URL that it is."""
    place = located(folder, os.getcwd()).rstrip("/") or "/"
    if not is_remote(place) and not os.path.isdir(place):
        packed = to_be_unpacked(place) if os.path.exists(place) else ""
        raise UserError(f"videos={folder}: {packed or 'no such folder'}")
    return place
