"""What a data set's clips will be, before a run: the clips themselves, and what was drawn for each.

The clips come from the loader that trains, the draws from the source behind it, so that both are what a run of the same
seed sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastvtp.data.loader import Decoding, VideoTextLoader
from fastvtp.data.rand_augment import OPERATIONS
from fastvtp.data.reading import ClipReading, ClipShape
from fastvtp.data.records import VideoRecord
from fastvtp.data.sampling import ClipAugmentation
from fastvtp.data.source import Choice
from fastvtp.data.stream import Batches
from fastvtp.data.timespans import FrameSpan
from fastvtp.errors import UserError


@dataclass(frozen=True, eq=False)
class Draw:
    """A training clip and what was drawn for it.

    Attributes:
        frames: uint8 `[T, H, W, 3]`, as the model gets them.
        record: what it is a clip of.
        said: what was drawn, as JSON holds it, see `draws_of`.
    """

    frames: np.ndarray
    record: VideoRecord
    said: dict[str, Any]


def draws_of(
    records: Sequence[VideoRecord],
    shape: ClipShape,
    reading: ClipReading,
    *,
    seed: int = 0,
    epoch: int = 0,
    clips: int = 8,
) -> Iterator[Draw]:
    """Make the first clips of an epoch of training, in its order.

    What is said of each: "id"; "video", its location; "start" and "end", the span of it in seconds that the record is
    (null: it has no such bound), or "start_frame" and "end_frame"; "frames", the indices of the frames in the video;
    "seconds", when these are shown, from the first frame of the video (null: the file does not say); "window", the part
    of the upright, displayed picture that is shown as [y0, x0, y1, x1], fractions of its height and width; "size", the
    height and width in pixels that it came to; "flip", whether it was mirrored after that; "caption"; and, where there
    is an augmentation, "operations", each with its argument, and "erased", the box [y0, x0, height, width] in fractions
    or null. "number" is that of the sample in the run, "replaces" names what could not be decoded in its place.

    Raises:
        UserError: a value out of range, or settings that do not go together.
        NoDecodableClipError: no clip can be decoded.
    """
    if clips < 1 or epoch < 0:
        raise UserError(f"expected at least one clip and an epoch from 0 on, got {clips} and {epoch}")
    first = epoch * len(records)
    batches = Batches(batch_size=1, train=True, seed=seed, start_step=first, num_steps=clips)
    decoding = Decoding(decoder="pyav", num_workers=0)
    with VideoTextLoader(records, None, shape=shape, reading=reading, batches=batches, decoding=decoding) as loader:
        for batch in loader:
            # some attempts fail only where pixels are decoded
            failures = loader.source.load(batch.step).failures if loader.bad_files else ()
            choice = loader.source.describe(batch.step, len(failures))
            record, pixels = records[choice.record], batch.video[0].numpy()
            said = {
                **_bounds(record),
                "frames": choice.frames.tolist(),
                "seconds": None if choice.seconds is None else choice.seconds.tolist(),
                **_window(choice),
                "size": list(pixels.shape[1:3]),
                "caption": record.captions[choice.caption],
                **_augmentation(choice, reading.augmentation),
                "number": batch.step,
                "replaces": [name for name, _ in failures],
            }
            yield Draw(pixels, record, said)


def _bounds(record: VideoRecord) -> dict[str, Any]:
    named = {"id": record.id, "video": record.video, "start": record.start, "end": record.end}
    return {**named, **record.span.fields()} if isinstance(record.span, FrameSpan) else named


def _window(choice: Choice) -> dict[str, Any]:
    if choice.window is None:
        return {"window": [0.0, 0.0, 1.0, 1.0], "flip": False}
    window = choice.window
    return {"window": [window.y0, window.x0, window.y1, window.x1], "flip": bool(window.flip)}


def _augmentation(choice: Choice, augmentation: ClipAugmentation) -> dict[str, Any]:
    drawn, said = list(choice.augmentation), {}
    if augmentation.policy is not None:
        places, arguments = drawn.pop(0), drawn.pop(0)
        acting = zip(places.tolist(), arguments.tolist(), strict=True)
        said["operations"] = [[OPERATIONS[place], argument] for place, argument in acting if place]
    if augmentation.erasing:
        corner, size = drawn
        said["erased"] = [*corner.tolist(), *size.tolist()] if size.any() else None
    return said
