"""What workers have to know of the records of a data set, in arrays: of a list of millions there is one copy in the
memory of a machine for all workers of a loader, see `fastvtp.data.workers.shared_slots.SharedObject`."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.timespans import FrameSpan, Span, TimeSpan

_WHOLE, _SECONDS, _FRAMES = range(3)


class Texts:
    """Texts, one after the other in one array of bytes."""

    def __init__(self, texts: Iterable[str]):
        content, ends = bytearray(), array("q", (0,))
        for text in texts:
            content += text.encode(errors="surrogatepass")
            ends.append(len(content))
        self._content, self._ends = np.frombuffer(bytes(content), np.uint8), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self._ends[index : index + 2]
        return self._content[start:end].tobytes().decode(errors="surrogatepass")


class ClipTable:
    """The videos and spans of records, by the number of the record."""

    def __init__(self, records: Sequence[VideoRecord]):
        spans = [record.span for record in records]
        self._videos = Texts(record.video for record in records)
        self._kinds = np.array([_kind(span) for span in spans], np.uint8)
        bounds = [(0, None) if span is None else (span.start, span.end) for span in spans]
        self._bounds = np.array([(start, np.nan if end is None else end) for start, end in bounds], np.float64)
        self._num_captions = np.array([len(record.captions) for record in records], np.int32)
        self._may_be_mirrored = np.array([record.may_be_mirrored for record in records], bool)

    def __len__(self) -> int:
        return len(self._videos)

    def video(self, index: int) -> str:
        """Return the location of the video of a record."""
        return self._videos[index]

    def span(self, index: int) -> Span | None:
        """Return what the record shows of it; None: all."""
        start, end = self._bounds[index].tolist()
        ends = None if np.isnan(end) else end
        if self._kinds[index] == _FRAMES:
            return FrameSpan(int(start), None if ends is None else int(ends))
        return TimeSpan(start, ends) if self._kinds[index] == _SECONDS else None

    def source(self, index: int) -> str:
        """Return `VideoRecord.source`."""
        return VideoRecord("", self.video(index), ("",)).within(self.span(index)).source

    def num_captions(self, index: int) -> int:
        """Return the number of captions of a record."""
        return int(self._num_captions[index])

    def may_be_mirrored(self, index: int) -> bool:
        """Return `VideoRecord.may_be_mirrored`."""
        return bool(self._may_be_mirrored[index])


def _kind(span: Span | None) -> int:
    return _WHOLE if span is None else _FRAMES if isinstance(span, FrameSpan) else _SECONDS
