"""Tars for tests."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.data.clips import write_clip


def write_tar(path: Path, files: Iterable[tuple[str, Any]], **options: Any) -> Path:
    """Write files in order; the content is bytes, text, the path of a file, or an object that becomes JSON."""
    with tarfile.open(path, "w", **options) as tar:
        for name, content in files:
            if isinstance(content, Path):
                data = content.read_bytes()
            elif isinstance(content, bytes):
                data = content
            else:
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def numbered_clips(folder: Path, count: int) -> list[Path]:
    """Clips of 8 frames, all different, the first frame of clip i carrying the number 8 i."""
    folder.mkdir(parents=True, exist_ok=True)
    return [write_clip(folder / f"{i:05d}.mp4", 8, 32, 48, first=8 * i) for i in range(count)]


def write_shards(folder: Path, clips: list[Path], per_tar: int) -> list[Path]:
    """Pack clips as video2dataset does, each with a .txt and a .json."""
    folder.mkdir(parents=True, exist_ok=True)
    tars = []
    for number, first in enumerate(range(0, len(clips), per_tar)):
        files: list[tuple[str, Any]] = []
        for clip in clips[first : first + per_tar]:
            said = f"clip {clip.stem}"
            files += [(f"{clip.stem}.mp4", clip), (f"{clip.stem}.txt", said), (f"{clip.stem}.json", {"caption": said})]
        tars.append(write_tar(folder / f"{number:05d}.tar", files))
    return tars
