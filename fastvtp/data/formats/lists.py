"""What a caller says of a list of videos beside its path: its format, the split, where the videos lie."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields

from fastvtp.data.locations import without_secrets
from fastvtp.errors import UserError
from fastvtp.settings import check_types

MISSING = ("drop", "keep", "refuse")
WHAT_BECOMES = {"drop": "they are left out", "keep": "they are kept, and are bad files when they are met"}
"""What becomes of videos that are not there, by `VideoList.missing`; "refuse" raises."""
AUTO = "auto"
"""Stands for a format that is to be told by the content."""


@dataclass(frozen=True, kw_only=True)
class ListColumns:
    """What the columns of a table, or the fields of JSON objects, are called that hold what a list says.

    Each is None where the list calls it as we do, or by one of the usual names that docs/lists.md gives.
    """

    video: str | None = None
    """The path, URL or name of the video."""
    caption: str | None = None
    """A text, or a list of texts."""
    label: str | None = None
    """The class, by name or number."""
    question: str | None = None
    """A question about the video."""
    answer: str | None = None
    """Its answer."""
    options: str | None = None
    """The answers to choose from, a list of texts."""
    type: str | None = None
    """What the question asks for."""
    id: str | None = None
    """The name of the line in reports."""
    start: str | None = None
    """Where the span begins, in seconds or by the clock."""
    end: str | None = None
    """Where it ends."""
    start_frame: str | None = None
    """The frame that the span begins with, counted from 0, in place of seconds."""
    end_frame: str | None = None
    """The first frame after it."""
    split: str | None = None
    """The split that the line belongs to."""

    def __post_init__(self) -> None:
        check_types(self)

    def given(self) -> dict[str, str]:
        """Return the columns that are named, by what they hold."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: column for name, column in values.items() if column is not None}


@dataclass(frozen=True)
class VideoList:
    """A list of videos, and how it is to be read; it stands wherever a function takes the path of a list.

    Attributes:
        path: a file, a folder, or tars by a pattern.
        format: one of `fastvtp.data.formats.FORMATS` by name; None: what the content looks like.
        split: the part of a list that holds several, as the list or its publication calls it; "all": every part. None:
            a list of several splits is refused.
        videos: the folder or URL that paths start from, and in which files are looked for by name where a list gives
            names alone; None: the folder of the list.
        missing: of videos that are not there, "drop" leaves them out and says how many, "keep" leaves them to the
            decoder, "refuse" raises. None: "drop" for published lists whose videos are looked for by name, "keep" for
            lists that give paths, which are not looked at.
        columns: the names of the columns of tables and JSON objects.

    Raises UserError for another value of `missing`.
    """

    path: str
    format: str | None = None
    split: str | None = None
    videos: str | None = None
    missing: str | None = None
    columns: ListColumns = field(default_factory=ListColumns)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.fspath(self.path))
        check_missing(self.missing)

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> VideoList:
        """Return `path` itself where it is such a list, else the list at that path."""
        return path if isinstance(path, VideoList) else cls(os.fspath(path))

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        """Return the path as messages may show it."""
        return without_secrets(self.path)


@dataclass(frozen=True, kw_only=True)
class ListSettings:
    """How a run's lists are read. Raises UserError for another value of `missing`."""

    format: str | None = None
    """The format of `train`, of those that docs/lists.md names; None: what its content looks like."""
    split: str | None = None
    """The split of `train`, where that list holds several, as the list or its publication calls it (MSR-VTT: "train",
    "7k", "9k", ...); "all": every one."""
    videos: str | None = None
    """The folder or URL that the paths of `train` start from, and in which its videos are looked for where the list
    gives names alone; None: the folder of the list."""
    missing: str | None = None
    """Of videos that are not there, "drop" leaves them out and says how many, "keep" leaves them to the decoder,
    "refuse" ends the run before its first step. None: "drop" for published lists whose videos are looked for by name,
    "keep" for lists of paths, which are not looked at."""
    columns: ListColumns = field(default_factory=ListColumns)
    """What the columns of `train` are called: `data.columns.video`, `data.columns.caption` and so on; and those of
    `test`, where it has them and `test_columns` says nothing."""
    test_format: str | None = None
    """`format` of `test`; "auto": what its content looks like; None: as `format`."""
    test_split: str | None = None
    """`split` of `test`."""
    test_videos: str | None = None
    """`videos` of `test`; None: as `videos`."""
    test_columns: ListColumns = field(default_factory=ListColumns)
    """`columns` of `test`: `data.test_columns.video` and so on."""
    more_format: tuple[str, ...] = ()
    """`format` of each of `more`, or one for all; "auto": what its content looks like. So it is where none is given."""
    more_split: tuple[str, ...] = ()
    """`split` of each of `more`, or one for all; an empty text, as in `data.more_split=train,`: none."""
    more_videos: tuple[str, ...] = ()
    """`videos` of each of `more`, or one for all; an empty text: the folder of the list."""
    images_format: str | None = None
    """`format` of `images`; None: what its content looks like."""
    images_split: str | None = None
    """`split` of `images`."""
    images_videos: str | None = None
    """The folder or URL of the pictures of `images`; None: the folder of the list."""

    def __post_init__(self) -> None:
        check_types(self)
        check_missing(self.missing)

    def check_more(self, lists: int) -> None:
        """Raise ValueError where a setting of `more` has neither one value nor as many as there are such lists."""
        for name in ("more_format", "more_split", "more_videos"):
            given = getattr(self, name)
            if len(given) > (lists > 0) and len(given) != lists:
                expected = f"one for each of the {lists} lists of more, or one for all"
                raise ValueError(f"{name} must be {expected}, got {given}")

    @property
    def formats(self) -> tuple[str, ...]:
        """The names of formats that are given."""
        named = (self.format, self.test_format, self.images_format, *self.more_format)
        return tuple(name for name in named if name and name != AUTO)

    def train_list(self, path: str) -> VideoList:
        """Return a training list with what is set of it."""
        return VideoList(path, self.format, self.split, self.videos, self.missing, self.columns)

    def test_list(self, path: str) -> VideoList:
        """Return a test list with what is set of it."""
        own_format, videos = self.test_format or self.format, self.test_videos or self.videos
        columns = self.test_columns if self.test_columns.given() else self.columns
        return VideoList(path, own_format, self.test_split, videos, self.missing, columns)

    def more_list(self, path: str, place: int) -> VideoList:
        """Return the list of `more` at that place with what is set of it."""
        given = (self.more_format, self.more_split, self.more_videos)
        own = (values[place if len(values) > 1 else 0] or None if values else None for values in given)
        return VideoList(path, *own, missing=self.missing)

    def images_list(self, path: str) -> VideoList:
        """Return the list of pictures with what is set of it."""
        return VideoList(path, self.images_format, self.images_split, self.images_videos, self.missing)


def check_missing(missing: str | None) -> None:
    """Raise UserError for a word that does not say what becomes of videos that are not there."""
    if missing not in (None, *MISSING):
        raise UserError(f"missing must be one of {', '.join(MISSING)}, or none, got {missing!r}")
