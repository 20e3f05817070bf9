"""Miniatures of published lists in their true form, with texts and ids of our own, and a damaged twin of each."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAY = ("a red ball moves up", "a blue box falls, then stops", "someone opens a door")


def lines(*rows: Any) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


@dataclass(frozen=True)
class Miniature:
    """A list, what is read of it, and what is said of a damaged copy.

    Attributes:
        wanted: what it is read for: "captions", "questions", "label", "labels" or "videos".
        name: where it lies.
        content: of the list.
        videos: files that lie beside it, by their paths.
        read: what each record says: (path of its video, what is said of it, start, end).
        damage: the text in `content` that is damaged, and what takes its place; of a folder of videos the name of one,
            and its damaged name.
        complaint: what the message says behind the path of what is opened, or of what is damaged: the line, entry, row
            or record, the field, and what was expected.
        beside: further files.
        damages: which of `beside` is damaged in place of the list.
        more: of the list, beside its path: split, format.
        opens: what is opened in place of the list: a folder that it is in.
    """

    wanted: str
    name: str
    content: str | bytes
    videos: tuple[str, ...]
    read: tuple[tuple[Any, ...], ...]
    damage: tuple[Any, Any]
    complaint: str
    beside: dict[str, str | bytes] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    opens: str = ""
    damages: str = ""

    def write(self, folder: Path, *, damaged: bool = False, videos: Path | None = None) -> Path:
        """Write the list, or its damaged twin, and its files; returns the path of what is opened.

        videos: the folder that the videos lie in, in place of that of the list.
        """
        files = {**dict.fromkeys(self.videos, ""), **self.beside, self.name: self.content}
        target = self.damages or self.name
        if damaged and files[target]:
            assert self.damage[0] in files[target]
            files[target] = files[target].replace(*self.damage, 1)
        elif damaged:  # a folder of videos
            assert self.damage[0] in files
            files = {self.damage[1] if name == self.damage[0] else name: text for name, text in files.items()}
        for name, text in files.items():
            path = self.place(name, folder, videos) if name in self.videos else folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder / (self.opens or self.name)

    def place(self, video: str, folder: Path, videos: Path | None = None) -> Path:
        """Return where a video lies whose list is in `folder`: in `videos`, but for those of a folder of videos."""
        own = self.opens and video.startswith(f"{self.opens}/")
        return (folder if own or videos is None else videos) / video
