"""The stateless source of clips, for worker processes or the main one; imports neither torch nor DALI.

(seed, epoch, index) decide everything about a sample: caption, frames, window, flip, augmentation, and which clip
stands in for one that cannot be decoded. The main process can therefore retrace what a worker did from the number of
the sample alone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from fastvtp.data.annotations import VideoRecord
from fastvtp.data.decoding import Video, VideoDecodeError, VideoInfo
from fastvtp.data.frame_times import FrameTimes
from fastvtp.data.reading import ClipReading, ClipShape
from fastvtp.data.sampling import ClipAugmentation, CropWindow
from fastvtp.data.storage import UnreadableError, read_file
from fastvtp.data.stream import SampleStream
from fastvtp.errors import UserError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send to all processes of a job before they take its machine away."""
REACHES = ("span", "start", "file")
TOOK_TOO_LONG = "took longer than"
ENDED_WORKERS = "ended the processes that decoded it"
_LASTING = (TOOK_TOO_LONG, ENDED_WORKERS)  # reasons that no later attempt can find again
_FRAMES_AT_ONCE = 32


class NoDecodableClipError(UserError):
    """None of the videos that were drawn, one to replace the other, could be decoded; `failures` has name and reason of
    each."""

    def __init__(self, message: str, failures: Sequence[tuple[str, str]] = ()):
        super().__init__(message, failures)
        self.failures = failures

    def __str__(self) -> str:
        return self.args[0]


@dataclass(frozen=True)
class Sample:
    """One sample: `arrays`, see `ClipSource.load`, and (name, reason) of the attempts before it that failed."""

    arrays: tuple[np.ndarray, ...]
    failures: tuple[tuple[str, str], ...] = ()


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
        dali_formats: None to decode here, with PyAV. Otherwise encoded bytes are handed on, of videos whose (codec,
            pixel format) is listed; others count as undecodable.
        known_bad: reason by path, for files that an earlier run found undecodable. They begin as `bad` where DALI
            decodes; where decoding is done here, those alone that hung or ended a process.

    Attributes:
        before_attempt: is told the number of the record before each attempt.
        bad: reason by path, for files known to be undecodable, and by `VideoRecord.source` for spans of a video that
            cannot be shown while others of it may.
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
        dali_formats: frozenset[tuple[str, str]] | None = None,
        known_bad: Mapping[str, str] = {},
    ):
        self.stream = stream
        augments = stream.batches.train and shape.size is not None and reading.augmentation != ClipAugmentation()
        self.augmentation = reading.augmentation if augments else None
        # What PyAV cannot decode fails again by itself, and a file damaged in places only where a draw touches the
        # damage: remembering it would change the stream. What failed inside DALI has to be remembered, see
        # `find_damage`, and so has what hung.
        lasting = {name: reason for name, reason in known_bad.items() if reason.startswith(_LASTING)}
        self.bad: dict[str, str] = lasting if dali_formats is None else dict(known_bad)
        self.before_attempt: Callable[[int], None] = _nothing
        self._good: dict[int, tuple[VideoInfo, range, FrameTimes | None]] = {}
        self._beyond: dict[int, int] = {}  # of spans already seen
        self._paths = [record.video for record in records]
        self._spans = [record.span for record in records]
        self._sources = [record.source for record in records]
        self._num_captions = [len(record.captions) for record in records]
        self._mirrorable = [record.may_be_mirrored for record in records]
        self._reading, self._size = reading, shape.size
        self._sampling = reading.frames(shape.num_frames)
        self._crop = None if shape.size is None else reading.window(*shape.size)
        self._dali_formats = dali_formats
        self._last_read: tuple[int, np.ndarray, list[np.ndarray]] | None = None

    def numbers(self) -> Iterator[int]:
        """Return the numbers of the samples of all steps, batch after batch."""
        batches = self.stream.batches
        steps = count() if batches.num_steps is None else range(batches.num_steps)
        for step in steps:
            for place in range(batches.batch_size):
                yield self.stream.number(batches.start_step + step, place)

    def path_of(self, index: int) -> str:
        """Return the location of the video of a record."""
        return self._paths[index]

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
            for DALI to decode, three arrays: the file's bytes uint8 `[N]`, frame indices int32 `[T]` and
            counterclockwise rotation float32 `[]` in degrees; and three more, absent where the whole picture is kept:
            top left and bottom right corner of the window, float32 `[2]` each (y, x), fractions of the upright picture,
            and int32 `[]`, 1 to mirror.
            augmentation: the arrays of `ClipAugmentation.draw`, where there is one.

        Raises:
            NoDecodableClipError: all attempts failed, see `SampleStream.num_attempts`.
        """
        failures: list[tuple[str, str]] = []
        attempts = self.stream.num_attempts
        for attempt in range(attempts):
            try:
                return Sample(self.attempt(number, attempt), tuple(failures))
            except VideoDecodeError as error:
                failures.append((error.path, error.reason))
        last = "; ".join(dict.fromkeys(f"{name}: {reason}" for name, reason in failures[-3:]))
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
        if not self.decodes:
            video = self._handed_over(index, rng, segment, crop)
        elif rng is None:
            video = (self._view(index, segment, crop),)
        else:
            video = (self._decoded(index, rng),)
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
            window = self._window(index, video.size, rng, crop)
            try:
                seconds = video.seconds[frames]
            except VideoDecodeError:
                seconds = None
        return Choice(index, caption, frames, seconds, window, self._drawn(index, rng))

    def _caption(self, index: int, rng: np.random.Generator | None) -> int:
        return 0 if rng is None else int(rng.integers(self._num_captions[index]))

    def _drawn(self, index: int, rng: np.random.Generator | None) -> tuple[np.ndarray, ...]:
        """Draw the augmentation of a clip, after all else, which is then the same with and without it."""
        if self.augmentation is None or self._crop is None or rng is None:
            return ()
        return self.augmentation.draw(self._crop.aspect, rng, may_mirror=self._mirrorable[index])

    def find_damage(self, number: int, reach: str = "span") -> bool:
        """Tell whether DALI was handed a damaged file for a sample: one that opens but has frames that cannot be
        decoded.

        Such a file counts as bad from then on; of a record that is a span of it the span does, for DALI may well decode
        others. DALI stumbles also over damage outside a span: `reach`, one of `REACHES`, is how far to look for it, the
        "span", from the "start" of the file to the end of the span, or in the whole "file".

        Raises:
            NoDecodableClipError: there was no file to hand out.
        """
        index = int(self.load(number).arrays[0][0])
        whole = self._spans[index] is None
        if self.decodes or (whole and reach != REACHES[0]):
            return False
        try:
            with self._opened(index) as video:
                if whole or reach == "file":
                    video.decode_all()
                else:
                    shown = self._frames(index, video)
                    tried = shown if reach == "span" else range(shown.stop)
                    for first in range(0, len(tried), _FRAMES_AT_ONCE):
                        video.read(tried[first : first + _FRAMES_AT_ONCE])
        except VideoDecodeError as error:
            self.bad[self._sources[index]] = error.reason
            return True
        return False

    def _window(
        self, index: int, size: tuple[int, int], rng: np.random.Generator | None, crop: int = 0
    ) -> CropWindow | None:
        """Choose the part that is shown of a picture of that size, mirrored only where it may be; None: all of it."""
        if self._crop is None:
            return None
        window = self._crop.window(*size, rng, crop, self.stream.batches.views[1])
        return replace(window, flip=window.flip and self._mirrorable[index])

    def _decoded(self, index: int, rng: np.random.Generator) -> np.ndarray:
        # Damage found here is not remembered: whether it shows depends on the frames drawn, and content must not depend
        # on what a worker happened to see before.
        with self._opened(index) as video:
            shown = self._frames(index, video)
            frames = self._sampling.choose(shown, self._times(video, shown), rng)
            return self._read(index, video, frames, [self._window(index, video.size, rng)])[0]

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
        span = self._spans[index]
        if span is None:
            return range(video.num_frames)
        if not (shown := span.frames_of(video)):
            length = span.begins_after(video)
            why = "holds no frame: none is first shown within it" if length is None else f"is outside its {length}"
            self.bad[self._sources[index]] = reason = f"span {span.said} {why}"
            raise VideoDecodeError(self._sources[index], reason)
        self._beyond[index] = round(1000 * span.seconds_beyond(video))
        return shown

    def _times(self, video: Video, shown: range) -> FrameTimes | None:
        return None if self._sampling.fps is None else video.frame_times(shown)

    def _read(
        self, index: int, video: Video, frames: np.ndarray, windows: Sequence[CropWindow | None]
    ) -> list[np.ndarray]:
        try:
            return video.read_windows(frames, windows, self._size)
        except VideoDecodeError as error:
            raise VideoDecodeError(self._sources[index], error.reason) from None

    def _handed_over(
        self, index: int, rng: np.random.Generator | None, segment: int, crop: int
    ) -> tuple[np.ndarray, ...]:
        """Return the arrays by which DALI decodes and crops a clip."""
        encoded, info, shown, times = self._encoded(index)
        frames = self._sampling.choose(shown, times, rng, segment, self.stream.batches.views[0])
        arrays = encoded, frames, np.array(info.rotation, np.float32)
        window = self._window(index, (info.height, info.width), rng, crop)
        if window is None:
            return arrays
        corners = np.array([[window.y0, window.x0], [window.y1, window.x1]], np.float32)
        return *arrays, *corners, np.array(window.flip, np.int32)

    def _encoded(self, index: int) -> tuple[np.ndarray, VideoInfo, range, FrameTimes | None]:
        """Return the bytes of a file, once its first frame has been decoded: a bad file would cost DALI the whole
        batch. Returns also what it is, the frames that the record shows, and their times where sampling needs them."""
        self._refuse_bad(index)
        if index not in self._good:
            self._good[index] = self._proven(index)
        path = self._paths[index]
        try:
            return np.frombuffer(read_file(path), np.uint8), *self._good[index]
        except UnreadableError as error:
            raise VideoDecodeError(path, error.reason) from None

    def _proven(self, index: int) -> tuple[VideoInfo, range, FrameTimes | None]:
        try:
            with self._opened(index) as video:
                info = video.info()
                if (info.codec, info.pix_fmt) not in (self._dali_formats or ()):
                    reason = f"DALI cannot decode {info.codec} ({info.pix_fmt}) on this device, decoder='pyav' can"
                    raise VideoDecodeError(self._paths[index], reason)
                shown = self._frames(index, video)
                return info, shown, self._times(video, shown)
        except VideoDecodeError as error:
            self.bad[error.path] = error.reason
            raise

    def _opened(self, index: int) -> Video:
        self._refuse_bad(index)
        path = self._paths[index]
        try:
            return Video(path, aspect=self._reading.aspect, damaged=self._reading.damaged)
        except VideoDecodeError as error:
            self.bad[path] = error.reason
            raise

    def _refuse_bad(self, index: int) -> None:
        for name in (self._paths[index], self._sources[index]):
            if name in self.bad:
                raise VideoDecodeError(name, self.bad[name])
