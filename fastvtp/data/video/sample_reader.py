"""Reads the packets of a long mp4 or mov by its own table of samples, without libav's demuxer.

libav makes an index of every sample of every track when it opens a file, which for two hours takes several times as
long as decoding a clip. Here it is given a small file instead, whose header is that of the file with the first samples
of its video alone; the decoder, the size and the colours are those of the file then, and all other samples are read
where the table says. Only for codecs of which the demuxer hands samples on as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from io import BytesIO
from typing import Any

from fastvtp.data.storage.finding import StoredFile
from fastvtp.data.video.mp4_track import Track, read_track
from fastvtp.data.video.packet_reader import NoVideoStreamError, PacketReader
from fastvtp.data.video.packets import Packets
from fastvtp.data.video.pictures import Turn

_LONG_HEADER = 1 << 18  # bytes, from which on libav's index takes longer than this
_COPIED_SAMPLES, _COPIED_BYTES = 40, 5_000_000  # what libav looks at to know the delay of a decoder, at most
_AS_THEY_ARE = ("h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg")
_READ_AT_ONCE = 1 << 18


class SampleReader(PacketReader):
    """A `PacketReader` of a long mp4 or mov; made by `open_packets`."""

    def __init__(self, source: StoredFile, track: Track):
        self._track, self._file, self._end = track, source.open(), source.size
        try:
            self._small = track.shortened(self._file, _COPIED_SAMPLES, _COPIED_BYTES)
            super().__init__(source)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()
        super().close()

    def _open(self) -> None:
        self._open_container(BytesIO(self._small))

    @property
    def rate(self) -> Fraction | None:
        return self._track.rate

    def read_turn(self) -> Turn | None:
        return None if self._is_turned_inside else Turn.of_matrix(self._track.matrix)

    def is_as_libav_reads(self) -> bool:
        """Tell whether libav's packets of the small file are those that are read here."""
        if self.decoder.codec.canonical_name not in _AS_THEY_ARE:
            return False
        theirs = list(self._demux())
        self.expect(self._track.packets(self._end))
        table, ticks_off = self._packets, theirs[0].pts - self._packets.pts[0] if theirs else 0
        mine = zip(range(len(theirs)), self.read_from(0), strict=False)
        return len(theirs) > 0 and all(
            bytes(their) == bytes(packet)
            and their.pts == table.pts[number] + ticks_off
            and their.is_keyframe == table.is_keyframe[number]
            for their, (_, (number, packet)) in zip(theirs, mine, strict=True)
        )

    def read_index(self) -> Packets | None:
        return self._packets  # expected since they were compared with libav's

    def read_all(self) -> Packets:
        return self._packets  # no reading could tell others

    def read_from(self, start: int) -> Iterator[tuple[int, Any]]:
        from av import Packet

        pos, size, data, first = self._pos, self._size, b"", 0
        for number in range(start, len(self._packets)):
            at, length = pos[number], size[number]
            if not first <= at <= at + length <= first + len(data):
                self._file.seek(at)
                first, data = at, self._file.read(max(length, _READ_AT_ONCE))
                if len(data) < length:
                    raise OSError("the file ends within a sample")
            packet = Packet(data[at - first : at - first + length])
            if number == 0:
                self._look_for_turn(packet)
            yield number, packet


def open_packets(source: StoredFile | bytes, *, playlists: bool = False) -> PacketReader:
    """Open a file by the way that is fastest for it, with its best stream of video chosen."""
    if isinstance(source, StoredFile) and not playlists and source.size > _LONG_HEADER:
        reader = _long_mp4(source)
        if reader is not None:
            return reader
    reader = PacketReader(source, playlists=playlists)
    try:
        reader.choose_stream()
    except BaseException:
        reader.close()
        raise
    return reader


def _long_mp4(source: StoredFile) -> SampleReader | None:
    from av.error import FFmpegError

    with suppress(OSError, FFmpegError, ValueError, NoVideoStreamError):  # then libav is to say what is wrong
        with source.open() as file:
            track = read_track(file, _LONG_HEADER)
        if track is None:
            return None
        reader = SampleReader(source, track)
        try:
            reader.choose_stream()
            if reader.is_as_libav_reads():
                return reader
        except BaseException:
            reader.close()
            raise
        reader.close()
    return None
