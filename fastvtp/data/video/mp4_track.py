"""The video track of a long mp4 or mov file: its packets by its own table, and a small file of its first samples."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

import numpy as np

from fastvtp.data.video.mp4_index import (
    SampleTable,
    boxes_in,
    display_matrix,
    read_movie,
    sample_table,
    ticks_per_second,
    track_number,
)
from fastvtp.data.video.packets import Packets, packets_of_table

_ABOUT_SAMPLES = (b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"co64", b"stss", b"sdtp", b"cslg")
_CHUNK_HEADER = 8  # bytes


@dataclass(frozen=True)
class Track:
    """The one video track of a movie.

    Attributes:
        movie: what its `moov` box holds.
        start: the boxes before the first one of size, brands of the file (`ftyp`), as bytes.
        number: its `track_ID`.
        table: of its samples.
        matrix: how it is to be shown, as `display_matrix` has it.
        rate: frames per second in the mean; None if that is not known.
    """

    movie: memoryview
    start: bytes
    number: int
    table: SampleTable
    matrix: tuple[int, ...]
    rate: Fraction | None

    def packets(self, end: int) -> Packets:
        """Return the packets of the samples; `end` is the size of the file."""
        assert self.table.dts is not None
        return packets_of_table(self.table, self.table.dts, end)

    def shortened(self, file: BinaryIO, samples: int, most_bytes: int) -> bytes:
        """Make a file of the track alone, and of it the first `samples`, or as many as have `most_bytes`.

        Raises:
            ValueError: the header holds what cannot be shortened, or the file has less samples than it promises.
        """
        held = np.flatnonzero(self.table.size > 0)
        count = max(1, min(samples, int(np.searchsorted(np.cumsum(self.table.size[held]), most_bytes))))
        kept = held[:count]
        data = []
        for number in kept:
            file.seek(int(self.table.pos[number]))
            data.append(file.read(int(self.table.size[number])))
            if len(data[-1]) != self.table.size[number]:
                raise ValueError("the file ends within its first samples")
        sizes = [len(sample) for sample in data]
        header = b""
        for _ in range(2):  # the places of the samples depend on the length of the header, which is the same again
            first = len(self.start) + len(header) + _CHUNK_HEADER
            places = [first + sum(sizes[:i]) for i in range(count)]
            header = _box(b"moov", *self._movie_parts(kept, sizes, places))
        return self.start + header + _box(b"mdat", *data)

    def _movie_parts(self, kept: np.ndarray, sizes: list[int], places: list[int]) -> Iterator[bytes]:
        for name, data in boxes_in(self.movie):
            if name == b"mvhd":
                yield _box(name, data)
            elif name == b"trak":
                inner = dict(boxes_in(data))
                if b"tkhd" in inner and track_number(inner[b"tkhd"]) == self.number:
                    yield self._shortened_box(name, data, self._about(kept, sizes, places))

    def _shortened_box(self, name: bytes, data: memoryview, about: bytes) -> bytes:
        parts = []
        for inner, content in boxes_in(data):
            if inner in (b"mdia", b"minf", b"stbl"):
                parts.append(self._shortened_box(inner, content, about))
            elif inner not in (*_ABOUT_SAMPLES, b"edts", b"tref"):
                parts.append(_box(inner, content))
        return _box(name, *parts, *([about] if name == b"stbl" else []))

    def _about(self, kept: np.ndarray, sizes: list[int], places: list[int]) -> bytes:
        """Write the boxes about these samples, each of which is a chunk of its own."""
        table, count = self.table, len(kept)
        assert table.dts is not None
        assert table.is_keyframe is not None
        following = np.append(table.dts, table.dts[-1:] + 1)[kept + 1]
        keys = [i + 1 for i in range(count) if table.is_keyframe[kept[i]]]
        boxes = [
            _rows(b"stts", [(1, int(time)) for time in following - table.dts[kept]]),
            _rows(b"stsc", [(1, 1, table.description)]),
            _box(b"stsz", struct.pack(">3I", 0, 0, count), struct.pack(f">{count}I", *sizes)),
            _rows(b"stco", [(place,) for place in places]),
        ]
        if table.offset.any():
            boxes.append(_rows(b"ctts", [(1, int(offset)) for offset in table.offset[kept]], version=1))
        if not table.is_keyframe.all():
            boxes.append(_rows(b"stss", [(key,) for key in keys]))
        return b"".join(boxes)


def read_track(file: BinaryIO, least: int) -> Track | None:
    """Read the video track of a movie whose header has `least` bytes or more; None where it is shorter, or not all of
    it says plainly what libav would make of it."""
    start = file.read(8)
    length = int.from_bytes(start[:4], "big")
    start = b"" if start[4:] != b"ftyp" or length > 4096 else start + file.read(length - 8)
    try:
        movie = read_movie(file, least)
        if movie is None:
            return None
        tracks = [dict(boxes_in(data)) for name, data in boxes_in(movie) if name == b"trak"]
        media = [(track, dict(boxes_in(track[b"mdia"]))) for track in tracks if b"mdia" in track]
        videos = [(track, inner) for track, inner in media if bytes(inner.get(b"hdlr", b"")[8:12]) == b"vide"]
        if len(videos) != 1 or b"tkhd" not in videos[0][0] or b"mdhd" not in videos[0][1]:
            return None
        number = track_number(videos[0][0][b"tkhd"])
        table, matrix = sample_table(movie, number), display_matrix(movie, number)
        if table is None or matrix is None or not table.is_whole or table.is_keyframe is None or len(table.pos) < 2:
            return None
        length = table.length
        rate = Fraction(ticks_per_second(videos[0][1][b"mdhd"]) * len(table.pos), length) if length else None
        return Track(movie, start, number, table, matrix, rate)
    except (ValueError, IndexError):
        return None


def _box(name: bytes, *parts: bytes | memoryview) -> bytes:
    content = b"".join(parts)
    return (len(content) + 8).to_bytes(4, "big") + name + content


def _rows(name: bytes, rows: list[tuple[int, ...]], version: int = 0) -> bytes:
    content = b"".join(struct.pack(f">{len(row)}i", *row) for row in rows)
    return _box(name, bytes([version, 0, 0, 0]), len(rows).to_bytes(4, "big"), content)
