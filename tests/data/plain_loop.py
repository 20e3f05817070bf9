"""What a plain decoding loop shows of a file, and whether a clip shows the same: the yardstick of the trials.

Frames are compared by a digest of their pixels, so that a trial of hundreds of files keeps little; where a reader
scales them (a size that changes, pixels that are not square) by the number that they carry.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np

from tests.data.clips import frame_numbers

Shown = tuple[list[int], str, int]
"""Shape, digest of the pixels and barcode of one frame: what is kept of it, as JSON has it. Without a digest the number
alone is compared."""


@dataclass(frozen=True)
class Loop:
    """The frames in the order of the loop, each in its eight orientations; sound: no packet was refused on the way."""

    frames: list[list[Shown]]
    sound: bool


def shown(picture: np.ndarray) -> Shown:
    """What is kept of a frame, uint8 [H, W, 3]."""
    digest = hashlib.sha1(np.ascontiguousarray(picture).tobytes()).hexdigest()
    return list(picture.shape), digest, frame_numbers(picture[None])[0] if min(picture.shape[:2]) > 31 else -1


def plain_loop(path: str) -> Loop:
    """Decode every packet in turn, go on after one that is refused, and end where the container does.

    From a damaged picture to the next keyframe, in the order of decoding or of showing, and after a gap in a transport
    stream, a frame counts by its number alone: its pixels follow from what the decoder has met before, which is less
    for a reader that passes over packets it does not need.
    """
    frames: list[tuple[int, bool, list[Shown]]] = []
    places: dict[int | None, int] = {}  # in the order of decoding, by the time of a packet
    keyframes, damaged = [], []
    sound, doubtful, torn = True, False, False
    try:
        with av.open(path, metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for place, packet in enumerate(container.demux(stream)):
                torn = torn or packet.is_corrupt
                places[packet.pts] = place
                if packet.is_keyframe:
                    keyframes.append(place)
                try:
                    decoded = packet.decode()
                except av.FFmpegError:
                    sound, doubtful = False, True
                    damaged.append(place)
                    continue
                for frame in decoded:
                    decoded_at = places.get(frame.pts, place)
                    if frame.is_corrupt:
                        damaged.append(decoded_at)
                    doubtful = torn or frame.is_corrupt or (doubtful and not frame.key_frame)
                    sound = sound and not doubtful
                    picture = frame.to_ndarray(format="rgb24")
                    turned = [np.rot90(image, turns) for image in (picture, picture[:, ::-1]) for turns in range(4)]
                    frames.append((decoded_at, doubtful, list(map(shown, turned))))
    except (av.FFmpegError, IndexError):
        sound = False
    ends = [min((place for place in keyframes if place > first), default=float("inf")) for first in damaged]
    spans = list(zip(damaged, ends, strict=True))
    return Loop([_sure(*frame, spans) for frame in frames], sound)


def _sure(place: int, doubtful: bool, turned: list[Shown], damaged: Sequence[tuple[int, float]]) -> list[Shown]:
    """What is sure of a frame that was decoded at `place`: where it is doubtful, or within a span of damage, nothing
    but shape and number."""
    doubtful = doubtful or any(first <= place < end for first, end in damaged)
    return [(shape, "" if doubtful else digest, number) for shape, digest, number in turned]


def is_of_loop(
    clip: Sequence[Shown], loop: Loop, stride: int, upright: bool = False, source: Loop | None = None
) -> bool:
    """Whether a clip of frames at a distance of `stride` is part of what the loop shows, in one orientation.

    source: the loop over the sound file that a damaged one was made from. A loop over the damaged one goes on with what
    the damage left in the decoder; a reader that passes over packets which it does not need may meet less of it, and
    may refuse, and so not count, what a loop shows. Of such a file the order of frames must be kept, elsewhere their
    distance. upright: as coded alone.
    """
    for orientation in range(1 if upright else 8):
        frames = [turned[orientation] for turned in loop.frames]
        others = [turned[orientation] for turned in source.frames] if source else []
        if loop.sound and len(frames) > stride * (len(clip) - 1):
            starts = range(len(frames) - stride * (len(clip) - 1))
            if any(all(map(_same, clip, frames[start::stride])) for start in starts):
                return True
            if source is None:
                continue
        if _in_order(clip, frames, others):
            return True
    return False


def _in_order(clip: Sequence[Shown], frames: Sequence[Shown], others: Sequence[Shown]) -> bool:
    """Whether each picture is among the frames or the others, no earlier than the one before it."""
    place, lost = 0, max(0, len(others) - len(frames))
    for picture in clip:
        places = [n for n in range(place, len(others)) if _same(picture, others[n])]
        places += [n for n in range(max(0, place - lost), len(frames)) if _same(picture, frames[n])]
        if not places:
            return False
        place = max(place, min(places))
    return True


def _same(a: Sequence, b: Sequence) -> bool:
    if list(a[0]) == list(b[0]):
        return a[1] == b[1] or (b[1] == "" and a[2] == b[2])
    return a[2] == b[2] >= 0
