"""Where a media file says that it ends, to notice one that broke off."""

from __future__ import annotations

from os import SEEK_END
from typing import BinaryIO

from fastvtp.data.video.mp4_index import outermost_boxes

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_LEAST_OF_BOX = 8  # bytes


def promised_end(file: BinaryIO) -> int | None:
    """Return the size in bytes that a Matroska, AVI, mp4 or mov file says it has; None where it does not say."""
    head = file.read(64)
    if head[:4] == _EBML:
        return _end_of_segment(head)
    if head[:4] in (b"RIFF", b"RIFX") and head[8:12] == b"AVI ":
        size = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        return 8 + size if 0 < size < 0xFFFFFFFF else None
    return _end_of_boxes(file) if head[4:8] in (b"ftyp", b"moov", b"styp", b"sidx") else None


def _end_of_segment(head: bytes) -> int | None:
    """Read how long a Matroska file's segment is (RFC 8794, section 4; RFC 9559, section 5.1)."""
    size, wide = _number(head, 4)
    at = 4 + wide + (size or 0)
    if size is None or head[at : at + 4] != _SEGMENT:
        return None
    length, wide = _number(head, at + 4)
    return None if length is None else at + 4 + wide + length


def _number(data: bytes, at: int) -> tuple[int | None, int]:
    """Read a number of variable length: it and its bytes; None where it is cut or says "unknown"."""
    if at >= len(data) or not data[at]:
        return None, 0
    wide = 9 - data[at].bit_length()
    value, bits = int.from_bytes(data[at : at + wide], "big"), 7 * wide
    value &= (1 << bits) - 1
    return (None if value == (1 << bits) - 1 or at + wide > len(data) else value), wide


def _end_of_boxes(file: BinaryIO) -> int | None:
    """Follow the outermost boxes to the end of the last, or past that of the file."""
    ends = [end for _, _, end in outermost_boxes(file)]
    at = ends[-1] if ends else 0
    if at is None:
        return None
    return at + _LEAST_OF_BOX if at < file.seek(0, SEEK_END) else at  # what follows is too short to be a box
