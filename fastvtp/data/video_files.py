"""The videos in a folder: which files are some, and where a file lies of which only the name is known."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fastvtp.data.storage.remote import matching

VIDEO_SUFFIXES = frozenset(
    {
        *(".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv"),
        *(".ts", ".vob", ".webm", ".wmv"),
    }
)
PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

_SETTLED_NS = 2_000_000_000  # a folder changed later than this before it was listed may change again unnoticed
_FRAME = re.compile(r"(?:.*[_-])?\d+")  # 00001.jpg, frame_000001.jpg, img-1.png


def known_suffix(name: str) -> str:
    """Return the suffix of a video or picture, in lower case with its dot; empty for any other name, whose dots are
    part of it."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in VIDEO_SUFFIXES or suffix in PICTURE_SUFFIXES else ""


def without_suffix(name: str) -> str:
    """Return a name without the suffix of a video or picture."""
    return name[: len(name) - len(known_suffix(name))]


def videos_under(folder: str | os.PathLike[str]) -> list[Path]:
    """List every video file in `folder` and its subfolders, known by its suffix, sorted; see `FolderContent`."""
    return [Path(folder, name) for name in content_of(folder).videos]


@dataclass(frozen=True)
class FolderContent:
    """What lies in a folder and its subfolders, linked ones included, by paths relative to it, sorted.

    Attributes:
        root: the folder.
        videos: files with the suffix of a video.
        pictures: files with the suffix of a picture that are no frames of `frame_folders`.
        bare: files whose names have no suffix.
        frame_folders: folders of two or more pictures with numbers for names, and without videos: the frames of one.
        hidden: videos and folders whose names begin with a dot; what is in such folders is not listed.
        others: how many files there are of any other suffix.
        folders: every folder, and when it last changed.
        listed: when this was found, nanoseconds.
    """

    root: str
    videos: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)
    frame_folders: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)
    folders: dict[str, int] = field(default_factory=dict)
    listed: int = 0

    def is_current(self) -> bool:
        """Tell whether all folders are as they were, as far as their times of change say."""
        try:
            return all(
                os.stat(folder).st_mtime_ns == changed < self.listed - _SETTLED_NS
                for folder, changed in self.folders.items()
            )
        except OSError:
            return False

    def find(self, name: str, *, pictures: bool = False, prefer: Callable[[str], bool] | None = None) -> str | None:
        """Find a file, or a folder of frames, by its path from here or by its name alone, whose suffix may be missing
        or another than here. pictures: look among pictures, and files without a suffix, as well. prefer: tells of the
        name of a folder whether what lies in it goes before files of the same name elsewhere.

        Returns its absolute path, or None.
        """
        paths, names = self._with_pictures if pictures else self._index
        for known, wanted in ((paths, without_suffix(name)), (names, without_suffix(name).rsplit("/", 1)[-1])):
            if (found := known.get(wanted)) is not None:
                exact = [path for path in found if path == name]
                near = [path for path in found if prefer is not None and any(map(prefer, path.split("/")[:-1]))]
                return os.path.join(self.root, (exact or near or found)[0])
        return None

    def others_of(self, name: str) -> int:
        """Count the files beside the one that `find` returns that could be meant as well."""
        bare = without_suffix(name)
        found = self._index[0].get(bare) or self._index[1].get(bare.rsplit("/", 1)[-1]) or ()
        return 0 if name in found else max(0, len(found) - 1)

    @cached_property
    def _index(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        return _index_of([*self.videos, *self.frame_folders])

    @cached_property
    def _with_pictures(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        return _index_of([*self.videos, *self.frame_folders, *self.pictures, *self.bare])


_known: dict[str, FolderContent] = {}


def content_of(folder: str | os.PathLike[str]) -> FolderContent:
    """List a folder and its subfolders once, and again when one of them has changed.

    Linked folders are followed, but not into themselves. What cannot be listed is left out, as `os.walk` does.
    """
    root = os.path.abspath(folder)
    known = _known.get(root)
    if known is None or not known.is_current():
        known = FolderContent(root, listed=time.time_ns())
        _list(root, "", known, ())
        for names in (known.videos, known.pictures, known.frame_folders, known.hidden):
            names.sort(key=lambda name: name.split("/"))
        _known[root] = known
    return known


def content_of_url(folder: str) -> FolderContent | None:
    """List the objects under a URL, now; None for http(s), whose servers do not list what they have.

    Raises UnreadableError and UserError as `fastvtp.data.storage.remote.matching`.
    """
    if folder.startswith(("http://", "https://")):
        return None
    content, own = FolderContent(folder), len(_path_of(folder)) + 1
    for name in (_path_of(url)[own:] for url in matching(f"{folder}/**")):
        suffix = os.path.splitext(name)[1].lower()
        kinds = {"": content.bare, **dict.fromkeys(VIDEO_SUFFIXES, content.videos)}
        kinds |= dict.fromkeys(PICTURE_SUFFIXES, content.pictures)
        if suffix in kinds:
            kinds[suffix].append(name)
    return content


def _path_of(url: str) -> str:
    """Return a URL without its scheme: stores write slashes behind it or do not."""
    return url.partition("://")[2].strip("/")


def _list(folder: str, prefix: str, content: FolderContent, above: tuple[tuple[int, int], ...]) -> None:
    try:
        status = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError:
        return
    own = (status.st_dev, status.st_ino)
    if own in above:
        return
    content.folders[folder] = status.st_mtime_ns
    frames: list[str] = []
    videos = len(content.videos)
    inner: list[os.DirEntry[str]] = []
    for entry in entries:
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
            content.hidden.extend([prefix + entry.name] if suffix in VIDEO_SUFFIXES or entry.is_dir() else [])
        elif entry.is_dir():
            inner.append(entry)
        elif suffix in VIDEO_SUFFIXES:
            content.videos.append(prefix + entry.name)
        elif suffix in PICTURE_SUFFIXES:
            frames.append(entry.name)
        elif not suffix:
            content.bare.append(prefix + entry.name)
        else:
            content.others[suffix] = content.others.get(suffix, 0) + 1
    numbered = all(_FRAME.fullmatch(os.path.splitext(name)[0]) for name in frames)
    if len(frames) > 1 and numbered and len(content.videos) == videos and prefix:
        content.frame_folders.append(prefix[:-1])
    else:
        content.pictures.extend(prefix + name for name in frames)
    for entry in inner:
        _list(entry.path, f"{prefix}{entry.name}/", content, (*above, own))


def _index_of(files: list[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    paths: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for file in sorted(files, key=lambda name: name.split("/")):
        bare = without_suffix(file)
        name = bare.rsplit("/", 1)[-1]
        paths.setdefault(bare, []).append(file)
        names.setdefault(name, []).append(file)
    return paths, names
