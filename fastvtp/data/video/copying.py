"""Cutting frames out of a video without decoding them: packets are copied as they are, from a keyframe on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastvtp.data.video.decoding import Video
from fastvtp.data.video.errors import VideoDecodeError
from fastvtp.data.video.frame_reader import FrameReader
from fastvtp.data.video.frame_table import Frames
from fastvtp.data.video.packet_reader import NotAsListedError
from fastvtp.data.video.packets import UNKNOWN
from fastvtp.errors import UserError

_STARTS_TRIED = 4
_NEAR = 1e-6  # seconds


class NotCopiedError(UserError):
    """Frames that cannot be cut out of a video by copying; the message says why, without a name."""


@dataclass(frozen=True)
class CopiedClip:
    """What a copy holds, of which the frames that were asked for are a part.

    Attributes:
        frames: how many it shows.
        first, stop: the frames that were asked for are those from `first` to before `stop` of them.
        start, end: the part of the source that it shows, seconds from the source's first frame. What an edit list hides
            there lies before 0.
    """

    frames: int
    first: int
    stop: int
    start: float
    end: float

    def span(self) -> dict[str, int]:
        """Return the fields of a line that show the frames asked for alone; none where there are no others."""
        fields = {"start_frame": self.first} if self.first else {}
        return fields | ({"end_frame": self.stop} if self.stop < self.frames else {})


@dataclass(frozen=True)
class _Part:
    """Packets to be copied: their numbers, when each is shown, and how many of them before the frames asked for."""

    numbers: np.ndarray
    times: np.ndarray
    before: int


def copy_frames(video: Video, frames: range, path: Path) -> CopiedClip:
    """Write an mp4 of the packets that hold consecutive frames of a video, with its index in front and without sound.

    It begins with the keyframe at or before the first of them, and also holds what must be decoded to show the last.
    Times between frames, rotation, shape of pixels and colours are those of the source. Pictures that are shown before
    that keyframe and stand behind it, as in open groups of pictures, are left out. Three frames are decoded from the
    copy and from the video, the first and last ones and the last one of the first group of pictures: where they differ,
    or the times do, or a plain decoder would begin later, a few earlier keyframes are tried.

    Raises:
        NotCopiedError: mp4 cannot hold the codec; the packets do not say when each frame is shown; the copy shows other
            frames.
        VideoDecodeError: a frame that is compared cannot be decoded in the source.
        OSError: there is no room to write, or no right to.
    """
    reader = video.frame_reader
    if reader is None:
        raise NotCopiedError("a folder of pictures is no file that could be copied")
    listed = reader.frames
    if listed.order is None or listed.times is None:
        raise NotCopiedError("its packets do not say when each of its frames is shown")
    number, back, why = listed.start_before(frames.start), 1, ""
    for _ in range(_STARTS_TRIED):
        part = _part_of(listed, frames, max(number, 0))
        _write(reader, part, path)
        copied, why = _compared(video, frames, part, path)
        if copied is not None:
            return copied
        if number <= 0:
            break
        number, back = max(number - back, 0), 2 * back
    raise NotCopiedError(f"a copy of its packets shows other frames: {why}")


def _part_of(listed: Frames, frames: range, start: int) -> _Part:
    packets, order = listed.packets, listed.order
    assert order is not None
    first, shown = int(listed.starts[start]), packets.is_hidden | (listed.place >= 0)
    times = packets.pts.copy()
    times[order] = listed.times  # which not every container says of its packets

    def until(stop: int) -> np.ndarray:
        numbers = np.arange(first, order[frames.start : stop].max() + 1)
        # pictures that come behind a keyframe and are shown before it need the frames before it
        return numbers[shown[numbers] & (times[numbers] >= (times[first] if start else UNKNOWN))]

    numbers = until(frames.stop)
    if len(numbers) > len(frames) and frames.stop < listed.count:
        numbers = until(frames.stop + 1)  # the frame behind, so that the last one is shown for as long as in the source
    return _Part(numbers, times[numbers], int(np.sum(times[numbers] < times[order[frames.start]])))


def _write(reader: FrameReader, part: _Part, path: Path) -> None:
    """Write packets, and once more without a seek where one led to others."""
    with suppress(NotAsListedError):
        _write_once(reader, part, path)
        return
    try:
        reader.reader.stop_seeking()
        _write_once(reader, part, path)
    except NotAsListedError:
        raise NotCopiedError("its packets change from one reading to the next") from None


def _write_once(reader: FrameReader, part: _Part, path: Path) -> None:
    import av

    source, pts = reader.reader, part.times - part.times.min()
    # Each is decoded in its turn, as late as the one that is shown soonest after it is decoded lets: what containers
    # say of this is missing here and there, and may lead over a cut.
    turns = np.sort(pts)
    dts = turns - (turns - pts).max()
    lengths = dict(zip(turns.tolist(), np.diff(turns).tolist(), strict=False))
    usual = int(np.median(np.diff(turns))) if len(turns) > 1 else 1
    with av.open(str(path), "w", "mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        try:
            stream: Any = container.add_stream_from_template(source.stream, opaque=True)
        except ValueError:
            raise NotCopiedError(f"mp4 cannot hold its codec, {reader.codec}") from None
        starts = set(reader.frames.starts.tolist())
        for (number, packet), shown, decoded in zip(_packets(reader, part), pts.tolist(), dts.tolist(), strict=True):
            packet.time_base, packet.pts, packet.dts = source.stream.time_base, shown, decoded
            packet.duration, packet.is_keyframe = lengths.get(shown, usual), number in starts
            packet.stream = stream
            container.mux(packet)


def _packets(reader: FrameReader, part: _Part) -> Iterator[tuple[int, Any]]:
    wanted, last = set(part.numbers.tolist()), int(part.numbers[-1])
    for number, packet in reader.reader.read_from(int(part.numbers[0])):
        if number in wanted:
            yield number, packet
        if number == last:
            return


def _compared(video: Video, frames: range, part: _Part, path: Path) -> tuple[CopiedClip | None, str]:
    """Compare a copy with its source; returns what it is, or None and what differs."""
    first, stop = part.before, part.before + len(frames)
    try:
        with Video(path) as copy:
            if copy.num_frames != len(part.numbers):
                return None, f"{copy.num_frames} of {len(part.numbers)}"
            times, own = copy.seconds, video.seconds
            moved = float(own[frames.start] - times[first])
            if np.abs(times[first:stop] + moved - own[frames.start : frames.stop]).max() > _NEAR:
                return None, "at other times"
            if copy.size != video.size:
                return None, "of another size"
            for index in _looked_at(video, frames):
                wanted = video.read([index])
                if not np.array_equal(copy.read([index - frames.start + first]), wanted):
                    return None, f"frame {index} is another picture"
            behind = int(np.searchsorted(own, moved + times[-1] + _NEAR))
            end = float(own[behind]) if behind < len(own) else video.duration
        if not _shows_its_first(path):
            return None, "its picture is whole later than at its beginning"
    except VideoDecodeError as error:
        if error.path != str(path):
            raise
        return None, error.reason
    return CopiedClip(len(part.numbers), first, stop, round(moved, 6), round(end, 6)), ""


def _shows_its_first(path: Path) -> bool:
    """Tell whether a plain loop of libav hands out the first frame of a copy, too."""
    import av

    with av.open(str(path)) as container:
        first = None
        for packet in container.demux(video=0):
            first = packet.pts if first is None else first
            for frame in packet.decode():
                return frame.pts is not None and frame.pts <= first
    return False


def _looked_at(video: Video, frames: range) -> list[int]:
    """Return the first and last frames, and the last one that follows from the first keyframe alone."""
    keys = video.keyframes
    later = keys[(keys > frames.start) & (keys < frames.stop)]
    return sorted({frames.start, (int(later[0]) if len(later) else frames.stop) - 1, frames.stop - 1})
