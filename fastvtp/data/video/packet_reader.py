"""Reads the packets of a video from any of them on, and makes sure that they are those of the table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from functools import cached_property, lru_cache
from io import SEEK_END, BytesIO
from itertools import chain, islice
from operator import attrgetter
from typing import Any, BinaryIO

import numpy as np

from fastvtp.data.storage.finding import StoredFile, UnreadableError
from fastvtp.data.video.file_end import promised_end
from fastvtp.data.video.mp4_index import display_matrix, read_movie
from fastvtp.data.video.packets import UNKNOWN, Packets, packets_by_index, packets_by_reading, shows_as_decoded
from fastvtp.data.video.pictures import Turn
from fastvtp.data.video.turn_messages import asks_for_turn

_GENERATE_PTS = 1  # of `AVFormatContext.flags`
_LOOKED_AT = 2  # packets, to see whether an index lists what the demuxer hands out
_TRIED_AFTER_SEEK = 8  # packets, to find one that the table lists
_NAMING_OTHERS = {  # demuxers that open what a file or an address names, or a device
    *("concat", "dash", "hls", "image2", "imf", "lavfi", "rtp", "rtsp", "sap", "sdp", "vapoursynth", "vobsub"),
    *("webm_dash_manifest", "alsa", "fbdev", "kmsgrab", "oss", "x11grab", "video4linux2,v4l2"),
}
_LOCAL, _REMOTE = "file,subfile", "http,https,tcp,tls,httpproxy"
_MATROSKA_ROLL, _MATROSKA_CLUSTER, _MATROSKA_HEAD = b"\x76\x75", b"\x1f\x43\xb6\x75", 1 << 16
_PLAYLISTS = (b"#EXTM3U", b"ffconcat version", b"v=0\r\n", b"v=0\n", b"<?xml", b"<MPD")


class NotAsListedError(Exception):
    """The packets of a file are not those that its table lists."""


class NoVideoStreamError(Exception):
    """There is no stream of video in a file, or no decoder for it; the message says which."""


class PacketReader:
    """The best video stream of a file.

    The libraries' own errors (`av.error.FFmpegError`, OSError) come through.

    Args:
        source: what `fastvtp.data.storage.finding` found, or the bytes of a file.
        playlists: whether files may name others to be opened.

    Attributes:
        stream: of PyAV; another one once the file had to be opened again, as is `decoder`, its codec context.
        height, width: of a stored picture in pixels, as the container says.
        says_times: whether the container says when a frame is shown, for codecs whose frames need others.
        needs_palette: whether the stream can only be decoded from its first packet, by a decoder that is new.
    """

    def __init__(self, source: StoredFile | bytes, *, playlists: bool = False):
        self._source, self._playlists = source, playlists
        self._can_seek, self._is_turned_inside = True, False
        self._open()

    @property
    def container_format(self) -> str:
        """The file format, as libav names it."""
        return self._container.format.name

    def close(self) -> None:
        self._container.close()

    def _open(self) -> None:
        self._open_container(BytesIO(self._source) if isinstance(self._source, bytes) else self._source.libav)

    def _open_container(self, file: Any) -> None:
        import av

        allowed = {}
        if not self._playlists:
            is_remote = isinstance(file, str) and "://" in file
            protocols = f"{_LOCAL},{_REMOTE}" if is_remote else _LOCAL
            allowed = {"format_whitelist": _formats(), "protocol_whitelist": protocols}
        self._container: Any = av.open(file, container_options=allowed, metadata_errors="replace")
        self._at: int | None = 0  # number of the packet that comes next; None if that is not known

    def choose_stream(self) -> None:
        """Take the best stream of video and open its decoder; to be called before anything else.

        Raises:
            NoVideoStreamError: there is none.
        """
        from av.stream import Discard, Disposition

        self.stream: Any = self._container.streams.best("video")
        if self.stream is None or self.stream.disposition & Disposition.attached_pic:
            raise NoVideoStreamError("no video stream")
        self.decoder: Any = self.stream.codec_context
        if self.decoder is None:
            raise NoVideoStreamError("no decoder for its video codec")
        # what the container says, until the decoder has met a frame of another size
        self.height, self.width = self.decoder.height, self.decoder.width
        self.decoder.thread_count = 1  # one clip per worker process: more threads only add start-up cost
        # dav1d keeps what it was opened with: opened at a packet that may be skipped, it would go on skipping.
        self.decoder.skip_frame = "DEFAULT"
        self.decoder.open(strict=False)
        for stream in self._container.streams:
            if stream.index != self.stream.index:
                stream.discard = Discard.all
        # AVI says nothing about presentation. libav would make times up that ignore B-frames, and for that keep packets
        # in memory until a later one settles theirs.
        self.says_times = self._container.format.name != "avi" or shows_as_decoded(self.decoder.codec)
        if not self.says_times:
            self._container.flags &= ~_GENERATE_PTS
        # A palette comes with the first packet and is lost when the decoder is flushed, as it is for a seek.
        self.needs_palette = self.decoder.pix_fmt == "pal8"

    @property
    def stretch(self) -> Fraction | None:
        """How much wider than high the container, or else the codec, says that pixels are."""
        return self.stream.sample_aspect_ratio

    @property
    def rate(self) -> Fraction | None:
        """Frames per second in the mean, as far as the container knows."""
        return self.stream.average_rate

    def read_turn(self) -> Turn | None:
        """Return how all frames become upright; None where the first frame has to be decoded to know.

        Of containers mp4 and mov say so, and Matroska; of codecs H.264, HEVC and JPEG, with the first frame.
        """
        name = self._container.format.name
        if self._is_turned_inside or (name.startswith("matroska") and _MATROSKA_ROLL in self._head()):
            return None
        if not name.startswith("mov,"):
            return Turn()
        matrix = None if self._movie is None else display_matrix(self._movie, self.stream.id)
        return None if matrix is None else Turn.of_matrix(matrix)

    def missing_bytes(self) -> tuple[int, int] | None:
        """Return how many bytes there are and how many the file says that there should be; None where it has them."""
        with self._second_file() as file:
            promised = None if file is None else promised_end(file)
            if file is None or promised is None:
                return None
            there = file.seek(0, SEEK_END)
        return (there, promised) if there < promised else None

    @property
    def promised_frames(self) -> int | None:
        """How many frames the header announces, about; None where it does not."""
        if self.stream.frames:
            return self.stream.frames
        if self._container.duration is None or not self.rate:
            return None
        return round(Fraction(self._container.duration, 1_000_000) * self.rate)

    def _head(self) -> bytes:
        with self._second_file() as file:
            return b"" if file is None else file.read(_MATROSKA_HEAD).split(_MATROSKA_CLUSTER)[0]

    @cached_property
    def _movie(self) -> memoryview | None:
        """What the header of an mp4 or mov holds; None of other files, or where it cannot be read."""
        if not self._container.format.name.startswith("mov,"):
            return None
        with self._second_file() as file:
            return None if file is None else read_movie(file)

    @contextmanager
    def _second_file(self) -> Iterator[BinaryIO | None]:
        """Open the same bytes once more; None where they are not a file."""
        with ExitStack() as stack:
            file: Any = BytesIO(self._source) if isinstance(self._source, bytes) else None
            if isinstance(self._source, StoredFile):
                with suppress(OSError):
                    file = stack.enter_context(self._source.open())
            yield file

    def read_index(self) -> Packets | None:
        """Return what the container's index says, and expect it; None if it has none that lists every packet."""
        with self._second_file() as file:
            packets = packets_by_index(self._container, self.stream, file, self._movie)
        if packets is None or packets.cut:
            return packets
        self.expect(packets)
        try:
            for _ in islice(self.read_from(0), _LOOKED_AT):  # some are put together from several of the index
                pass
        except NotAsListedError:
            return None
        return packets

    def read_all(self) -> Packets:
        """Read every packet, keep none, and expect the same from now on."""
        if self._at != 0:
            self._reopen()
        packets = packets_by_reading(self._container, self.stream, self._look_for_turn)
        self.expect(packets)
        self._at = len(packets)
        return packets

    def stop_seeking(self) -> bool:
        """Read from the first packet on from now; tells whether it did otherwise until now. In some files (MPEG program
        streams of small pictures) the packets after a seek are put together otherwise than in a plain reading."""
        could, self._can_seek = self._can_seek, False
        return could

    def expect(self, packets: Packets) -> None:
        """Take these for the packets of the file."""
        self._packets = packets
        # as buffers: numbers out of an array itself take several times as long, for every packet that is read
        self._pos, self._size, self._pts = packets.pos.data, packets.size.data, packets.pts.data
        self._is_keyframe = packets.is_keyframe.data
        self._ticks_off: int | None = None if packets.from_index else 0

    def read_from(self, start: int) -> Iterator[tuple[int, Any]]:
        """Read packets from the one numbered `start` on, each with its number.

        Raises:
            NotAsListedError: a packet is another than the table says.
        """
        for packet in self._packets_before(start):
            number = self._at
            if number is None or not self._is_listed(packet, number):
                self._at = None
                raise NotAsListedError
            self._at = number + 1
            if number == 0:
                self._look_for_turn(packet)
            if number >= start:
                yield number, packet

    def _look_for_turn(self, first: Any) -> None:
        self._is_turned_inside = asks_for_turn(
            self.decoder.codec.canonical_name, self.decoder.extradata, memoryview(first)
        )

    def _packets_before(self, start: int) -> Iterator[Any]:
        """Go to packet `start`, or as near before it as the container lets; `_at` is where that is."""
        if start == self._at:
            return self._demux()
        targets = self._seek_targets(start) if self._can_seek and not self.needs_palette else []
        for target in targets:
            packets = self._demux_at(target)
            for packet in islice(packets, _TRIED_AFTER_SEEK):
                number = self._number_of(packet, start)
                if number is not None and number <= start:
                    self._at = number
                    return chain([packet], packets)
        if targets:
            self._can_seek = False
        if targets or self._at is None or self._at > start:
            self._reopen()
        return self._demux()

    def _demux(self) -> Iterator[Any]:
        return filter(attrgetter("size"), self._container.demux(self.stream))  # the last ones hold nothing

    def _demux_at(self, target: int) -> Iterator[Any]:
        from av.error import FFmpegError

        try:
            self._container.seek(target, stream=self.stream, unsupported_byte_offset=self._is_sought_by_byte())
        except FFmpegError:
            return iter(())
        return self._demux()

    def _is_sought_by_byte(self) -> bool:
        """Tell whether a seek by time would land nowhere near a keyframe."""
        return self._container.format.name in ("mpegts", "mpeg")

    def _seek_targets(self, number: int) -> list[int]:
        """Return where to seek for a packet, the most likely first."""
        packets, name = self._packets, self._container.format.name
        if self._is_sought_by_byte():
            if name == "mpeg":  # the first packet after a seek may have a rest of the one before stuck to it
                number = int(np.flatnonzero(packets.pos[:number] != UNKNOWN).max(initial=0))
            targets = [self._pos[number]]
        else:
            # Most demuxers look for a keyframe that can be shown at the time asked for. Where groups of pictures are
            # shorter than the delay of decoding, the next one can.
            pts, dts = self._pts[number], int(packets.dts[number])
            shown = pts if pts == UNKNOWN else pts + (self._ticks_off or 0)
            targets = [shown, dts] if self.says_times else [dts]
        return [target for target in targets if target != UNKNOWN]

    def _is_listed(self, packet: Any, number: int) -> bool:
        """Tell whether a packet is the one with this number in the table."""
        if number >= len(self._size) or packet.size != self._size[number]:
            return False
        pos, pts = packet.pos, packet.pts
        if pos is not None and UNKNOWN != self._pos[number] != pos:
            return False
        if not self.says_times:  # libav makes them up from the packets before
            return pos is not None
        if self._ticks_off is None and pts is not None:
            self._ticks_off = pts - self._pts[number]
        if self._packets.from_index and self._is_keyframe[number] and not packet.is_keyframe:
            return False
        return (UNKNOWN if pts is None else pts - self._ticks_off) == self._pts[number]

    def _number_of(self, packet: Any, expected: int) -> int | None:
        """Return which packet of the table this is, `expected` being the most likely; None if that is not certain."""
        if packet.pos is None and packet.pts is None:
            return None
        if self._is_listed(packet, expected):
            return expected
        alike = np.flatnonzero(self._packets.size == packet.size)
        listed = [number for number in alike.tolist() if self._is_listed(packet, number)]
        return listed[0] if len(listed) == 1 else None

    def _reopen(self) -> None:
        self.close()
        self._open()
        self.choose_stream()


@lru_cache(maxsize=1)
def _formats() -> str:
    """List the demuxers that read the file they are given and nothing else."""
    import av
    from av.format import ContainerFormat

    names = []
    for name in av.formats_available - _NAMING_OTHERS:
        with suppress(ValueError):  # a format that can be written alone
            names.append(ContainerFormat(name, "r").name)
    return ",".join(sorted(set(names)))


def why_not_opened(source: StoredFile | bytes, reason: str) -> str:
    """Say what is wrong with a file that libav refused with `reason`."""
    if isinstance(source, bytes):
        head = source[:16]
    else:
        try:
            with source.open() as file:
                head = file.read(16)
        except OSError as error:
            return error.strerror or str(error)
        except UnreadableError as error:
            return error.reason
    if not head:
        return "zero bytes"
    if head[4:8] == b"ftyp":
        return f"truncated: the index (moov) of the mp4 is missing ({reason})"
    if head.removeprefix(b"\xef\xbb\xbf").startswith(_PLAYLISTS):
        return "a playlist, which names other files; name those, or allow playlists"
    return f"not a video ({reason})"
