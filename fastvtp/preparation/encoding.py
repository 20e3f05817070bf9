"""Writing clips: spans cut out, pictures upright, square of pixel, small, with many keyframes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fastvtp.data.video.copying import CopiedClip, copy_frames
from fastvtp.data.video.decoding import Video
from fastvtp.errors import UserError
from fastvtp.preparation.settings import COPY, ClipEncoding

_TICK = Fraction(1, 90_000)  # seconds; for a variable rate
_SMPTE170M, _LIMITED = 6, 1  # BT.601 and its range, as libav numbers them
_ITU601 = 5  # the same, as libswscale numbers it
_SAME_RATE = 1.01  # rates nearer than this are taken to be the same, such as 30 and 30000/1001
_NEAR = 1e-3  # seconds, to which containers round

# By codec: the encoder, and how it is told to use one thread, closed groups of pictures and nothing beside a fixed
# number of them; "%d" is that number.
ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    # Made to be decoded quickly: no arithmetic coding, no filter in the loop, each frame from the one before. What this
    # costs in bytes, and that it does not in fidelity, at QUALITIES, is in docs/preparation.md. libx264's code for
    # AVX-512 gives other bytes each time on some machines, and other ones than its code for others.
    "h264": (
        "libx264",
        {
            **{"preset": "medium", "tune": "fastdecode", "bf": "0", "refs": "1"},
            **{"keyint_min": "%d", "sc_threshold": "0", "x264-params": "cpu-independent=1"},
        },
    ),
    "hevc": (
        "libx265",
        {
            "preset": "medium",
            "x265-params": "keyint=%d:min-keyint=%d:scenecut=0:open-gop=0:pools=none:frame-threads=1:log-level=error",
        },
    ),
    "vp9": ("libvpx-vp9", {"b": "0", "cpu-used": "4", "keyint_min": "%d", "row-mt": "0"}),
    "av1": ("libsvtav1", {"preset": "8", "svtav1-params": "keyint=%d:irefresh-type=2:scd=0:lp=1"}),
}


@dataclass(frozen=True)
class WrittenClip:
    """What a clip is once it is written. fps: mean rate. seconds: to the end of its last frame. capped: whether the
    source has fewer frames a second than were asked for. copied: of one whose packets were copied, what it holds: all
    else is of the frames that were asked for alone."""

    height: int
    width: int
    fps: float
    seconds: float
    frames: int
    codec: str
    capped: bool = False
    copied: CopiedClip | None = None


def check_codec(codec: str) -> None:
    """Raise UserError where the libav of this machine cannot encode `codec`."""
    import av

    if codec == COPY:
        return
    name, _ = ENCODERS[codec]
    try:
        av.Codec(name, "w")
    except ValueError:
        known = ", ".join(other for other, (encoder, _) in ENCODERS.items() if encoder in av.codecs_available)
        raise UserError(f"codec {codec!r} needs the encoder {name}, which this PyAV lacks; it has: {known}") from None


def fitted(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return height and width, both even, with the shorter side at most `short_side`, in the proportions of `size`."""
    height, width = (2 * round(side * short_side / min(size) / 2) for side in size)
    # never enlarged: a picture that is not made smaller loses its odd line
    return max(2, min(height, size[0] // 2 * 2)), max(2, min(width, size[1] // 2 * 2))


def shown_until(video: Video, frames: range) -> float:
    """Return when the last of these frames ends, seconds from the first one of the video."""
    return float(video.seconds[frames.stop]) if frames.stop < video.num_frames else video.duration


def write_clip(
    video: Video,
    frames: range,
    path: Path,
    encoding: ClipEncoding,
    watch: Callable[[float, np.ndarray], None] = lambda second, frame: None,
) -> WrittenClip:
    """Write frames of a video as an mp4 with its index in front and no audio.

    Equal frames give equal bytes, by the same version of PyAV. Colours are those of BT.601 and marked so.

    watch: is shown each frame, uint8 `[H, W, 3]`, as it is encoded, and its second.

    Raises:
        VideoDecodeError: a frame cannot be decoded.
    """
    import av
    from av.codec.context import Flags
    from av.video.reformatter import VideoReformatter

    seconds = video.seconds[frames.start : frames.stop]
    seconds, length = seconds - seconds[0], shown_until(video, frames) - float(seconds[0])
    size = fitted(video.size, encoding.side)
    own = _regular_rate(seconds, length)
    capped = encoding.fps is not None and encoding.fps > _fastest(seconds, own) * _SAME_RATE
    rate, ticks, tick = _timing(seconds, length, own, None if capped else encoding.fps)
    name, options = ENCODERS[encoding.codec]
    # the container is opened once more, to put the index in front, which needs a file of its own
    with av.open(str(path), "w", "mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        options = {key: value.replace("%d", str(encoding.key_distance)) for key, value in options.items()}
        options |= {"crf": str(encoding.quality), "threads": "1"}
        stream: Any = container.add_stream(name, rate=rate, options=options)
        context = stream.codec_context
        context.height, context.width, context.pix_fmt = *size, "yuv420p"
        context.gop_size, context.time_base = encoding.key_distance, tick
        context.flags |= Flags.bitexact
        context.colorspace, context.color_range = _SMPTE170M, _LIMITED
        if encoding.codec == "hevc":
            context.codec_tag = "hvc1"  # the mark that players of Apple's ask for
        count, converter = 0, VideoReformatter()
        for times, pixels in zip(ticks, video.stream(frames, size), strict=True):
            for time, until in times:
                watch(float(time * tick), pixels)
                frame = _frame(pixels, converter)
                frame.pts, frame.time_base, frame.duration = time, tick, until - time
                container.mux(stream.encode(frame))
                count += 1
        container.mux(stream.encode(None))
    return WrittenClip(*size, round(count / length, 3), round(length, 6), count, encoding.codec, capped)


def copy_clip(video: Video, frames: range, path: Path, codec: str) -> WrittenClip:
    """Write frames of a video as an mp4 of its own packets, see `copy_frames`, which raises. codec: of the video."""
    copied = copy_frames(video, frames, path)
    length = shown_until(video, frames) - float(video.seconds[frames.start])
    rate = len(frames) / length if length else 0.0
    return WrittenClip(*video.size, round(rate, 3), round(length, 6), len(frames), codec, copied=copied)


def _frame(pixels: np.ndarray, converter: Any) -> Any:
    import av

    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    # one context for all frames: PyAV's own for each takes several times as long
    return converter.reformat(frame, format="yuv420p", dst_colorspace=_ITU601, dst_color_range=_LIMITED, threads=1)


def _mean_rate(seconds: np.ndarray, length: float) -> Fraction:
    spread = float(seconds[-1]) or length or 1.0
    return max(Fraction(max(len(seconds) - 1, 1) / spread).limit_denominator(1001), Fraction(1, 1000))


def _regular_rate(seconds: np.ndarray, length: float) -> Fraction | None:
    """Return the rate of frames that follow each other regularly; None for others."""
    rate = _mean_rate(seconds, length)
    return rate if np.abs(seconds - np.arange(len(seconds)) / float(rate)).max() < _NEAR else None


def _fastest(seconds: np.ndarray, regular: Fraction | None) -> float:
    """Return frames a second where they follow each other fastest, beyond which frames would only be repeated."""
    if regular is not None:
        return float(regular)
    return 1 / max(float(np.diff(seconds).min()), _NEAR)


def _timing(
    seconds: np.ndarray, length: float, own: Fraction | None, fps: float | None
) -> tuple[Fraction, Iterator[Any], Fraction]:
    """Return the rate, for each frame when it is shown from and until, none, once or several times, and the tick in
    which that is counted.

    own: the regular rate of the frames, or None. fps: the rate that is asked for; None keeps every frame.
    """
    if fps is not None:
        rate = Fraction(fps).limit_denominator(1001)
        wanted = np.arange(max(1, int(np.ceil(length * float(rate) - 0.5)))) / float(rate)
        source = np.clip(np.searchsorted(seconds, wanted + _NEAR, side="right") - 1, 0, None)
        bounds = np.searchsorted(source, np.arange(len(seconds) + 1))
        each = ([(k, k + 1) for k in range(low, high)] for low, high in pairwise(bounds))
        return rate, each, 1 / rate
    if own is not None:
        return own, ([(k, k + 1)] for k in range(len(seconds))), 1 / own
    rate = _mean_rate(seconds, length)
    times = np.rint(np.append(seconds, length) / float(_TICK)).astype(int).tolist()
    return rate, ([pair] for pair in pairwise(times)), _TICK
