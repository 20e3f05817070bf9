"""Decodes the frames of a video by their index, reading only the groups of pictures that they need.

A table of the packets, without their payload (`fastvtp.data.video.packets`), gives the number of frames and the place
of each, so that a frame is reached by seeking to the keyframe before it. Every packet that is read is compared with the
table: a seek that lands elsewhere costs time, never another frame.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np

from fastvtp.data.locations import without_secrets
from fastvtp.data.storage.finding import StoredFile
from fastvtp.data.video.errors import VideoDecodeError
from fastvtp.data.video.frame_table import Frames, Memory, frames_by_decoding, frames_by_time
from fastvtp.data.video.packet_reader import NotAsListedError
from fastvtp.data.video.packets import Packets
from fastvtp.data.video.pictures import Turn, turn_of
from fastvtp.data.video.sample_reader import open_packets

_T = TypeVar("_T")
_Decoded = tuple[dict[int, Any], set[int]]
_READ_AT_ONCE = 16  # packets: reading and decoding by turns is slower, as each takes the other's place in the cache
_LONG = 4096  # packets from which on the table of a header is remembered: a shorter one is read again as fast
_PLAIN_LOOP = 4096  # packets, up to which all before damage are decoded to show it as a plain loop does
_EARLIER_STARTS = 3  # tried where what comes out is damaged

_log = logging.getLogger(__name__)
_memory = Memory()


class FrameReader:
    """The frames of a video's best stream, as PyAV hands them out.

    Args:
        source: what `fastvtp.data.storage.finding` found, or the bytes of a file.
        name: of errors.
        keeps_damaged: whether frames that are damaged are handed out, those that cannot be decoded at all as the frame
            shown before them; else they raise.

    Attributes:
        reader: of the packets, with `stream` and `decoder` of PyAV.
        frames: the table.
        damaged: indices of the damaged frames that were handed out.
        height, width: of a stored picture in pixels, as the container says.

    Raises:
        VideoDecodeError: the file is truncated, or its packets contradict its index.
        NotAsListedError: its packets change from one reading to the next.
    """

    def __init__(self, source: StoredFile | bytes, name: str, *, keeps_damaged: bool = False, playlists: bool = False):
        self._name, self._keeps_damaged = name, keeps_damaged
        key = None if isinstance(source, bytes) else source.key
        self._key = None if key is None else (*key, keeps_damaged)  # what is kept of a broken file is not all of it
        self.damaged: set[int] = set()
        self._failed: list[int] = []
        self._is_cut = False
        self.reader = open_packets(source, playlists=playlists)
        self.container = self.reader.container_format
        try:
            self.height, self.width = self.reader.height, self.reader.width
            self._undecoded: Any = self.reader.decoder
            self.frames = self._list_frames()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self.reader.close()

    @property
    def count(self) -> int:
        """Number of frames."""
        return self.frames.count

    @property
    def keyframes(self) -> np.ndarray:
        """Indices of the frames that decoding can start from, int64, ascending, as far as they are known."""
        return np.unique(self.frames.start_places)

    @property
    def times(self) -> np.ndarray | None:
        """When each is shown, in ticks; see `Frames`."""
        return self.frames.times

    @property
    def cut(self) -> str | None:
        """What is missing at the end, in one line; None where nothing is."""
        return self.frames.cut

    @property
    def turn(self) -> Turn:
        """How all become upright."""
        return self.frames.turn

    @property
    def tick(self) -> Fraction:
        """Seconds in a tick."""
        return self.reader.stream.time_base

    @property
    def codec(self) -> str:
        """Name of the codec, as libav has it."""
        return self.reader.decoder.codec.canonical_name

    @property
    def rate(self) -> Fraction | None:
        """Frames per second in the mean, as far as the container knows."""
        return self.reader.rate

    @property
    def stretch(self) -> Fraction | None:
        """How much wider than high pixels are said to be."""
        return self.reader.stretch

    def decode_all(self) -> int:
        """Decode every frame and keep none; returns their number."""
        return self._as_listed(lambda: sum(1 for _ in self._decode_from(0)))

    def decode(self, indices: list[int]) -> dict[int, Any]:
        """Decode the frames at `indices` (ascending, unique).

        Raises:
            VideoDecodeError: one of them cannot be decoded, or is damaged and damaged ones are not kept.
        """
        found, spoilt = self._as_listed(lambda: self._decode_listed(indices))
        for index in indices:
            if index not in found:
                raise VideoDecodeError(self._name, f"frame {index} of {self.frames.count} cannot be decoded")
            if index in spoilt and not self._keeps_damaged:
                raise VideoDecodeError(self._name, f"frame {index} of {self.frames.count} is damaged")
        if spoilt:
            _warn_once(f"{without_secrets(self._name)}: has damaged frames, which are shown")
        self.damaged |= spoilt
        return found

    def walk(self, indices: range) -> Iterator[Any]:
        """Decode the frames at consecutive indices, each in turn.

        Raises:
            VideoDecodeError: one of them cannot be decoded, or is damaged; those before it have come out.
        """
        at, listed_again = indices.start, False
        while at < indices.stop:
            try:
                for frame in self._walk_once(range(at, indices.stop)):
                    yield frame
                    at += 1
            except NotAsListedError:
                if self.reader.stop_seeking():
                    continue
                if listed_again:
                    raise
                self._list_again()
                listed_again = True

    # --- The table

    def _list_frames(self) -> Frames:
        if frames := _memory.recall(self._key):
            self.reader.expect(frames.packets)
            return frames
        packets = self.reader.read_index()
        try:
            frames = None if packets is None else self._frames_of(packets)
        except NotAsListedError:
            frames = None
        if frames is None:
            frames = self._frames_of(self.reader.read_all())
        self.frames = frames
        if frames.count:
            turn = self.reader.read_turn()
            turn = turn_of(self.decode([0])[0]) if turn is None else turn
            self.frames = frames = replace(frames, turn=turn, cut=self._cut(frames))
        packets = frames.packets
        if frames.is_counted or packets.is_ordered or not packets.from_index or len(packets) > _LONG:
            _memory.keep(self._key, frames)
        return frames

    def _cut(self, frames: Frames) -> str | None:
        """Say what is missing of a file that broke off; None where nothing is. All samples that the header of an mp4
        lists are there, or it would have been refused, unless damage is kept."""
        missing = None if frames.packets.from_index and not self._is_cut else self.reader.missing_bytes()
        if missing is None:
            return None
        promised = self.reader.promised_frames
        there = f"{frames.count} of about {promised}" if promised and promised > frames.count else str(frames.count)
        cut = f"ends after {there} frames, {missing[0]} of {missing[1]} bytes"
        _warn_once(f"{without_secrets(self._name)}: broke off, {cut}")
        return cut

    def _frames_of(self, packets: Packets) -> Frames:
        # The header of an mp4 gives an index entry for every sample: one that reaches past the end of the file, or a
        # packet cut short, is a download that broke off.
        if packets.cut:
            if not self._keeps_damaged:
                raise VideoDecodeError(self._name, f"truncated: the last {packets.cut} frames are cut off")
            packets, self._is_cut = packets.before_cut(), True
            self.reader.expect(packets)
        frames = None
        if (self.reader.says_times or packets.is_ordered) and not packets.may_leave_out(self.codec):
            frames = frames_by_time(packets, self.reader.decoder.has_b_frames and not packets.is_ordered)
        frames = frames or frames_by_decoding(packets, self._decode_from(0))
        return frames.from_first_packet() if self.reader.needs_palette else frames

    def _as_listed(self, decode: Callable[[], _T]) -> _T:
        """Return what `decode` does, once more without a seek, and after another look at all packets, where it met
        packets that are not those of the table."""
        with suppress(NotAsListedError):
            return decode()
        if self.reader.stop_seeking():
            with suppress(NotAsListedError):
                return decode()
        self._list_again()
        return decode()

    def _list_again(self) -> None:
        """List the frames by reading every packet, once the index turned out not to list those that are there."""
        promised, self.frames = self.frames, self._frames_of(self.reader.read_all())
        if promised.order is None or not np.array_equal(self.frames.place, promised.place):
            raise VideoDecodeError(self._name, "damaged (its index and its packets contradict each other)")

    # --- Decoding

    def _decode_listed(self, indices: list[int]) -> _Decoded:
        """Decode frames: those that come out by their index, and which of them are damaged."""
        frames = self.frames
        if frames.order is None:
            wanted, decoded = set(indices), enumerate(self._decode_from(0))
            kept = {index: frame for index, frame in islice(decoded, indices[-1] + 1) if index in wanted}
            return kept, {index for index, frame in kept.items() if frame.is_corrupt}
        groups: dict[int, list[int]] = {}
        for index in indices:
            groups.setdefault(frames.start_before(index), []).append(index)
        found: dict[int, Any] = {}
        spoilt: set[int] = set()
        for number, group in groups.items():
            decoded, damaged = self._decode_group(number, group)
            found |= decoded
            spoilt |= damaged
        return found, spoilt

    def _decode_group(self, number: int, indices: list[int]) -> _Decoded:
        """Decode the frames at `indices` (ascending) from a start on, as far as they come out.

        Some encoders call packets keyframes from which the picture only builds up: an earlier start is then taken.
        """
        back, thrifty = 1, not self.frames.is_counted
        while True:
            decoded = self._decode_from_start(number, indices, thrifty)
            if decoded is None or (decoded[1] and number and back < 1 << _EARLIER_STARTS):
                number, back = max(number - back, 0), 2 * back
                if decoded and self._keeps_damaged:  # what stands in for the damage depends on all that came before
                    thrifty, is_near = False, self.frames.starts[number] < _PLAIN_LOOP
                    number = 0 if is_near else number
            elif thrifty and (len(decoded[0]) < len(indices) or (decoded[1] and self._keeps_damaged)):
                thrifty = False
            else:
                return decoded

    def _decode_from_start(self, number: int, indices: list[int], thrifty: bool) -> _Decoded | None:
        """Return None if that start is none, because its own frame does not come out.

        thrifty: each packet is taken to hold just the frame it is listed with, and no more is decoded than needed.
        """
        frames, found = self.frames, {}
        assert frames.order is not None
        start, numbers = int(frames.starts[number]), frames.order[indices]
        needed = {start, *numbers.tolist()} if thrifty else None
        first = start_place = int(frames.place[start]) if number else -1
        # Shown last, but perhaps not decoded last: what went into it comes out later still.
        end = indices[-1] + int(np.flatnonzero(frames.order[indices[-1] :] <= numbers.max())[-1])
        corrupt, keys, waiting, before, latest = [], [], list(reversed(indices)), None, -1
        self._failed.clear()
        for frame in self._decode_from(start, needed):
            index = -1 if frame.pts is None else int(frames.place[frame.pts])
            if index == first:
                if not self._is_start(frame):
                    return None
                first = -1
            elif index > first >= 0:
                return None
            if index < start_place:
                continue
            if index < latest:
                raise VideoDecodeError(self._name, "its frames come in another order than its times say")
            latest = index
            if frame.is_corrupt:
                corrupt.append(frame.pts)
            if frame.key_frame:
                keys.append(frame.pts)
            if index in indices:
                found[index] = frame
            while self._keeps_damaged and not thrifty and waiting and waiting[-1] <= index:
                missed = waiting.pop()
                if missed != index and missed not in found and before is not None:
                    found[missed] = before
            before = frame
            if index >= end:
                break
        if first >= 0:
            return None
        for missed in waiting if self._keeps_damaged and not thrifty and before is not None else ():
            found.setdefault(missed, before)
        return found, frames.spoilt(found, corrupt + self._failed, keys)

    def _is_start(self, frame: Any) -> bool:
        """Tell whether the frame of what counts as a start is one: a container that calls all packets keyframes may
        just not know."""
        doubtful = self.frames.packets.is_keyframe.all() and not self.reader.decoder.codec.intra_only
        return frame.key_frame or not doubtful

    def _walk_once(self, indices: range) -> Iterator[Any]:
        expected, before = indices.start, None
        for index, frame in self._numbered_from(expected):
            while index > expected and self._keeps_damaged and before is not None and expected < indices.stop:
                self.damaged.add(expected)
                yield before
                expected += 1
            if expected == indices.stop:
                return
            if index > expected or (index == expected and frame.is_corrupt and not self._keeps_damaged):
                break
            if index == expected:
                self.damaged.update({index} if frame.is_corrupt else ())
                yield frame
                expected += 1
            if index >= 0:
                before = frame
            if expected == indices.stop:
                return
        raise VideoDecodeError(self._name, f"frame {expected} of {self.frames.count} cannot be decoded")

    def _numbered_from(self, first: int) -> Iterator[tuple[int, Any]]:
        """Decode from the last true start that is not shown after the frame at `first`: each frame with its index."""
        frames = self.frames
        if frames.order is None:
            return enumerate(self._decode_from(0))
        number, back = frames.start_before(first), 1
        while True:
            start = int(frames.starts[number])
            numbered = (
                (-1 if frame.pts is None else int(frames.place[frame.pts]), frame) for frame in self._decode_from(start)
            )
            if number == 0:
                return numbered
            own = int(frames.place[start])
            reached = next((pair for pair in numbered if pair[0] >= own), None)
            if reached is not None and reached[0] == own and self._is_start(reached[1]):
                return chain([reached], numbered)
            number, back = max(number - back, 0), 2 * back  # from that packet the picture only builds up

    def _decode_from(self, start: int, needed: Collection[int] | None = None) -> Iterator[Any]:
        """Decode from packet `start` on, in presentation order; a frame's `pts` is the number of its packet.

        Frames of other packets than those `needed` are left out where no other frame depends on them, and so is
        everything after the last of these.
        """
        last = math.inf if needed is None else max(needed)
        if self.reader.decoder is not self._undecoded:  # a flush loses the palette that came with the first packet
            self.reader.decoder.flush_buffers()
        packets, number = self.reader.read_from(start), start - 1
        while batch := list(islice(packets, int(min(last - number, _READ_AT_ONCE)))):
            decoder, self._undecoded = self.reader.decoder, None
            asked_for = None if decoder.name == "libdav1d" else needed
            for number, packet in batch:
                decoder.skip_frame = "DEFAULT" if asked_for is None or number in asked_for else "NONREF"
                packet.pts = number
                yield from self._decode_packet(number, packet)
        yield from self._decode_packet(number, None)

    def _decode_packet(self, number: int, packet: Any) -> list[Any]:
        from av.error import FFmpegError

        try:
            return self.reader.decoder.decode(packet)
        except FFmpegError as error:
            if not self._keeps_damaged:
                raise VideoDecodeError(self._name, f"damaged ({error.strerror}) in packet {number}") from None
            self._failed.append(number)
            return []


@lru_cache(maxsize=1 << 14)
def _warn_once(line: str) -> None:
    _log.warning("%s", line)
