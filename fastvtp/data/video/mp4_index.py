"""The sample table in the header of an mp4 or mov file: where each sample lies and when it is shown.

libav reads the same table but hands out decoding times alone; how far a sample is shown after it is decoded lies in
the `ctts` box, which is why the boxes (ISO/IEC 14496-12, section 8) are read once more. A table that is spread over
the file (fragments), compressed, contradictory or in a rare form is not read: None, and the packets have to be looked
at instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO

import numpy as np

_MOST_BYTES = 1 << 29  # of a header; a day of video has about 100 MB
_MOST_SAMPLES_OF_ONE_SIZE = 1 << 22  # one number in the file stands for all: damage there must not fill the memory
_MOST_BOXES = 1 << 20
_FURTHEST = 1 << 63  # before which every file ends
_WIDEST_OFFSET = 1 << 28  # libav takes a ctts with wider ones for damage and ignores it


@dataclass(frozen=True)
class SampleTable:
    """The samples of one track in decoding order, times in ticks of the track.

    Attributes:
        pos, size: int64 `[N]`, bytes.
        dts: int64 `[N]`, decoding times from 0; None where libav would mend them.
        offset: int64 `[N]`, from decoding to presentation.
        is_keyframe: bool `[N]`; None where another box than `stss` has a say.
        is_whole: the edit list, if there is one, moves all samples by the same time and hides none.
        description: number, from 1, of what `stsd` says about them all.
        length: ticks that all of them last.
    """

    pos: np.ndarray
    size: np.ndarray
    dts: np.ndarray | None
    offset: np.ndarray
    is_keyframe: np.ndarray | None
    is_whole: bool
    description: int = 1
    length: int = 0


def display_matrix(movie: memoryview, track: int) -> tuple[int, ...] | None:
    """Return how the track with this number (`track_ID`) is to be shown: the nine numbers a b u c d v x y w of its
    matrix (section 8.3.2) times that of the movie, in 65536ths, u v w in 2^-30.

    Args:
        movie: what `read_movie` read.
        track: number of the track (`track_ID`).

    Returns:
        None where the header cannot be read.
    """
    with suppress(ValueError, IndexError):  # it is cut short
        return _display_matrix(movie, track)
    return None


def _display_matrix(movie: memoryview, track: int) -> tuple[int, ...] | None:
    outer = list(boxes_in(movie))
    tracks = [dict(boxes_in(data)).get(b"tkhd") for name, data in outer if name == b"trak"]
    mine = [header for header in tracks if header is not None and track_number(header) == track]
    whole = dict(outer).get(b"mvhd")
    if len(mine) != 1 or whole is None:
        return None
    one, two = (
        np.frombuffer(header, ">i4", 9, at + 12 * bool(header[0])).reshape(3, 3).astype(object)
        for header, at in ((mine[0], 40), (whole, 36))
    )
    scale = np.array([1 << 16, 1 << 16, 1 << 30], object)
    return tuple(((one[:, :, None] * two[None, :, :]) // scale[None, :, None]).sum(1).ravel().tolist())


def read_movie(file: BinaryIO, least: int = 0) -> memoryview | None:
    """Find the `moov` box among the outermost ones and read what it holds; None where there is none, where it is cut,
    or of less than `least` bytes."""
    for name, start, end in outermost_boxes(file):
        if name == b"moov":
            if end is None or not least <= end - start <= _MOST_BYTES:
                return None
            file.seek(start)
            data = file.read(end - start)
            return memoryview(data) if len(data) == end - start else None
    return None


def outermost_boxes(file: BinaryIO) -> Iterator[tuple[bytes, int, int | None]]:
    """Walk over the outermost boxes (section 4.2) without what they hold.

    Yields:
        The name of each, where in the file its content begins, and where it ends; None for the last of a file that
        says "to the end" or no size that can be, behind which no other can be found.
    """
    at = 0
    for _ in range(_MOST_BOXES):
        try:
            file.seek(at)
        except OSError:  # behind the end of the longest file that a filesystem can hold
            return
        head = file.read(16)
        if len(head) < 8:
            return
        size, start = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, start = int.from_bytes(head[8:16], "big"), 16
        end = at + size if size >= start and at + size < _FURTHEST else None
        yield head[4:8], at + start, end
        if end is None:
            return
        at = end


def boxes_in(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Split into boxes, each a name and what it holds; raises ValueError where one reaches past the end."""
    at = 0
    while at + 8 <= len(data):
        size, name, start = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8]), 8
        if size == 1:
            size, start = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = len(data) - at
        if size < start or at + size > len(data):
            raise ValueError("a box reaches past the one it is in")
        yield name, data[at + start : at + size]
        at += size


def sample_table(movie: memoryview, track: int) -> SampleTable | None:
    """Return the table of a track.

    Args:
        movie: what `read_movie` read.
        track: number of the track (`track_ID`).

    Returns:
        None where the header does not have all of the table.
    """
    with suppress(ValueError, IndexError):  # it is cut short, or its counts contradict each other
        return _sample_table(movie, track)
    return None


def _sample_table(movie: memoryview, track: int) -> SampleTable | None:
    outer = list(boxes_in(movie))
    if any(name in (b"mvex", b"cmov") for name, _ in outer):
        return None
    tracks = [dict(boxes_in(data)) for name, data in outer if name == b"trak"]
    mine = [boxes for boxes in tracks if b"tkhd" in boxes and track_number(boxes[b"tkhd"]) == track]
    if len(mine) != 1:
        return None
    media = dict(boxes_in(mine[0][b"mdia"])) if b"mdia" in mine[0] else {}
    information = dict(boxes_in(media[b"minf"])) if b"minf" in media else {}
    boxes = dict(boxes_in(information[b"stbl"])) if b"stbl" in information else {}
    if b"stsz" not in boxes or b"stsc" not in boxes or not boxes.keys() & {b"stco", b"co64"}:
        return None

    size = _sizes(boxes[b"stsz"])
    pos = _positions(boxes, size)
    offset = _by_sample(boxes[b"ctts"], len(size)) if b"ctts" in boxes else np.zeros(len(size), np.int64)
    if pos is None or offset is None or np.abs(offset).max(initial=0) >= _WIDEST_OFFSET:
        return None
    if b"stss" in boxes and not len(_rows(boxes[b"stss"], ">u4", 1)):
        return None  # libav looks for the keyframes inside the packets

    durations = _by_sample(boxes[b"stts"], len(size)) if b"stts" in boxes else None
    dts = None if durations is None or durations.min(initial=0) < 0 else np.cumsum(durations) - durations
    scales = dict(outer).get(b"mvhd"), media.get(b"mdhd")
    is_whole = dts is not None and _edits_hide_nothing(mine[0], scales, dts + offset)
    description = int(_rows(boxes[b"stsc"], ">u4", 3)[0, 2])
    length = 0 if durations is None else int(durations.sum())
    return SampleTable(pos, size, dts, offset, _keyframes(boxes, len(size)), is_whole, description, length)


def track_number(header: memoryview) -> int:
    """Read `track_ID` in a `tkhd` box."""
    at = 20 if header[0] else 12  # version 1 has times of 8 bytes
    return int.from_bytes(header[at : at + 4], "big")


def _rows(box: memoryview, kind: str, columns: int) -> np.ndarray:
    """Read a box that is a number of rows, then the rows: int64 `[N, columns]`."""
    count = int.from_bytes(box[4:8], "big")
    return np.frombuffer(box, kind, count * columns, 8).reshape(count, columns).astype(np.int64)


def _by_sample(box: memoryview, count: int) -> np.ndarray | None:
    """Spread a box of (number of samples, value) over the samples."""
    runs = _rows(box, ">i4", 2)
    if runs[:, 0].min(initial=0) < 0 or runs[:, 0].sum() != count:
        return None
    return np.repeat(runs[:, 1], runs[:, 0])


def _sizes(box: memoryview) -> np.ndarray:
    same, count = int.from_bytes(box[4:8], "big"), int.from_bytes(box[8:12], "big")
    if same:
        if count > _MOST_SAMPLES_OF_ONE_SIZE:
            raise ValueError("a damaged number of samples")
        return np.full(count, same, np.int64)
    return np.frombuffer(box, ">u4", count, 12).astype(np.int64)


def _positions(boxes: dict[bytes, memoryview], size: np.ndarray) -> np.ndarray | None:
    """Lay the samples one after the other into the chunks of the file."""
    runs = _rows(boxes[b"stsc"], ">u4", 3)  # the first chunk (from 1), samples per chunk, description of the samples
    chunks = _rows(boxes[b"co64"], ">i8", 1) if b"co64" in boxes else _rows(boxes[b"stco"], ">u4", 1)
    if not len(runs) or runs[0, 0] != 1 or (runs[:, 2] != runs[0, 2]).any():
        return None
    lengths = np.diff(np.append(runs[:, 0] - 1, len(chunks)))
    if lengths.min() < 0:
        return None
    per_chunk = np.repeat(runs[:, 1], lengths)
    if per_chunk.sum() != len(size):
        return None
    before = np.cumsum(size) - size  # bytes of all samples before each
    first = (np.cumsum(per_chunk) - per_chunk)[per_chunk > 0]  # the first sample of each chunk
    start = chunks[:, 0][per_chunk > 0] - before[first]
    return before + np.repeat(start, per_chunk[per_chunk > 0])


def _keyframes(boxes: dict[bytes, memoryview], count: int) -> np.ndarray | None:
    if boxes.keys() & {b"stps", b"sbgp"}:
        return None
    if b"stss" not in boxes:
        return np.ones(count, bool)
    numbers = _rows(boxes[b"stss"], ">u4", 1)[:, 0]
    if numbers.min() < 1 or numbers.max() > count:
        return None
    is_keyframe = np.zeros(count, bool)
    is_keyframe[numbers - 1] = True
    return is_keyframe


def _edits_hide_nothing(
    track: dict[bytes, memoryview], headers: tuple[memoryview | None, memoryview | None], times: np.ndarray
) -> bool:
    edits = dict(boxes_in(track[b"edts"])).get(b"elst") if b"edts" in track else None
    if edits is None:
        return True
    movie, media = headers
    if movie is None or media is None or not len(times):
        return False
    wide = bool(edits[0])
    kind = np.dtype([("duration", ">i8" if wide else ">i4"), ("time", ">i8" if wide else ">i4"), ("rate", ">i4")])
    shown = np.frombuffer(edits, kind, int.from_bytes(edits[4:8], "big"), 8)
    shown = shown[shown["time"] != -1]  # those are pauses before
    if len(shown) != 1 or shown["rate"][0] != 1 << 16:
        return False
    start, duration = int(shown["time"][0]), int(shown["duration"][0])
    end = start + Fraction(duration * ticks_per_second(media), ticks_per_second(movie))
    # a tick of distance from the end: libav rounds
    return start <= int(times.min()) and (duration == 0 or int(times.max()) + 1 < end)


def ticks_per_second(header: memoryview) -> int:
    """Read the timescale in a `mvhd` or `mdhd` box."""
    at = 20 if header[0] else 12
    return int.from_bytes(header[at : at + 4], "big") or 1
