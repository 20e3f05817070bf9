"""The stateless source of clips, for worker processes or the main one; imports neither torch nor DALI.

(seed, epoch, index) decide everything about a sample: caption, frames, window, flip, augmentation, and which clip
stands in for one that cannot be decoded. The main process can therefore retrace what a worker did from the number of
the sample alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from fastvtp.data.clip_table import ClipTable
from fastvtp.data.handing_over import (
    GAVE_UP,
    DaliFormats,
    HandedOver,
    beside_dali,
    encoded_bytes,
    for_dali,
    hand_over,
)
from fastvtp.data.locations import without_secrets
from fastvtp.data.reading import ClipReading, ClipShape
from fastvtp.data.records import VideoRecord
from fastvtp.data.sampling import ClipAugmentation, CropWindow
from fastvtp.data.storage.remote import one_opening
from fastvtp.data.stream import SampleStream
from fastvtp.data.video.decoding import Video, VideoDecodeError
from fastvtp.data.video.frame_times import FrameTimes
from fastvtp.data.video.torchcodec_video import TorchCodecVideo
from fastvtp.errors import UserError

TOOK_TOO_LONG = "took longer than"
ENDED_WORKERS = "ended the processes that decoded it"
_LASTING = (TOOK_TOO_LONG, ENDED_WORKERS)  # reasons that no later attempt can find again


class NoDecodableClipError(UserError):
    """None of the videos that were drawn, one to replace the other, could be decoded; `failures` has name and reason of
    each."""

    def __init__(self, message: str, failures: Sequence[tuple[str, str]] = ()):
        super().__init__(message)
        self.failures = failures

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.failures)


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        arrays: see `ClipSource.load`.
        failures: name and reason of the attempts before it that failed.
        beside: where DALI or torchcodec is to decode but PyAV did, the kind of files that PyAV takes over; otherwise
            empty.
    """

    arrays: tuple[np.ndarray, ...]
    failures: tuple[tuple[str, str], ...] = ()
    beside: str = ""


@dataclass(frozen=True, eq=False)
class Choice:
    """What is chosen for one sample.

    Attributes:
        record: its number.
        caption: which of its captions.
        frames: int32 `[T]`, indices of the frames in their video.
        seconds: float64 `[T]`, when these are shown, from the first frame of the video; None where the file does not
            say.
        window: the part of the upright picture, and whether it is mirrored; None: the whole as it is.
        augmentation: the arrays of `ClipAugmentation.draw`; empty without one.
    """

    record: int
    caption: int
    frames: np.ndarray
    seconds: np.ndarray | None
    window: CropWindow | None
    augmentation: tuple[np.ndarray, ...] = ()


def _nothing(record: int) -> None:
    pass


class ClipSource:
    """Makes the samples of one rank; picklable. Its only state is a memory of files already opened.

    Args:
        records: the data set.
        stream: which of them, in which order.
        reading: which frames, which part of the picture, and what else changes training clips.
        shape: of the clips; whole pictures are kept where it has no size.
        dali_formats: None to decode here. Otherwise encoded bytes are handed on, of the videos that DALI can decode and
            whose colours it gets right, see `fastvtp.data.handing_over`; others are decoded here.
        known_bad: reason by path, for files that an earlier run found undecodable. They begin as `bad` where DALI
            decodes; where decoding is done here, those alone that hung or ended a process.
        opens: opens a video, as `Video` does, to be decoded here.

    Attributes:
        before_attempt: is told the number of the record before each attempt.
        bad: reason by path, for files known to be undecodable, and by `VideoRecord.source` for spans of a video that
            cannot be shown while others of it may. A reason that begins with `GAVE_UP` is of a file that PyAV is to
            decode here, because DALI failed at it.
        augmentation: what changes clips once they are cropped; None where nothing does, in evaluation and for whole
            pictures.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        stream: SampleStream,
        *,
        reading: ClipReading,
        shape: ClipShape,
        dali_formats: DaliFormats | None = None,
        known_bad: Mapping[str, str] = {},
        opens: Callable[..., Video] = Video,
    ):
        self.stream = stream
        augments = stream.batches.train and shape.size is not None and reading.augmentation != ClipAugmentation()
        self.augmentation = reading.augmentation if augments else None
        # What PyAV cannot decode fails again by itself, and a file damaged in places only where a draw touches the
        # damage: remembering it would change the stream. What failed inside DALI has to be remembered, for PyAV's
        # pictures differ from DALI's by a few levels, and so has what hung.
        lasting = {name: reason for name, reason in known_bad.items() if reason.startswith(_LASTING)}
        self.bad: dict[str, str] = lasting if dali_formats is None else dict(known_bad)
        self.before_attempt: Callable[[int], None] = _nothing
        self._good: dict[int, HandedOver | str] = {}
        self._beyond: dict[int, int] = {}  # of spans that end after their video
        self._clips = ClipTable(records)
        self._reading, self._size = reading, shape.size
        self._sampling = reading.frames(shape.num_frames)
        self._crop = None if shape.size is None else reading.window(*shape.size)
        self._dali_formats, self._opens = dali_formats, opens
        self._last_read: tuple[int, np.ndarray, list[np.ndarray]] | None = None
        self._last_drawn: tuple[tuple[int, int], list[np.ndarray], Sequence[np.random.Generator]] | None = None

    def numbers(self) -> Iterator[int]:
        """Return the numbers of the samples of all steps, batch after batch."""
        batches = self.stream.batches
        steps = count() if batches.num_steps is None else range(batches.num_steps)
        for step in steps:
            for place in range(batches.batch_size):
                yield self.stream.number(batches.start_step + step, place)

    def path_of(self, index: int) -> str:
        """Return the location of the video of a record."""
        return self._clips.video(index)

    @property
    def decodes(self) -> bool:
        """Whether samples hold frames; otherwise encoded bytes."""
        return self._dali_formats is None

    def load(self, number: int) -> Sample:
        """Make a sample, from the first attempt that can be decoded.

        Returns, as `arrays`:
            meta: int64 `[4]`: record used, failed attempts before it, caption used, and the milliseconds by which the
            end of its span lies beyond that of its video.
            video: uint8 `[T, H, W, 3]`, upright, cropped, scaled and mirrored; whole where the shape has no size. Or,
            where DALI decodes, the arrays of `fastvtp.data.handing_over.for_dali`.
            augmentation: the arrays of `ClipAugmentation.draw`, where there is one.

        Raises:
            NoDecodableClipError: all attempts failed, see `SampleStream.num_attempts`.
        """
        failures: list[tuple[str, str]] = []
        attempts = self.stream.num_attempts
        for attempt in range(attempts):
            try:
                with one_opening():  # an object that is slow is given up before its worker is
                    arrays = self.attempt(number, attempt)
                return Sample(arrays, tuple(failures), self._beside(int(arrays[0][0])))
            except VideoDecodeError as error:
                failures.append((error.path, error.reason))
        last = "; ".join(dict.fromkeys(f"{without_secrets(name)}: {reason}" for name, reason in failures[-3:]))
        raise NoDecodableClipError(f"{attempts} videos in a row cannot be decoded, the last: {last}", failures)

    def attempt(self, number: int, attempt: int) -> tuple[np.ndarray, ...]:
        """Make one attempt of `load`.

        Raises:
            VideoDecodeError: the record of this attempt cannot be decoded.
        """
        index, generator = self.stream.draw(number, attempt)
        self.before_attempt(index)
        rng = generator if self.stream.batches.train else None
        segment, crop = self.stream.view(number)
        caption = self._caption(index, rng)
        again, repeat = [generator, *self.stream.repeat_rngs(number, attempt)], self.stream.repeat(number)
        if known := self._handed_over(index):
            frames = self._sampling.choose(known.shown, known.times, rng, segment, self.stream.batches.views[0])
            rng = rng and again[repeat]
            window = self._window(index, (known.info.height, known.info.width), rng, crop)
            video = for_dali(encoded_bytes(self._clips.video(index)), frames, known, window)
        else:
            if rng is None:
                pictures = self._view(index, segment, crop)
            else:
                pictures, rng = self._decoded(index, (number - repeat, attempt), again, repeat)
            video = (pictures,) if self.decodes else beside_dali(pictures, whole=self._crop is None)
        meta = np.array([index, attempt, caption, self._beyond.get(index, 0)], np.int64)
        return meta, *video, *self._drawn(index, rng)

    def describe(self, number: int, attempt: int = 0) -> Choice:
        """Make the choices of an attempt of `load`, and decode nothing for it.

        Raises:
            VideoDecodeError: the record of this attempt cannot be opened, or its span holds no frame. What else may
                make an attempt fail shows only where its frames are decoded.
        """
        index, generator = self.stream.draw(number, attempt)
        rng = generator if self.stream.batches.train else None
        segment, crop = self.stream.view(number)
        caption = self._caption(index, rng)
        with self._opened(index) as video:
            shown = self._frames(index, video)
            times = self._times(video, shown)
            frames = self._sampling.choose(shown, times, rng, segment, self.stream.batches.views[0])
            rng = rng and [rng, *self.stream.repeat_rngs(number, attempt)][self.stream.repeat(number)]
            window = self._window(index, video.size, rng, crop)
            try:
                seconds = video.seconds[frames]
            except VideoDecodeError:
                seconds = None
        return Choice(index, caption, frames, seconds, window, self._drawn(index, rng))

    def _caption(self, index: int, rng: np.random.Generator | None) -> int:
        return 0 if rng is None else int(rng.integers(self._clips.num_captions(index)))

    def _drawn(self, index: int, rng: np.random.Generator | None) -> tuple[np.ndarray, ...]:
        """Draw the augmentation of a clip, after all else, which is then the same with and without it."""
        if self.augmentation is None or self._crop is None or rng is None:
            return ()
        return self.augmentation.draw(self._crop.aspect, rng, may_mirror=self._clips.may_be_mirrored(index))

    def handed_to_dali(self, number: int) -> tuple[str, np.ndarray, np.ndarray] | None:
        """Return what DALI was given to decode for a sample: the location of the video, the bytes of the file and the
        frames; None where PyAV decoded it.

        Raises:
            NoDecodableClipError: there was no file to hand out.
        """
        meta, _, encoded, frames, *_ = self.load(number).arrays
        return (self._clips.video(int(meta[0])), encoded, frames) if len(encoded) else None

    def _window(
        self, index: int, size: tuple[int, int], rng: np.random.Generator | None, crop: int = 0
    ) -> CropWindow | None:
        """Choose the part that is shown of a picture of that size, mirrored only where it may be; None: all of it."""
        if self._crop is None:
            return None
        window = self._crop.window(*size, rng, crop, self.stream.batches.views[1])
        return replace(window, flip=window.flip and self._clips.may_be_mirrored(index))

    def _decoded(
        self, index: int, group: tuple[int, int], again: Sequence[np.random.Generator], repeat: int
    ) -> tuple[np.ndarray, np.random.Generator]:
        """Return one of the clips that show the same frames, and the generator as its window has left it.

        All are made at once and kept for those that follow. group: number of the first of them, and attempt.
        """
        if len(again) > 1 and self._last_drawn is not None and self._last_drawn[0] == group:
            _, clips, drawn_from = self._last_drawn
            return clips[repeat], deepcopy(drawn_from[repeat])
        # Damage found here is not remembered: whether it shows depends on the frames drawn, and content must not depend
        # on what a worker happened to see before.
        with self._opened(index) as video:
            shown = self._frames(index, video)
            frames = self._sampling.choose(shown, self._times(video, shown), again[0])
            clips = self._read(index, video, frames, [self._window(index, video.size, rng) for rng in again])
        if len(again) > 1:
            self._last_drawn = group, clips, deepcopy(again)
        return clips[repeat], again[repeat]

    def _view(self, index: int, segment: int, crop: int) -> np.ndarray:
        """Return one view of a record in evaluation.

        All are made at once and kept for those that follow: a clip is damaged in every view or in none, and its frames
        are decoded once.
        """
        if self._last_read is None or self._last_read[0] != index:
            segments, crops = self.stream.batches.views
            with self._opened(index) as video:
                shown = self._frames(index, video)
                times = self._times(video, shown)
                every = [self._sampling.choose(shown, times, None, j, segments) for j in range(segments)]
                frames = np.unique(every)
                windows = [self._window(index, video.size, None, number) for number in range(crops)]
                clips = self._read(index, video, frames, windows)
                self._last_read = (index, np.searchsorted(frames, every), clips)
        _, places, clips = self._last_read
        return clips[crop][places[segment]]

    def _frames(self, index: int, video: Video) -> range:
        """Return the frames that a record shows: those of its span, or all.

        Raises:
            VideoDecodeError: its span holds none; names the span and not the file, of which others may be good.
        """
        span = self._clips.span(index)
        if span is None:
            return range(video.num_frames)
        if not (shown := span.frames_of(video)):
            length = span.begins_after(video)
            why = "holds no frame: none is first shown within it" if length is None else f"is outside its {length}"
            self.bad[self._clips.source(index)] = reason = f"span {span.said} {why}"
            raise VideoDecodeError(self._clips.source(index), reason)
        if beyond := round(1000 * span.seconds_beyond(video)):
            self._beyond[index] = beyond
        return shown

    def _times(self, video: Video, shown: range) -> FrameTimes | None:
        return None if self._sampling.fps is None else video.frame_times(shown)

    def _read(
        self, index: int, video: Video, frames: np.ndarray, windows: Sequence[CropWindow | None]
    ) -> list[np.ndarray]:
        try:
            clips = video.read_windows(frames, windows, self._size)
        except VideoDecodeError as error:
            raise VideoDecodeError(self._clips.source(index), error.reason) from None
        if isinstance(video, TorchCodecVideo) and video.left_to_pyav:
            self._good[index] = video.left_to_pyav
        return clips

    def _handed_over(self, index: int) -> HandedOver | None:
        """Return what DALI has to know of a file, or None where it is decoded here.

        Its first frame is decoded before DALI meets it the first time: a bad file would cost it the whole batch.
        """
        self._refuse_bad(index)
        if self.decodes or self._clips.video(index) in self.bad:  # those that are left: DALI gave up on them
            return None
        if index not in self._good:
            self._good[index] = self._proven(index)
        known = self._good[index]
        return None if isinstance(known, str) else known

    def _proven(self, index: int) -> HandedOver | str:
        assert self._dali_formats is not None
        try:
            with self._opened(index) as video:
                shown = self._frames(index, video)
                known = hand_over(video, shown, self._dali_formats, whole=self._crop is None)
                return known if isinstance(known, str) else replace(known, times=self._times(video, shown))
        except VideoDecodeError as error:
            self._note(error.path, error.reason)
            raise

    def _beside(self, index: int) -> str:
        known = self._good.get(index)
        return known if isinstance(known, str) and self._clips.video(index) not in self.bad else ""

    def _opened(self, index: int) -> Video:
        self._refuse_bad(index)
        path = self._clips.video(index)
        try:
            return self._opens(path, aspect=self._reading.aspect, damaged=self._reading.damaged)
        except VideoDecodeError as error:
            self._note(path, error.reason)
            raise

    def _note(self, name: str, reason: str) -> None:
        """Remember in evaluation what cannot be decoded, where many records may look for the next that can be.

        Not in training: what is away for a while may come back, and which clips come must not depend on what a worker
        happened to meet. What is broken fails again by itself.
        """
        if not self.stream.batches.train:
            self.bad[name] = reason

    def _refuse_bad(self, index: int) -> None:
        for name in (self._clips.video(index), self._clips.source(index)):
            if name in self.bad and not self.bad[name].startswith(GAVE_UP):
                raise VideoDecodeError(name, self.bad[name])
