"""Frame-exact video decoding with PyAV, for any codec libav knows, which reads only the groups of pictures it needs.

A frame's index is its place in presentation order, the order in which a plain decoding loop hands frames out. A table
of the packets, without their payload, gives the number of frames and the place of each (`fastvtp.data.packets`), so
that a frame is reached by seeking to the keyframe before it. Every packet that is read is compared with the table: a
seek that lands elsewhere costs time, never another frame.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastvtp.data.frame_table import Frames, Memory, frames_by_decoding, frames_by_time
from fastvtp.data.packet_reader import NotAsListedError, NoVideoStreamError, PacketReader
from fastvtp.data.packets import Packets
from fastvtp.errors import UserError

if TYPE_CHECKING:
    from av import VideoFrame

_T = TypeVar("_T")
_FINE_TICK, _NEARNESS = Fraction(1, 1000), Fraction(1, 2_000_000)  # seconds
_READ_AT_ONCE = 16  # packets: reading and decoding by turns is slower, as each takes the other's place in the cache
_LONG = 4096  # packets from which on the table of a header is remembered: a shorter one is read again as fast

_memory = Memory()


class VideoDecodeError(UserError):
    """A file that cannot be decoded; `path` names it and `reason` says why, each fit for one line."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        frames: number of frames.
        height, width: size of the upright picture in pixels.
        fps: mean rate in frames per second.
        codec, pix_fmt: as libav names them.
        rotation: counterclockwise turn (0, 90, 180 or 270 degrees) that brings the coded picture upright.
    """

    frames: int
    height: int
    width: int
    fps: float
    codec: str
    pix_fmt: str
    rotation: int


class Video:
    """An opened video; a context manager.

    What the header of an mp4 or mov says is enough to reach any frame: opening and reading take as long for a video of
    an hour as for one of a minute. All other containers do not say how many frames there are: their packets are read
    once, which takes as long as reading the file does, and where they do not say either when each frame is shown (AVI)
    all frames are decoded once. This is remembered for the files a process used last.

    Args:
        source: a path, or the bytes of a file.

    Attributes:
        num_frames: frames that can be asked for. A Matroska or MPEG-TS file that broke off, which has no index to tell,
            counts those that are there.

    Raises:
        VideoDecodeError: the file is missing, empty, truncated, not a video or without a video stream.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes):
        from av.video.reformatter import VideoReformatter

        self._source = source if isinstance(source, bytes) else os.fspath(source)
        self._name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
        self._reformatter = VideoReformatter()
        with self._errors_named(opening=self._source):
            self._reader = PacketReader(self._source)
        try:
            with self._errors_named():
                self._reader.choose_stream()
                self._undecoded: Any = self._reader.decoder
                self._frames = self._list_frames()
            self.num_frames = self._frames.count
            if self.num_frames == 0:
                raise VideoDecodeError(self._name, "no frames")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Decode frames by their index in presentation order, in any order, repeats allowed.

        Returns:
            uint8 `[T, H, W, 3]` RGB, upright (rotation metadata applied).

        Raises:
            IndexError: an index outside `[0, num_frames)`.
            VideoDecodeError: a frame asked for cannot be decoded.
        """
        wanted = [int(index) for index in indices]
        if not wanted or min(wanted) < 0 or max(wanted) >= self.num_frames:
            raise IndexError(f"{self._name}: expected frame indices in [0, {self.num_frames}), got {wanted}")
        with self._errors_named():
            frames = self._decode(sorted(set(wanted)))
            pixels = {index: self._to_rgb(frame) for index, frame in frames.items()}
        shapes = {rgb.shape for rgb in pixels.values()}
        if len(shapes) > 1:
            raise VideoDecodeError(self._name, f"the frame size changes inside the clip: {sorted(shapes)}")
        clip = np.stack([pixels[index] for index in wanted])
        turns = _quarter_turns(frames[wanted[0]])
        return np.ascontiguousarray(np.rot90(clip, turns, axes=(1, 2))) if turns else clip

    def info(self) -> VideoInfo:
        """Describe the video; decodes its first frame, which also proves that it can be decoded.

        Raises:
            VideoDecodeError: the first frame cannot be decoded.
        """
        with self._errors_named():
            frame = self._decode([0])[0]
        turns = _quarter_turns(frame)
        height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        fps = float(self._reader.stream.average_rate or 0)
        codec, pix_fmt = self._reader.decoder.codec.canonical_name, frame.format.name
        return VideoInfo(self.num_frames, height, width, fps, codec, pix_fmt, 90 * turns)

    def decode_all(self) -> int:
        """Decode every frame and keep none; returns their number.

        Raises:
            VideoDecodeError: the video is damaged somewhere.
        """
        with self._errors_named():
            return self._as_listed(lambda: sum(1 for _ in self._decode_from(0)))

    def frames_within(self, start: float | None, end: float | None) -> range:
        """Return the indices of the frames shown from `start` to before `end`, seconds from the first frame.

        A frame belongs to the span that its presentation time lies in, at a variable rate too: spans that touch share
        no frame and lose none. A container counts time in ticks. A bound within half a tick of a frame counts as that
        frame's time where ticks are a millisecond or less, so that a time rounded to milliseconds means what it says.
        Longer ticks are those of the frames themselves, and exact to half a microsecond.

        Args:
            start: None, from the first frame on.
            end: None, to the last frame.

        Returns:
            A range, empty where no frame is shown in between.

        Raises:
            VideoDecodeError: the file says neither when its frames are shown nor how many a second.
        """
        ticks, tick = self._timeline()
        near = max(tick / 2 if tick <= _FINE_TICK else Fraction(0), _NEARNESS)

        def first_from(seconds: float) -> int:
            return int(np.searchsorted(ticks, math.ceil((Fraction(seconds) - near) / tick)))

        return range(0 if start is None else first_from(start), len(ticks) if end is None else first_from(end))

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last, which counts as long as the others are in the mean.

        Raises:
            VideoDecodeError: the file says neither when its frames are shown nor how many a second.
        """
        ticks, tick = self._timeline()
        if len(ticks) > 1:
            return float(int(ticks[-1]) * tick * len(ticks) / (len(ticks) - 1))
        return float(1 / self._reader.stream.average_rate) if self._reader.stream.average_rate else 0.0

    def _timeline(self) -> tuple[np.ndarray, Fraction]:
        """Return when each frame is shown, in ticks from the first one, and seconds in a tick."""
        times = self._frames.times
        if times is not None:
            return times - times[0], self._reader.stream.time_base
        if not self._reader.stream.average_rate:
            raise VideoDecodeError(self._name, "says neither when its frames are shown nor how many a second")
        return np.arange(self.num_frames), 1 / self._reader.stream.average_rate

    def _list_frames(self) -> Frames:
        key = Memory.key(self._source)
        if frames := _memory.recall(key):
            self._reader.expect(frames.packets)
            return frames
        packets = self._reader.read_index()
        try:
            frames = None if packets is None else self._frames_of(packets)
        except NotAsListedError:
            frames = None
        if frames is None:
            frames = self._frames_of(self._reader.read_all())
        if frames.is_counted or not frames.packets.from_index or len(frames.packets) > _LONG:
            _memory.keep(key, frames)
        return frames

    def _frames_of(self, packets: Packets) -> Frames:
        # The header of an mp4 gives an index entry for every sample: one that reaches past the end of the file, or a
        # packet cut short, is a download that broke off.
        if packets.cut:
            raise VideoDecodeError(self._name, f"truncated: the last {packets.cut} frames are cut off")
        decoder = self._reader.decoder
        frames = frames_by_time(packets, decoder.has_b_frames) if self._reader.says_times else None
        frames = frames or frames_by_decoding(packets, self._decode_from(0))
        return frames.from_first_packet() if self._reader.needs_palette else frames

    def _as_listed(self, decode: Callable[[], _T]) -> _T:
        """Return what `decode` does, once more without a seek, and after another look at all packets, where it met
        packets that are not those of the table."""
        with suppress(NotAsListedError):
            return decode()
        if self._reader.stop_seeking():
            with suppress(NotAsListedError):
                return decode()
        self._list_again()
        return decode()

    def _list_again(self) -> None:
        """List the frames by reading every packet, once the index turned out not to list those that are there."""
        promised, self._frames = self._frames, self._frames_of(self._reader.read_all())
        if promised.order is None or not np.array_equal(self._frames.place, promised.place):
            raise VideoDecodeError(self._name, "damaged (its index and its packets contradict each other)")

    def _decode(self, indices: list[int]) -> dict[int, VideoFrame]:
        """Decode the frames at `indices` (ascending, unique)."""
        found = self._as_listed(lambda: self._decode_listed(indices))
        if missing := [index for index in indices if index not in found]:
            raise VideoDecodeError(self._name, f"frame {missing[0]} of {self.num_frames} cannot be decoded")
        return found

    def _decode_listed(self, indices: list[int]) -> dict[int, VideoFrame]:
        frames = self._frames
        if frames.order is None:
            wanted, decoded = set(indices), enumerate(self._decode_from(0))
            return {index: frame for index, frame in islice(decoded, indices[-1] + 1) if index in wanted}
        groups: dict[int, list[int]] = {}
        for index in indices:
            groups.setdefault(frames.start_before(index), []).append(index)
        found: dict[int, VideoFrame] = {}
        for number, group in groups.items():
            found |= self._decode_group(number, group)
        return found

    def _decode_group(self, number: int, indices: list[int]) -> dict[int, VideoFrame]:
        """Decode the frames at `indices` (ascending) from a start on, as far as they come out.

        Some encoders call packets keyframes from which the picture only builds up: an earlier start is then taken.
        """
        back, thrifty = 1, not self._frames.is_counted
        while True:
            found = self._decode_from_start(number, indices, thrifty)
            if found is None:
                number, back = max(number - back, 0), 2 * back
            elif thrifty and len(found) < len(indices):
                thrifty = False
            else:
                return found

    def _decode_from_start(self, number: int, indices: list[int], thrifty: bool) -> dict[int, VideoFrame] | None:
        """Return None if that start is none, because its own frame does not come out.

        thrifty: each packet is taken to hold just the frame it is listed with, and no more is decoded than needed.
        """
        frames, found = self._frames, {}
        assert frames.order is not None
        start = int(frames.starts[number])
        needed = {start, *frames.order[indices].tolist()} if thrifty else None
        first = int(frames.place[start]) if number else -1
        for frame in self._decode_from(start, needed):
            index = -1 if frame.pts is None else int(frames.place[frame.pts])
            if index == first:
                first = -1
            elif index > first >= 0:
                return None
            if index in indices:
                found[index] = frame
            if index >= indices[-1]:
                break
        return found if first < 0 else None

    def _decode_from(self, start: int, needed: Collection[int] | None = None) -> Iterator[Any]:
        """Decode from packet `start` on, in presentation order; a frame's `pts` is the number of its packet.

        Frames of other packets than those `needed` are left out where no other frame depends on them, and so is
        everything after the last of these.
        """
        last = math.inf if needed is None else max(needed)
        if self._reader.decoder is not self._undecoded:  # a flush loses the palette that came with the first packet
            self._reader.decoder.flush_buffers()
        packets, number = self._reader.read_from(start), start - 1
        while batch := list(islice(packets, int(min(last - number, _READ_AT_ONCE)))):
            decoder, self._undecoded = self._reader.decoder, None
            asked_for = None if decoder.name == "libdav1d" else needed
            for number, packet in batch:
                decoder.skip_frame = "DEFAULT" if asked_for is None or number in asked_for else "NONREF"
                packet.pts = number
                yield from decoder.decode(packet)
        yield from self._reader.decoder.decode(None)

    def _to_rgb(self, frame: Any) -> np.ndarray:
        # One thread and one shared conversion context: PyAV's per-frame default spends ten times as long on set-up.
        return self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()

    @contextmanager
    def _errors_named(self, opening: Any = None) -> Iterator[None]:
        from av.error import FFmpegError

        try:
            yield
        except NotAsListedError:
            raise VideoDecodeError(self._name, "its packets change from one reading to the next") from None
        except NoVideoStreamError as error:
            raise VideoDecodeError(self._name, str(error)) from None
        except (FFmpegError, OSError, IndexError) as error:  # IndexError: PyAV, on a stream that damage made up
            reason = getattr(error, "strerror", None) or str(error)
            if opening is None:
                reason = f"damaged ({reason})"
            elif not isinstance(error, FileNotFoundError):
                reason = _why_not_opened(opening, reason)
            raise VideoDecodeError(self._name, reason) from None


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Describe a video file; decodes its first frame.

    Raises:
        VideoDecodeError: the file cannot be decoded.
    """
    with Video(path) as video:
        return video.info()


def decode_frames(source: str | os.PathLike[str] | bytes, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Decode frames of a path or of a file's bytes: uint8 `[T, H, W, 3]` RGB, upright; see `Video.read`.

    Raises:
        IndexError: an index outside `[0, number of frames)`.
        VideoDecodeError: the file cannot be decoded.
    """
    with Video(source) as video:
        return video.read(indices)


def _quarter_turns(frame: Any) -> int:
    return round(frame.rotation / 90) % 4


def _why_not_opened(source: Any, reason: str) -> str:
    """Say what is wrong with a file that libav refused with `reason`."""
    if isinstance(source, bytes):
        head = source[:12]
    else:
        try:
            with open(source, "rb") as file:
                head = file.read(12)
        except OSError as error:
            return error.strerror or str(error)
    if not head:
        return "zero bytes"
    if head[4:8] == b"ftyp":
        return f"truncated: the index (moov) of the mp4 is missing ({reason})"
    return f"not a video ({reason})"
