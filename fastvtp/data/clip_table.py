"""What workers have to know of the records of a data set, in arrays: of a list of millions there is one copy in the
memory of a machine for all workers of a loader, see `fastvtp.data.workers.shared_slots.SharedObject`."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from fastvtp.data.records import RecordTable, VideoRecord
from fastvtp.data.text_column import Locations, narrow, texts_of
from fastvtp.data.timespans import FrameSpan, Span, TimeSpan

_WHOLE, _SECONDS, _FRAMES = range(3)


class ClipTable:
    """The videos and spans of records, by the number of the record."""

    def __init__(self, records: Sequence[VideoRecord]):
        kinds, bounds, num_captions, may_be_mirrored = array("B"), array("d"), array("q"), array("B")
        for record in records:
            span = record.span
            kinds.append(_WHOLE if span is None else _FRAMES if isinstance(span, FrameSpan) else _SECONDS)
            start, end = (0, None) if span is None else (span.start, span.end)
            bounds.extend((start, np.nan if end is None else end))
            num_captions.append(len(record.captions))
            may_be_mirrored.append(record.may_be_mirrored)
        own = records.videos if isinstance(records, RecordTable) else None  # which are kept once then
        self._videos = own or Locations(texts_of(record.video for record in records))
        self._kinds, self._num_captions = np.array(kinds, np.uint8), narrow(num_captions)
        self._bounds = np.array(bounds, np.float64).reshape(-1, 2) if self._kinds.any() else None
        self._may_be_mirrored = np.array(may_be_mirrored, bool)

    def __len__(self) -> int:
        return len(self._videos)

    def video(self, index: int) -> str:
        """Return the location of the video of a record."""
        return self._videos[index]

    def span(self, index: int) -> Span | None:
        """Return what the record shows of it; None: all."""
        if self._bounds is None:
            return None
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
