"""Finds what H.264, HEVC and JPEG say inside the stream about how the picture is to be turned, without decoding."""

from __future__ import annotations

from collections.abc import Iterator

_DISPLAY_ORIENTATION = 47  # ITU-T H.264 D.1.27, H.265 D.2.17
_HEAD = 4096  # bytes of the first packet in which messages stand
_LENGTH_OF_LENGTH = {"h264": 4, "hevc": 21}  # byte of avcC and hvcC (ISO/IEC 14496-15)
_HEADER = {"h264": 1, "hevc": 2}


def asks_for_turn(codec: str, extradata: bytes | None, packet: memoryview) -> bool:
    """Tell whether the first packet of a stream carries a display orientation message, or Exif data that may."""
    head = bytes(packet[:_HEAD])
    if codec == "mjpeg":
        return b"Exif\0\0" in head
    if codec not in _HEADER:
        return False
    for unit in _units(codec, extradata or b"", head):
        is_message = unit[0] & 0x1F == 6 if codec == "h264" else unit[0] >> 1 & 0x3F == 39
        if is_message and _DISPLAY_ORIENTATION in _kinds(unit[_HEADER[codec] :].replace(b"\0\0\3", b"\0\0")):
            return True
    return False


def _units(codec: str, extradata: bytes, data: bytes) -> Iterator[bytes]:
    """Split a packet into network abstraction layer units, either behind their lengths or between start codes."""
    at = _LENGTH_OF_LENGTH[codec]
    if len(extradata) > at and extradata[0] == 1:
        wide, start = (extradata[at] & 3) + 1, 0
        while start + wide < len(data):
            end = start + wide + int.from_bytes(data[start : start + wide], "big")
            yield data[start + wide : end] or b"\0"
            start = end
    else:
        yield from (unit for unit in data.split(b"\0\0\1")[1:] if unit)


def _kinds(data: bytes) -> Iterator[int]:
    """Read the kinds of the messages in a unit: each is its kind, its length, both in steps of 255, and its content."""
    at = 0
    while at + 2 < len(data):
        numbers = []
        for _ in range(2):
            number = 0
            while at < len(data) and data[at] == 255:
                number, at = number + 255, at + 1
            number, at = number + (data[at] if at < len(data) else 0), at + 1
            numbers.append(number)
        yield numbers[0]
        at += numbers[1]
