"""The packets of a video stream as a table without their payload.

The header of an mp4 or mov gives the table at once, as does the index of an AVI whose codec has no other frames than
keyframes. For all other containers the packets are read one after the other, and forgotten: the memory is that of the
table, the time grows with the size of the file, as nothing in them says how many frames there are.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np

from fastvtp.data.video.mp4_index import SampleTable, sample_table

UNKNOWN = np.iinfo(np.int64).min
_AVI_CHUNK_HEADER = 8  # bytes, with which AVI's index begins a packet
_SPOT_CHECKS = 12
_NOTHING_CODED = 10  # bytes, as many as the header of a picture of MPEG-4 alone takes
_SHOWN_AS_DECODED = ("msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "h263", "flv1")
_MPEG4_PICTURE = b"\0\0\1\xb6"


@dataclass(frozen=True)
class Packets:
    """The packets of a stream that hold data, in the order they are decoded. Arrays have one element per packet.

    Attributes:
        pos, size: int64, place in the file and bytes; a place may be `UNKNOWN`.
        pts, dts: int64, in ticks of the stream's time base, or `UNKNOWN`. Where `from_index`, `pts` may be off by one
            number of ticks for all.
        is_keyframe: bool.
        is_hidden: bool, those that are decoded but not shown.
        cut: how many lie behind the end of the file.
        from_index: whether the container's index says all this, and no packet was looked at.
        first_cut: number of the first that does; None where all are there.
        is_ordered: whether `pts` tells the order, though not the container but the codec told it.
    """

    pos: np.ndarray
    size: np.ndarray
    pts: np.ndarray
    dts: np.ndarray
    is_keyframe: np.ndarray
    is_hidden: np.ndarray
    cut: int
    from_index: bool
    first_cut: int | None = None
    is_ordered: bool = False

    def __len__(self) -> int:
        return len(self.pos)

    def may_leave_out(self, codec: str) -> bool:
        """Tell whether packets may hold no picture: MPEG-4 video has such for frames that an encoder dropped."""
        return codec == "mpeg4" and self.size.min(initial=_NOTHING_CODED + 1) <= _NOTHING_CODED

    def before_cut(self) -> Packets:
        """Return those that stand before the first one that is cut off."""
        kept = slice(self.first_cut)
        columns = (self.pos, self.size, self.pts, self.dts, self.is_keyframe, self.is_hidden)
        return Packets(*(column[kept] for column in columns), cut=0, from_index=self.from_index)


def packets_by_index(container: Any, stream: Any, file: BinaryIO | None, movie: memoryview | None) -> Packets | None:
    """Take the table from the container's index; None where it has none that lists every packet with its times.

    Args:
        container, stream: of PyAV, as opened.
        file: the same file once more; None if it cannot be opened.
        movie: what `mp4_index.read_movie` read of an mp4 or mov.
    """
    name, codec = container.format.name, stream.codec_context.codec
    if name == "avi" and len(stream.index_entries) == stream.frames:
        if shows_as_decoded(codec):
            return _by_entries(container, stream, None)
        if file is not None and codec.canonical_name == "mpeg4":
            packets = _by_entries(container, stream, None)
            return packets and _with_mpeg4_order(file, packets)
    # VP8 hides frames, which only the packets tell
    if movie is None or codec.canonical_name == "vp8" or not len(stream.index_entries):
        return None
    table = sample_table(movie, stream.id)
    if table is None:
        return None
    return _by_header(container, stream, table) or _by_entries(container, stream, table)


def shows_as_decoded(codec: Any) -> bool:
    """Tell whether a codec of libav has no pictures that are shown in another order than they are decoded in."""
    return codec.intra_only or codec.canonical_name in _SHOWN_AS_DECODED


def _by_header(container: Any, stream: Any, table: SampleTable) -> Packets | None:
    """Trust the header where the edit list leaves it as it is and a few of libav's entries, which it has made of the
    same header, agree: asking for every one would make the time grow with the length of the video."""
    entries, count = stream.index_entries, len(table.pos)
    if not table.is_whole or table.dts is None or table.is_keyframe is None or len(entries) != count:
        return None
    dts = table.dts + (entries[0].timestamp - table.dts[0])
    for i in (*range(0, count, count // _SPOT_CHECKS + 1), count - 1):
        entry = entries[i]
        said = entry.timestamp, entry.pos, entry.size, entry.is_keyframe, entry.is_discard
        if said != (dts[i], table.pos[i], table.size[i], table.is_keyframe[i], False):
            return None
    return packets_of_table(table, dts, container.size)


def packets_of_table(table: SampleTable, dts: np.ndarray, end: int) -> Packets:
    """Return the packets of a table that has keyframes, whose decoding times are `dts`; `end` is the file's size."""
    assert table.is_keyframe is not None
    columns = table.pos, table.size, dts + table.offset, dts, table.is_keyframe, np.zeros(len(dts), bool)
    held = table.size > 0
    return _indexed(end, columns if held.all() else tuple(column[held] for column in columns))


def _by_entries(container: Any, stream: Any, table: SampleTable | None) -> Packets | None:
    """Take what libav made of the index, edit lists included; `table` adds how much later samples are shown."""
    rows = array("q")
    for entry in stream.index_entries:
        if entry.size:
            rows.extend((entry.pos, entry.size, entry.timestamp, entry.is_keyframe, entry.is_discard))
    pos, size, dts, is_keyframe, is_hidden = np.array(rows, np.int64).reshape(-1, 5).T
    if table is None:
        if len(pos) < len(stream.index_entries):
            return None
        pos, offset = pos + _AVI_CHUNK_HEADER, np.int64(0)
    else:
        held = np.flatnonzero(table.size > 0)
        held = held[np.argsort(table.pos[held], kind="stable")]
        known = table.pos[held]
        place = np.searchsorted(known, pos)
        if len(np.unique(known)) < len(known) or not np.isin(pos, known).all():
            return None
        offset = table.offset[held[place]]
    return _indexed(container.size, (pos, size, dts + offset, dts, is_keyframe.astype(bool), is_hidden.astype(bool)))


def _with_mpeg4_order(file: BinaryIO, packets: Packets) -> Packets | None:
    """Tell when the pictures of MPEG-4 video are shown from their kinds (ISO/IEC 14496-2, 6.2.5): those predicted both
    ways at once, all others after them. None where a packet does not hold just one picture."""
    shown, waiting = [], None
    for number, (pos, size) in enumerate(zip(packets.pos.tolist(), packets.size.tolist(), strict=True)):
        file.seek(pos)
        data = file.read(size)
        at = data.find(_MPEG4_PICTURE) + len(_MPEG4_PICTURE)
        if len(data) < size or data.count(_MPEG4_PICTURE) != 1 or at >= size:
            return None
        if data[at] >> 6 == 2:
            shown.append(number)
        else:
            shown += [] if waiting is None else [waiting]
            waiting = number
    pts = np.empty_like(packets.dts)
    pts[shown if waiting is None else [*shown, waiting]] = packets.dts
    return replace(packets, pts=pts, is_ordered=True)


def _indexed(end: int, columns: tuple[np.ndarray, ...]) -> Packets:
    cut = np.flatnonzero(columns[0] + columns[1] > end)
    return Packets(*columns, cut=len(cut), from_index=True, first_cut=int(cut[0]) if len(cut) else None)


def packets_by_reading(container: Any, stream: Any, look_at_first: Callable[[Any], None]) -> Packets:
    """Read the packets of a container that is at its start, and keep none of them; `look_at_first` sees the first."""
    rows, is_vp8 = array("q"), stream.codec_context.codec.canonical_name == "vp8"
    for packet in container.demux(stream):
        if packet.size:
            if not rows:
                look_at_first(packet)
            is_hidden = packet.is_discard or (is_vp8 and _vp8_hides(packet))
            times = (UNKNOWN if value is None else value for value in (packet.pos, packet.pts, packet.dts))
            rows.extend((packet.size, packet.is_keyframe, is_hidden, *times))
    size, is_keyframe, is_hidden, pos, pts, dts = np.array(rows, np.int64).reshape(-1, 6).T
    columns = pos, size, pts, dts, is_keyframe.astype(bool), is_hidden.astype(bool)
    # What a fragment of an mp4 lists is known to be missing; other indices are made while reading.
    end, entries = container.size, stream.index_entries if container.format.name.startswith("mov,") else ()
    cut = sum(entry.pos + entry.size > end for entry in entries)
    first_cut = int(np.sum(pos + size <= end)) if cut else None
    return Packets(*columns, cut=cut, from_index=False, first_cut=first_cut)


def _vp8_hides(packet: Any) -> bool:
    """Read `show_frame` (RFC 6386, section 9.1): reference frames that are not shown are packets of their own."""
    return not memoryview(packet)[0] & 0x10
