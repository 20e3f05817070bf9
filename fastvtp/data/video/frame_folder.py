"""A folder whose pictures are the frames of a video, as many data sets hand them out: `frames/00001.jpg`, ..."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from fastvtp.data.storage.stored_file import UnreadableError, regular_file
from fastvtp.data.video.errors import VideoDecodeError
from fastvtp.data.video.pictures import Turn, turn_of

PICTURES = {  # decoder of libav by suffix
    **dict.fromkeys((".jpg", ".jpeg"), "mjpeg"),
    **{".png": "png", ".webp": "webp", ".bmp": "bmp", ".tif": "tiff", ".tiff": "tiff"},
}


class FrameFolder:
    """The frames of a folder, with the interface of `fastvtp.data.video.frame_reader.FrameReader`.

    Args:
        folder: files with a suffix of `PICTURES` count, hidden ones do not; numbers in their names order them by value.
        rate: frames per second.
        keeps_damaged: whether frames that are damaged are handed out.

    Raises:
        VideoDecodeError: there is no picture in the folder, or the first cannot be decoded, which tells the size.
    """

    def __init__(self, folder: str, rate: Fraction, *, keeps_damaged: bool = False):
        self._folder, self._keeps_damaged, self.rate = folder, keeps_damaged, rate
        try:
            names = [name for name in os.listdir(folder) if _decoder_of(name) and not name.startswith(".")]
        except OSError as error:
            raise VideoDecodeError(folder, error.strerror or str(error)) from None
        self._names = sorted(names, key=_by_number)
        self.count = len(self._names)
        if not self.count:
            raise VideoDecodeError(folder, f"a folder without pictures ({', '.join(PICTURES)})")
        self.times, self.cut, self.tick, self.container = None, None, 1 / rate, "folder"
        self.keyframes, self.damaged = np.arange(self.count), set[int]()
        first = self._path(0)
        try:
            status = os.stat(first)
            looks = _look(first, status.st_size, status.st_mtime_ns)
        except Exception as error:
            raise VideoDecodeError(folder, f"{self._names[0]} cannot be decoded ({_reason(error)})") from None
        self.height, self.width, self.stretch, self.turn, self.codec = looks

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def decode_all(self) -> int:
        """Decode every frame and keep none; returns their number."""
        return sum(len(self.decode([index])) for index in range(self.count))

    def decode(self, indices: list[int]) -> dict[int, Any]:
        """Decode the frames at `indices`; see `FrameReader.decode`."""
        from av.error import FFmpegError

        found: dict[int, Any] = {}
        for index in indices:
            try:
                found[index] = _decoded(self._path(index))[0]
                is_damaged, why = found[index].is_corrupt, "is damaged"
            except (FFmpegError, OSError, UnreadableError) as error:
                is_damaged, why = True, f"cannot be decoded ({_reason(error)})"
            if is_damaged and not self._keeps_damaged:
                raise VideoDecodeError(self._folder, f"frame {index} of {self.count}, {self._names[index]}, {why}")
            if is_damaged:
                self.damaged.add(index)
            if index not in found:
                found[index] = self._stand_in(index)
        return found

    def walk(self, indices: range) -> Iterator[Any]:
        """Decode the frames at consecutive indices, each in turn; see `FrameReader.walk`."""
        for index in indices:
            yield self.decode([index])[index]

    def _stand_in(self, index: int) -> Any:
        from av.error import FFmpegError

        for other in (*range(index - 1, -1, -1), *range(index + 1, self.count)):
            try:
                return _decoded(self._path(other))[0]
            except (FFmpegError, OSError, UnreadableError):
                continue
        raise VideoDecodeError(self._folder, "none of its pictures can be decoded")

    def _path(self, index: int) -> str:
        return os.path.join(self._folder, self._names[index])


def _decoder_of(name: str) -> str | None:
    return PICTURES.get(os.path.splitext(name)[1].lower())


def _by_number(name: str) -> tuple[list[tuple[int, str]], str]:
    """Order "2" before "10"."""
    parts = re.split(r"(\d+)", os.path.splitext(name)[0])
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def _decoded(path: str) -> tuple[Any, Any]:
    """Decode a picture; returns it and its decoder. Raises UnreadableError, OSError or FFmpegError."""
    from av import CodecContext, Packet
    from av.error import InvalidDataError

    regular_file(path)
    with open(path, "rb") as file:
        data = file.read()
    decoder: Any = CodecContext.create(_decoder_of(path) or "mjpeg", "r")
    decoder.thread_count = 1
    frames = [frame for packet in (Packet(data), None) for frame in decoder.decode(packet)] if data else []
    if not frames:
        raise InvalidDataError(0, "no picture in it" if data else "zero bytes", path)
    return frames[0], decoder


@lru_cache(maxsize=4096)
def _look(path: str, size: int, changed: int) -> tuple[int, int, Fraction | None, Turn, str]:
    """Decode a picture to know its height, width, sample aspect ratio, turn and codec."""
    frame, decoder = _decoded(path)
    return frame.height, frame.width, decoder.sample_aspect_ratio, turn_of(frame), decoder.codec.canonical_name


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, UnreadableError) else getattr(error, "strerror", None) or str(error)
