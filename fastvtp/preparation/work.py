"""The work on one video, done in a process that may be lost over it: what samples it has, and writing each."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastvtp.data.timespans import Span, TimeSpan
from fastvtp.data.video.copying import NotCopiedError
from fastvtp.data.video.decoding import Video, VideoDecodeError, VideoInfo
from fastvtp.errors import UserError
from fastvtp.preparation.encoding import WrittenClip, copy_clip, fitted, shown_until, write_clip
from fastvtp.preparation.items import Item
from fastvtp.preparation.looks import MotionMeter, hashed_frames, look_of
from fastvtp.preparation.scenes import scenes_of
from fastvtp.preparation.settings import ClipFilters, Preparation

_TIMED_FRAMES = 16
_LOOKED_AT = 64  # pixels of the shorter side of frames that are hashed


@dataclass(frozen=True)
class Rejection:
    """Why a sample is not in the shards: the rule that rejects it, and a line about it."""

    rule: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """A clip to be written.

    Attributes:
        id: of the item; of one of its scenes, followed by the scene's span.
        start, end: of the clip in its source, seconds from the first frame; `end` None where it is the video's.
        first, stop: its frames.
        captions: those that the filters leave.
        source: what the source is: height and width as displayed, fps, seconds and frames of all of it, codec.
        scores: what was measured of it so far.
        rejected: set where it is not to be written.
    """

    id: str
    start: float
    end: float | None
    first: int
    stop: int
    captions: tuple[str, ...]
    source: dict[str, Any]
    scores: dict[str, Any] = field(default_factory=dict)
    rejected: Rejection | None = None

    @property
    def frames(self) -> range:
        """Indices of its frames in the source."""
        return range(self.first, self.stop)


def survey(item: Item, settings: Preparation) -> list[Sample]:
    """Open a video and tell the samples that it gives, those that the filters reject among them.

    Raises:
        VideoDecodeError: it cannot be opened, or its span holds no frame.
        UserError: PySceneDetect is wanted and not there.
    """
    filters = settings.filters
    with _of_the_source(item), Video(item.video) as video:
        shown = item.span.frames_of(video)
        if not shown:
            length = f"{video.duration:.6g} s" if item.frames is None else f"{video.num_frames} frames"
            raise VideoDecodeError(item.video, f"span {item.span.said} holds no frame of its {length}")
        source = _source(video, video.info())
        captions, words = texts_left(item.captions, filters)
        parts = scenes_of(video, shown, settings.cuts) if settings.cuts.scenes else [shown]
        samples = []
        for frames in parts:
            start, until = float(video.seconds[frames.start]), shown_until(video, frames)
            bounds = (round(start, 6), None if frames.stop == video.num_frames else round(until, 6))
            name = item.id if len(parts) == 1 else f"{item.id} {TimeSpan(*bounds)}"
            if len(parts) == 1 and item.frames is None:
                bounds = (item.start or 0.0, item.end)
            scores: dict[str, Any] = {} if words is None else {"words": words}
            sample = Sample(name, *bounds, frames.start, frames.stop, captions, source, scores)
            rejected = _outside(filters, until - start, min(source["height"], source["width"]))
            if rejected is None and item.captions and not captions:
                longest = max(len(text.split()) for text in item.captions)
                rejected = Rejection("words", f"no text of {_bounds(filters.min_words, filters.max_words)} words"
                                     f", the longest has {longest}")  # fmt: skip
            if rejected is None and filters.duplicates == "hash":
                scores["look"] = look_of(list(video.read(hashed_frames(frames), size=fitted(video.size, _LOOKED_AT))))
            samples.append(dataclasses.replace(sample, rejected=rejected))
    return samples


def write_sample(item: Item, sample: Sample, settings: Preparation, path: Path) -> tuple[WrittenClip | None, Sample]:
    """Write the clip of a sample at `path`; returns what it is, and the sample with its scores, which may reject it;
    None where there is nothing to be written.

    Raises:
        VideoDecodeError: a frame of it cannot be decoded, or the encoder takes none of that size.
        OSError: there is no room to write, or no right to.
    """
    meter, filters, encoding = MotionMeter(), settings.filters, settings.encoding
    with _writing(path), _of_the_source(item), Video(item.video) as video:
        if not encoding.copies:
            written = write_clip(video, sample.frames, path, encoding, meter.see)
        else:
            try:
                written = copy_clip(video, sample.frames, path, sample.source["codec"])
            except NotCopiedError as error:
                return None, dataclasses.replace(sample, rejected=Rejection("copy", str(error)))
            if filters.min_motion is None and filters.max_motion is None:
                return written, sample  # nothing else is decoded of it
            seconds = video.seconds[sample.first : sample.stop] - video.seconds[sample.first]
            small = video.stream(sample.frames, fitted(video.size, encoding.side))
            for second, frame in zip(seconds.tolist(), small, strict=True):
                meter.see(second, frame)
    rejected, motion = sample.rejected, meter.motion
    if not _within(motion, filters.min_motion, filters.max_motion):
        rejected = Rejection("motion", f"motion {motion:g}, expected {_bounds(filters.min_motion, filters.max_motion)}")
    return written, dataclasses.replace(sample, scores={**sample.scores, "motion": motion}, rejected=rejected)


@contextmanager
def _of_the_source(item: Item) -> Iterator[None]:
    """Blame a video for what libraries raise over it that nobody foresaw; not for what the machine lacks."""
    try:
        yield
    except (UserError, OSError):
        raise
    except (MemoryError, ImportError) as error:
        raise UserError(f"{item.video}: {type(error).__name__}: {error}") from error
    except Exception as error:
        raise VideoDecodeError(item.video, f"{type(error).__name__}: {error}".splitlines()[0]) from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Name the file in errors of the system, which libav leaves out."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or 0, error.strerror or str(error), str(path)) from error


def decode_ms(source: str | bytes, span: Span, short_side: int) -> float:
    """Measure the CPU milliseconds that opening a clip and decoding 16 evenly spaced frames of its span take, scaled to
    `short_side`. One reading before warms files and code.

    Raises:
        VideoDecodeError: it cannot be decoded.
    """
    spent = 0.0
    for _ in range(2):
        began = time.process_time()
        with Video(source) as video:
            shown = span.frames_of(video)
            wanted = shown.start + np.linspace(0, len(shown) - 1, _TIMED_FRAMES).astype(int)
            video.read(wanted, size=fitted(video.size, short_side))
        spent = time.process_time() - began
    return 1000 * spent


def _source(video: Video, info: VideoInfo) -> dict[str, Any]:
    height, width = video.size
    return {
        "height": height,
        "width": width,
        "fps": round(info.fps, 3),
        "seconds": round(video.duration, 6),
        "frames": info.frames,
        "codec": info.codec,
    }


def texts_left(captions: tuple[str, ...], filters: ClipFilters) -> tuple[tuple[str, ...], int | None]:
    """Return the captions that have as many words as they should, and how many the longest of these has."""
    kept = tuple(text for text in captions if _within(len(text.split()), filters.min_words, filters.max_words))
    return kept, max((len(text.split()) for text in kept), default=None)


def _outside(filters: ClipFilters, seconds: float, side: int) -> Rejection | None:
    if not _within(round(seconds, 6), filters.min_seconds, filters.max_seconds):
        expected = _bounds(filters.min_seconds, filters.max_seconds)
        return Rejection("duration", f"{seconds:.6g} s, expected {expected}")
    if not _within(side, filters.min_side, None):
        return Rejection("resolution", f"shorter side {side}, expected {_bounds(filters.min_side, None)}")
    return None


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f"{least:g} to {most:g}"
    return f"at least {least:g}" if least is not None else f"at most {most:g}"
