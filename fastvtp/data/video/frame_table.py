"""The frames of a video in the order they are shown, told from the packets of its stream, and a memory of them."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastvtp.data.storage.last_used import LastUsed
from fastvtp.data.video.packets import UNKNOWN, Packets
from fastvtp.data.video.pictures import Turn

_MOST_REMEMBERED = 1 << 19  # packets, of 60 bytes each: 30 MB per process


@dataclass(frozen=True)
class Frames:
    """The frames of a video in the order they are shown.

    Attributes:
        packets: of the stream.
        order: int64 `[F]`, number of the packet that each frame comes from; None where a packet may hold several: the
            frames can then only be counted from the start.
        place: int64, of each packet, the index of its frame; -1 for those without one.
        starts: int64, numbers of the packets that decoding can start from, in the order they are shown.
        start_places: int64, for each of them how many frames are shown before it.
        count: number of frames, F.
        is_counted: whether they were decoded to know them: what a packet holds is uncertain then, only what comes out.
        times: int64 `[F]`, rising, when each is shown in ticks of the stream's time base; None if that is not known.
        turn: how they become upright.
        cut: what is missing at the end, in one line; None where nothing is.
    """

    packets: Packets
    order: np.ndarray | None
    place: np.ndarray
    starts: np.ndarray
    start_places: np.ndarray
    count: int
    is_counted: bool
    times: np.ndarray | None
    turn: Turn = field(default_factory=Turn)
    cut: str | None = None

    def start_before(self, index: int) -> int:
        """Return the last of `starts` that is not shown after the frame at `index`."""
        return int(np.searchsorted(self.start_places, index, side="right")) - 1

    def spoilt(self, found: Mapping[int, Any], corrupt: Collection[int], keys: Collection[int]) -> set[int]:
        """Return which frames were decoded after a damaged packet, and not after a later keyframe; also those found
        under the index of another.

        Args:
            found: frames of libav by their index, `pts` being the number of the packet of each.
            corrupt, keys: numbers of the packets whose frames are damaged, and are keyframes.
        """
        spoilt = set()
        assert self.order is not None
        for index, frame in found.items():
            number = int(self.order[index])
            latest = max((packet for packet in corrupt if packet <= number), default=-1)
            mended = (key for key in keys if latest < key <= number and self.place[key] <= index)
            if frame.pts != number or (latest >= 0 and next(mended, None) is None):
                spoilt.add(index)
        return spoilt

    def from_first_packet(self) -> Frames:
        """Return the same frames, with the first packet as the only start."""
        nothing = np.zeros(1, np.int64)
        return replace(self, starts=nothing, start_places=nothing)


def frames_by_time(packets: Packets, has_b_frames: bool) -> Frames | None:
    """Tell the frames from the presentation times of the packets; None where these cannot be trusted.

    Each packet has to hold one frame and the time of that frame.
    """
    pts, shown = packets.pts, np.flatnonzero(~packets.is_hidden)
    first = pts.min(initial=np.iinfo(np.int64).max)
    if not len(shown) or first == UNKNOWN:
        return None
    # Packets shown before the first keyframe cannot be decoded, and a plain loop never shows them.
    if not packets.is_keyframe[0] or pts[0] != first:
        return None
    # Where recordings are joined, times may jump back, and the frames of both are not to mingle.
    keys, latest = np.flatnonzero(packets.is_keyframe[1:]), np.maximum.accumulate(pts)
    if (latest[keys] >= pts[keys + 1]).any() or not (packets.from_index or _is_rising(packets.dts)):
        return None
    order = shown[np.argsort(pts[shown], kind="stable")]
    times = pts[order]
    if not (np.diff(times) > 0).all():
        return None
    if has_b_frames and not packets.is_keyframe.all() and np.array_equal(order, shown):
        return None  # times of decoding, written as if they were those of presentation
    place = np.full(len(packets), -1)
    place[order] = np.arange(len(order))
    starts = np.flatnonzero(packets.is_keyframe)
    starts = starts[np.argsort(pts[starts], kind="stable")]
    places = place[starts] if len(shown) == len(place) else np.searchsorted(times, pts[starts])
    return Frames(packets, order, place, starts, places, len(order), False, times)


def _is_rising(times: np.ndarray) -> bool:
    return bool((np.diff(times[times != UNKNOWN]) >= 0).all())


def frames_by_decoding(packets: Packets, decoded: Iterable[Any]) -> Frames:
    """Tell the frames from those that came out of the decoder, `pts` being the number of the packet of each."""
    numbers, is_keyframe = array("q"), bytearray(len(packets))
    for frame in decoded:
        numbers.append(-1 if frame.pts is None else frame.pts)
        if frame.key_frame and numbers[-1] >= 0 and packets.is_keyframe[numbers[-1]]:
            is_keyframe[numbers[-1]] = True
    order, place = np.array(numbers, np.int64), np.full(len(packets), -1)
    nothing = np.zeros(1, np.int64)
    if order.min(initial=0) < 0 or len(np.unique(order)) < len(order):
        return Frames(packets, None, place, nothing, nothing, len(order), True, None)
    place[order] = np.arange(len(order))
    # From the first packet on, whatever it is, as a plain loop does; then from what both container and decoder call a
    # keyframe.
    starts = order[np.frombuffer(is_keyframe, bool)[order]]
    starts, places = np.append(nothing, starts), np.append(nothing, place[starts])
    return Frames(packets, order, place, starts, places, len(order), True, _rising_times(packets, order))


def _rising_times(packets: Packets, order: np.ndarray) -> np.ndarray | None:
    """Return the times of frames whose packets do not all say when they are shown: each is shown for as long as one is
    decoded."""
    for times in (packets.pts[order], np.sort(packets.dts[order])):
        if len(times) and times.min() != UNKNOWN and (np.diff(times) > 0).all():
            return times
    return None


class Memory:
    """What reading or decoding a whole file has told about its frames, kept for the files used last.

    Each is known by the `key` of its `StoredFile` and whether damage is kept.
    """

    def __init__(self, most_packets: int = _MOST_REMEMBERED):
        self._most = most_packets
        self._frames = LastUsed[tuple[Any, ...], Frames](most_packets, lambda frames: len(frames.packets))

    def recall(self, key: tuple[Any, ...] | None) -> Frames | None:
        """Return the frames of a file that was used lately."""
        return None if key is None else self._frames.get(key)

    def keep(self, key: tuple[Any, ...] | None, frames: Frames) -> None:
        """Remember the frames of a file, and forget those used longest ago."""
        if key is not None and len(frames.packets) <= self._most:
            self._frames.keep(key, frames)
