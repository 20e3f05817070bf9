"""A video, or a span of one, with its captions; and many of them in little memory."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, pairwise
from typing import Any, SupportsIndex, overload

import numpy as np

from fastvtp.data.locations import normal, without_secrets
from fastvtp.data.text_column import Locations, TextWriter, narrow
from fastvtp.data.timespans import MOST_SECONDS, FrameSpan, Span, TimeSpan
from fastvtp.errors import UserError

_WHOLE, _SECONDS, _FRAMES = range(3)
_NONE = float("nan")
_AT_ONCE = 1024
_SHOWN = 3

_DIRECTION = re.compile(
    r"\b(?:(?:left|right)(?:wards?|most|handed)?|lefty|(?:anti|counter)?clockwise)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video, or a span of one, and its captions; `video` is a location (see `fastvtp.data.locations`), `captions`
    holds at least one.

    Training draws among the captions; retrieval scores them all. `mirrorable` says whether all
    that is said of the video, answers included, stays true of its mirror image; None: the captions decide.
    `start` and `end`, seconds from the first frame, bound what is shown of the video: frames from `start` to before
    `end` alone, see `Video.frames_within`. None: from the first frame on, to the last. `frames` bounds it by frames
    instead.
    """

    id: str
    video: str
    captions: tuple[str, ...]
    mirrorable: bool | None = None
    start: float | None = None
    end: float | None = None
    frames: FrameSpan | None = None

    def __post_init__(self) -> None:
        """Raise UserError where `start` and `end`, or `frames`, bound no span."""
        if self.frames is not None:
            first, last = self.frames.start, self.frames.end
            if first < 0 or (last is not None and last <= first) or not (self.start is None and self.end is None):
                name, bounds = without_secrets(self.video), f"{self.frames} and {self.start}-{self.end} s"
                raise UserError(f"{name}: expected a span by frames, 0 <= start < end, or by seconds, got {bounds}")
        first, last = (self.start or 0.0), (MOST_SECONDS if self.end is None else self.end)
        if not 0 <= first < last <= MOST_SECONDS:
            name, bounds = without_secrets(self.video), f"{self.start} and {self.end}"
            raise UserError(f"{name}: expected 0 <= start < end, in seconds, got {bounds}")

    @property
    def span(self) -> Span | None:
        """What is shown of the video; None: all of it."""
        if self.frames is not None:
            return self.frames
        whole = not self.start and self.end is None
        return None if whole else TimeSpan(self.start or 0.0, self.end)

    def within(self, span: Span | None) -> VideoRecord:
        """Return the record of that span of the video, None: of all of it."""
        if isinstance(span, FrameSpan):
            return replace(self, start=None, end=None, frames=span)
        start, end = span or (None, None)
        return replace(self, start=start, end=end, frames=None)

    @property
    def clip(self) -> tuple[str, Span | None]:
        """What is shown, as a key: equal for records of the same span of the same video, whatever their ids."""
        return normal(self.video), self.span

    @property
    def source(self) -> str:
        """The path of the video and, where it is a span of it, the span: "/films/a.mp4 60-70 s"."""
        return self.video if self.span is None else f"{self.video} {self.span.said}"

    def named(self) -> dict[str, Any]:
        """Return the fields of a line that names the record: id, video and, where it is a span of it, its bounds."""
        bounds = {} if self.span is None else self.span.fields()
        return {"id": self.id, "video": self.video, **bounds}

    @property
    def may_be_mirrored(self) -> bool:
        """Whether clips of it may be mirrored: `mirrorable`, or where that is None whether no caption names a
        direction."""
        if self.mirrorable is not None:
            return self.mirrorable
        return not any(map(mentions_direction, self.captions))


def mentions_direction(caption: str) -> bool:
    """Tell whether `caption` names a direction (left, rightwards, clockwise, ...) that mirroring the video makes
    untrue."""
    return _DIRECTION.search(caption) is not None


class RecordTable(Sequence[VideoRecord]):
    """Records as a sequence, in a quarter of the memory that as many objects take: their texts and numbers stand in
    arrays, and each record is made anew when it is asked for, equal to the one that went in. Slices are lists.

    Bounds of spans come back as floats, those by frames as whole numbers.

    records: are asked for once, one after the other.
    """

    def __init__(self, records: Iterable[VideoRecord]):
        videos, ids, captions = TextWriter(), TextWriter(), TextWriter()
        forms, firsts, mirrorable, kinds, bounds = array("q"), array("q", (0,)), array("b"), array("B"), array("d")
        for record in records:
            video, form = record.video, _form_of(record)
            videos.add(video)
            ids.add("" if form else record.id)
            forms.append(form)
            for caption in record.captions:
                captions.add(caption)
            firsts.append(firsts[-1] + len(record.captions))
            mirrorable.append(-1 if record.mirrorable is None else record.mirrorable)
            frames, start, end = record.frames, record.start, record.end
            whole = frames is None and start is None and end is None
            kinds.append(_WHOLE if whole else _SECONDS if frames is None else _FRAMES)
            start, end = (start, end) if frames is None else (frames.start, frames.end)
            bounds.extend((_NONE if start is None else start, _NONE if end is None else end))
        self.videos = Locations(videos.texts())
        self._ids, self._captions = ids.texts(), captions.texts()
        wide = np.frombuffer(forms, np.int64)
        self._forms = wide.astype(np.int16 if len(wide) == 0 or np.abs(wide).max() < 1 << 15 else np.int64)
        single = len(self._captions) == len(kinds) and all(b - a == 1 for a, b in pairwise(firsts))
        self._firsts = None if single else narrow(firsts)
        self._mirrorable = np.array(mirrorable, np.int8)
        self._kinds = np.array(kinds, np.uint8)
        self._bounds = np.array(bounds, np.float64) if self._kinds.any() else None
        self._look()

    def _look(self) -> None:
        # as buffers: numbers out of an array itself take several times as long
        self._form, self._kind, self._may_mirror = self._forms.data, self._kinds.data, self._mirrorable.data
        self._bound = None if self._bounds is None else self._bounds.data
        self._first = None if self._firsts is None else self._firsts.data

    def __getstate__(self) -> dict[str, Any]:
        buffers = ("_form", "_kind", "_may_mirror", "_bound", "_first")
        return {name: value for name, value in vars(self).items() if name not in buffers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._look()

    def __len__(self) -> int:
        return len(self._kinds)

    @overload
    def __getitem__(self, index: SupportsIndex) -> VideoRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[VideoRecord]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> VideoRecord | list[VideoRecord]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        place = index if type(index) is int and 0 <= index < len(self._kind) else range(len(self))[index]
        if (firsts := self._first) is None:
            captions = (self._captions[place],)
        else:
            captions = tuple(self._captions.part(firsts[place], firsts[place + 1]))
        return self._record(place, self.videos[place], captions)

    def __iter__(self) -> Iterator[VideoRecord]:
        firsts = self._first
        for first in range(0, len(self), _AT_ONCE):
            last = min(first + _AT_ONCE, len(self))
            ends = range(first, last + 1) if firsts is None else firsts[first : last + 1].tolist()
            videos, captions = self.videos.part(first, last), self._captions.part(ends[0], ends[-1])
            for place, video in enumerate(videos, start=first):
                of_it = slice(ends[place - first] - ends[0], ends[place - first + 1] - ends[0])
                yield self._record(place, video, tuple(captions[of_it]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        more = [f"and {len(self) - _SHOWN:,} more"] if len(self) > _SHOWN else []
        return f"{type(self).__name__}([{', '.join([*map(repr, self[:_SHOWN]), *more])}])"

    @property
    def num_captions(self) -> int:
        """How many captions all records have together."""
        return len(self._captions)

    def ids(self) -> Iterator[str]:
        """Return the id of each record."""
        return (record.id for record in self)

    def merged(self, keys: Sequence[int]) -> RecordTable:
        """Return the table in which records of the same `clip` are one, in the place and with the id of the first of
        them, with the captions of all, equal ones once.

        keys: of each record, `hash(record.clip)`.
        """
        hashes = np.asarray(keys, np.int64)
        order = np.argsort(hashes, kind="stable")
        again = np.flatnonzero(np.diff(hashes[order]) == 0)
        if not len(again):
            return self
        further: dict[int, list[int]] = {}  # by the first record of a clip
        known: dict[Any, int] = {}
        for place in np.unique(order[np.union1d(again, again + 1)]).tolist():
            first = known.setdefault(self[place].clip, place)
            if first != place:
                further.setdefault(first, []).append(place)
        left_out = {place for places in further.values() for place in places}
        return RecordTable(
            record if place not in further else replace(record, captions=self._all_captions(place, further[place]))
            for place, record in enumerate(self)
            if place not in left_out
        )

    def _all_captions(self, place: int, further: Iterable[int]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(chain.from_iterable(self[each].captions for each in (place, *further))))

    def _record(self, place: int, video: str, captions: tuple[str, ...]) -> VideoRecord:
        start = end = frames = None
        if self._bound is not None and (kind := self._kind[place]):
            start, end = self._bound[2 * place], self._bound[2 * place + 1]
            start, end = None if start != start else start, None if end != end else end
            if kind == _FRAMES:
                assert start is not None
                frames, start, end = FrameSpan(int(start), None if end is None else int(end)), None, None
        form, mirrorable = self._form[place], self._may_mirror[place]
        if form >= 0:
            name = video[-form:] if form else self._ids[place]
        else:
            name = f"{video[form:]} {frames or TimeSpan(start or 0.0, end)}"
        # past what checks a record: it was checked when it went in
        record = _new(VideoRecord)
        _set_id(record, name)
        _set_video(record, video)
        _set_captions(record, captions)
        _set_mirrorable(record, None if mirrorable < 0 else mirrorable > 0)
        _set_start(record, start)
        _set_end(record, end)
        _set_frames(record, frames)
        return record


_new = object.__new__
_set_id, _set_video, _set_captions, _set_mirrorable, _set_start, _set_end, _set_frames = (
    VideoRecord.__dict__[each.name].__set__ for each in fields(VideoRecord)
)


def _form_of(record: VideoRecord) -> int:
    """Tell how the id of a record follows from its video: the last so many characters of its location, a negative
    number where the span comes behind them; 0 where it does not."""
    name, span = record.id, record.span
    if span is None:
        return len(name) if record.video.endswith(name) else 0
    name = name.removesuffix(f" {span}")
    return -len(name) if len(name) < len(record.id) and record.video.endswith(name) else 0
