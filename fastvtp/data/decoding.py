"""Frame-exact video decoding with PyAV, for any codec libav knows, which decodes only the groups of pictures it needs.

A frame's index is its place in presentation order, the order in which a plain decoding loop hands frames out. The
packets of a clip are read once and kept (a clip is far smaller coded than decoded); their presentation times give the
number of frames and the place of each, so that a frame is reached from the keyframe before it, not from the start.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from operator import lt
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvtp.errors import UserError

if TYPE_CHECKING:
    from av import VideoFrame


_FINE_TICK, _LEAST_NEARNESS = Fraction(1, 1000), Fraction(1, 2_000_000)  # seconds


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

    Args:
        source: a path, or the bytes of a file.

    Attributes:
        num_frames: frames that can be asked for. A Matroska or MPEG-TS file that broke off, which has no index to tell,
            counts those that are there.

    Raises:
        VideoDecodeError: the file is missing, empty, truncated, not a video or without a video stream.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes):
        import av
        from av.stream import Disposition
        from av.video.reformatter import VideoReformatter

        self._name = "<bytes>" if isinstance(source, bytes) else os.fspath(source)
        self._reformatter = VideoReformatter()
        with self._errors_named(opening=source):
            file = BytesIO(source) if isinstance(source, bytes) else os.fspath(source)
            self._container: Any = av.open(file, metadata_errors="replace")
        try:
            with self._errors_named():
                self._stream: Any = self._container.streams.best("video")
                if self._stream is None or self._stream.disposition & Disposition.attached_pic:
                    raise VideoDecodeError(self._name, "no video stream")
                self._decoder: Any = self._stream.codec_context
                if self._decoder is None:
                    raise VideoDecodeError(self._name, "no decoder for its video codec")
                self._decoder.thread_count = 1  # one clip per worker process: more threads only add start-up cost
                self._read_packets()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

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
        fps = float(self._stream.average_rate or 0)
        codec, pix_fmt = self._decoder.codec.canonical_name, frame.format.name
        return VideoInfo(self.num_frames, height, width, fps, codec, pix_fmt, 90 * turns)

    def decode_all(self) -> int:
        """Decode every frame and keep none; returns their number.

        Raises:
            VideoDecodeError: the video is damaged somewhere.
        """
        with self._errors_named():
            return sum(1 for _ in self._decode_packets(0))

    def frames_within(self, start: float | None, end: float | None) -> range:
        """Return the indices of the frames shown from `start` to before `end`, seconds from the first frame.

        A frame belongs to the span where its presentation time does: start <= time < end, so that spans that touch
        share no frame and lose none. Times are what the container says, at a variable rate too. It says them in ticks
        of its clock: a bound within half a tick of a frame (half a millisecond in Matroska and WebM) is at that frame,
        for ticks of a millisecond at most; coarser ones are those of the frames themselves, and exact. The least such
        distance is half a microsecond.

        start: None, from the first frame on. end: None, to the last frame. The range is empty where no frame is shown
        in between.

        Raises:
            VideoDecodeError: the file says neither when its frames are shown nor how many a second.
        """
        ticks, tick = self._timeline()
        nearness = max(tick / 2 if tick <= _FINE_TICK else 0, _LEAST_NEARNESS)

        def first_from(seconds: float) -> int:
            return bisect_left(ticks, (Fraction(seconds) - nearness) / tick)

        return range(0 if start is None else first_from(start), len(ticks) if end is None else first_from(end))

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last, which counts as long as the others are in the mean.

        Raises VideoDecodeError as `frames_within` does.
        """
        ticks, tick = self._timeline()
        if len(ticks) > 1:
            return float(ticks[-1] * tick * len(ticks) / (len(ticks) - 1))
        return float(1 / self._stream.average_rate) if self._stream.average_rate else 0.0

    def _timeline(self) -> tuple[Sequence[int], Fraction]:
        """Return when each frame is shown, in ticks from the first one, and seconds in a tick."""
        times = [time for time in self._shown if time is not None]
        if len(times) == self.num_frames and all(map(lt, times, times[1:])):
            return [time - times[0] for time in times], self._stream.time_base
        # AVI with B-frames: libav's times are out of order, but the frames evenly spaced
        if not self._stream.average_rate:
            raise VideoDecodeError(self._name, "says neither when its frames are shown nor how many a second")
        return range(self.num_frames), 1 / self._stream.average_rate

    def _read_packets(self) -> None:
        self._packets: list[Any] = [packet for packet in self._container.demux(self._stream) if packet.size]
        # The header of an mp4 gives an index entry for every sample: one that reaches past the end of the file, or a
        # packet cut short, is a download that broke off.
        end = self._container.size
        cut = sum(entry.pos + entry.size > end for entry in self._stream.index_entries)
        cut = cut or sum(packet.is_corrupt for packet in self._packets)
        if cut:
            raise VideoDecodeError(self._name, f"truncated: the last {cut} frames are cut off")

        keyframes = ((p.pts, i) for i, p in enumerate(self._packets) if p.is_keyframe and p.pts is not None)
        self._keyframes: list[tuple[int, int]] = sorted(keyframes)
        self._pts: list[int] = []
        if self._packet_times_are_frame_times():
            self._pts = sorted(packet.pts for packet in self._packets if not packet.is_discard)
            self._shown: list[int | None] = [*self._pts]
        else:
            self._shown = [frame.pts for frame in self._decode_packets(0)]
        self.num_frames = len(self._shown)
        if self.num_frames == 0:
            raise VideoDecodeError(self._name, "no frames")

    def _packet_times_are_frame_times(self) -> bool:
        """Tell whether each packet holds one frame and that frame's presentation time; if not, frames must be
        counted."""
        times = [packet.pts for packet in self._packets]
        if not times or None in times or len(set(times)) < len(times):
            return False
        if self._decoder.codec.canonical_name == "vp8":  # hidden reference frames travel as packets of their own
            return False
        if self._container.format.name == "avi" and not all(packet.is_keyframe for packet in self._packets):
            return False  # AVI stores no presentation times, and what libav makes up ignores B-frames
        # Packets shown before the first keyframe cannot be decoded, and a plain loop never shows them.
        return bool(self._keyframes) and self._keyframes[0] == (min(times), 0)

    def _decode(self, indices: list[int]) -> dict[int, VideoFrame]:
        """Decode the frames at `indices` (ascending, unique)."""
        found = self._decode_by_time(indices) if self._pts else self._decode_by_counting(indices)
        if missing := [index for index in indices if index not in found]:
            raise VideoDecodeError(self._name, f"frame {missing[0]} of {self.num_frames} cannot be decoded")
        return found

    def _decode_by_counting(self, indices: list[int]) -> dict[int, VideoFrame]:
        wanted, found = set(indices), {}
        for index, frame in enumerate(self._decode_packets(0)):
            if index in wanted:
                found[index] = frame
            if index == indices[-1]:
                break
        return found

    def _decode_by_time(self, indices: list[int]) -> dict[int, VideoFrame]:
        groups: dict[
            int, dict[int, int]
        ] = {}  # position of a keyframe's packet -> {time: index} of what follows from it
        for index in indices:
            time = self._pts[index]
            _, keyframe = self._keyframes[bisect_right(self._keyframes, (time, len(self._packets))) - 1]
            groups.setdefault(keyframe, {})[time] = index
        found = {}
        for keyframe, wanted in groups.items():
            last = max(wanted)
            for frame in self._decode_packets(keyframe, wanted):
                if frame.pts in wanted:
                    found[wanted[frame.pts]] = frame
                if frame.pts == last:
                    break
        return found

    def _decode_packets(self, start: int, wanted: Collection[int] | None = None) -> Iterator[Any]:
        """Decode from packet `start` on, in presentation order; leave out frames not `wanted` that no other needs."""
        self._decoder.flush_buffers()
        for packet in self._packets[start:]:
            if wanted is not None:
                self._decoder.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            yield from self._decoder.decode(packet)
        yield from self._decoder.decode(None)

    def _to_rgb(self, frame: Any) -> np.ndarray:
        # One thread and one shared conversion context: PyAV's per-frame default spends ten times as long on set-up.
        return self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()

    @contextmanager
    def _errors_named(self, opening: Any = None) -> Iterator[None]:
        from av.error import FFmpegError

        try:
            yield
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
