"""One file alone in DALI's decoder: whether it can decode it, and what colours it makes."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from fastvtp.data.video.colours import Colours
from fastvtp.errors import UserError

logger = logging.getLogger(__name__)

_SIDE = 32  # of a patch, in pixels
_PATCHES = ((81, 90, 240), (145, 54, 100), (60, 200, 110), (180, 128, 128), (60, 150, 160), (200, 100, 140))  # Y, U, V
_PATCHES += ((100, 160, 90), (120, 120, 70))
_ENCODERS = {
    "h264": ("libx264", "mp4", {"qp": "4", "preset": "ultrafast"}),
    "hevc": ("libx265", "mp4", {"x265-params": "log-level=none:qp=4:pools=none:frame-threads=1"}),
    "mjpeg": ("mjpeg", "avi", {"qscale": "2"}),
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}),
}
_BT709, _LIKE_601, _LIMITED, _FULL = 1, 2, 1, 2
_NEAR = 6.0  # levels, the mean over the patches; a wrong conversion is 10 and more away


def decode_alone(encoded: np.ndarray, frames: np.ndarray, device_id: int | None) -> np.ndarray:
    """Decode frames of one file as the pipeline does: uint8 `[T, H, W, 3]`.

    Args:
        encoded: the bytes of the file, uint8 `[N]`.
        frames: indices, int32 `[T]`.
        device_id: a GPU, or None for the CPU.

    Raises:
        RuntimeError: DALI cannot; the message is all that it says.
    """
    import nvidia.dali.fn
    from nvidia.dali.pipeline import pipeline_def

    fn: Any = nvidia.dali.fn

    @pipeline_def
    def one():
        inputs = fn.external_source(lambda: ([encoded], [frames.astype(np.int32)]), num_outputs=2, batch=True)
        return fn.decoders.video(inputs[0], device=_decoder_device(device_id), frames=inputs[1], pad_mode="edge")

    pipeline = one(batch_size=1, device_id=device_id, num_threads=1, prefetch_queue_depth=1, exec_dynamic=True)
    pipeline.build()
    video: Any = pipeline.run()[0]
    return np.array((video if device_id is None else video.as_cpu()).as_array()[0])


def why_not_alone(encoded: np.ndarray, frames: np.ndarray, device_id: int | None) -> str | None:
    """Say in one line why DALI cannot decode these frames of a file, or None where it can."""
    try:
        decode_alone(encoded, frames, device_id)
    except Exception as error:  # DALI raises nothing more specific
        return _gist(str(error))
    return None


def _decoder_device(device_id: int | None) -> str:
    return "cpu" if device_id is None else "mixed"


def _gist(message: str) -> str:
    """Return the line of DALI's many that names the cause."""
    lines = [line.strip() for line in message.partition("encountered:")[2].splitlines() if line.strip()]
    first = lines[0] if lines else " ".join(message.split())
    return first.rpartition("failed: ")[2][:160]


@lru_cache
def conversions(codecs: frozenset[str], device_id: int | None) -> dict[tuple[str, bool], Colours]:
    """Find out by trying which conversion DALI's decoders use on a device.

    A clip of flat patches, tagged BT.709, is encoded in either range and decoded.

    Returns:
        By codec and whether a file is of full range: as what DALI converts one that is tagged BT.709. `space` 2 means
        that it does not heed the tag. What could not be tried, for want of an encoder or because no conversion is near,
        is missing.
    """
    found = {}
    for codec in sorted(codecs & _ENCODERS.keys()):
        for full in (True,) if codec == "mjpeg" else (False, True):
            try:
                taken = _taken_for(codec, full, device_id)
            except Exception as error:  # whatever it is, files of this kind go another way
                logger.info("colours of %s in DALI could not be tried: %s", codec, _gist(str(error)))
                continue
            if taken is not None:
                found[codec, full] = taken
    return found


def _taken_for(codec: str, full: bool, device_id: int | None) -> Colours | None:
    clip = patches_clip(codec, Colours(_BT709, full))
    seen = patches_of(decode_alone(np.frombuffer(clip, np.uint8), np.array([0]), device_id)[0])
    errors = {
        taken: np.abs(patches_as(taken) - seen).mean()
        for taken in (Colours(space, range_) for space in (_LIKE_601, _BT709) for range_ in (False, True))
    }
    nearest = min(errors, key=lambda taken: errors[taken])
    return nearest if errors[nearest] <= _NEAR else None


def patches_as(colours: Colours) -> np.ndarray:
    """Return the RGB that the patches have as `colours`: float64 `[8, 3]`, within 0 to 255."""
    levels = np.array([(*patch, 1) for patch in _PATCHES], np.float64)
    return np.clip((levels @ colours.to_rgb().T)[:, :3], 0, 255)


def patches_of(picture: np.ndarray) -> np.ndarray:
    """Return the mean RGB of the middle of each patch of a picture `[H, W, 3]`: float64 `[8, 3]`."""
    quarter = _SIDE // 4
    middles = picture[_SIDE // 2 : -_SIDE // 2].reshape(-1, len(_PATCHES), _SIDE, 3)[:, :, quarter:-quarter]
    return middles.astype(np.float64).mean(axis=(0, 2))


def patches_clip(codec: str, colours: Colours, frames: int = 2, pictures: Iterable[Any] = ()) -> bytes:
    """Encode flat patches, or `pictures` (`av.VideoFrame` in planes of YUV), tagged as `colours`; returns the file.

    Raises:
        UserError: no encoder of that codec here.
    """
    import av

    name, container_format, options = _ENCODERS[codec]
    if name not in av.codecs_available:
        raise UserError(f"libav here has no {name}")
    file, range_ = io.BytesIO(), _FULL if colours.full else _LIMITED
    with av.open(file, "w", format=container_format) as container:
        stream: Any = container.add_stream(name, rate=8, options={"threads": "1", **options})
        pictures = list(pictures) or [_patches_frame(codec) for _ in range(frames)]
        stream.width, stream.height = pictures[0].width, pictures[0].height
        stream.pix_fmt, context = pictures[0].format.name, stream.codec_context
        context.colorspace, context.color_range, context.time_base = colours.space, range_, Fraction(1, 8)
        for time, picture in enumerate(pictures):
            picture.pts, picture.time_base = time, Fraction(1, 8)
            picture.colorspace, picture.color_range = colours.space, range_
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return file.getvalue()


def _patches_frame(codec: str) -> Any:
    import av

    planes = np.array(_PATCHES, np.uint8).T  # [3, 8]
    luma = np.tile(np.repeat(planes[0], _SIDE), (2 * _SIDE, 1))
    chroma = [np.tile(np.repeat(plane, _SIDE // 2), (_SIDE, 1)) for plane in planes[1:]]
    packed = np.concatenate([plane.reshape(-1) for plane in (luma, *chroma)]).reshape(3 * _SIDE, -1)
    return av.VideoFrame.from_ndarray(packed, format="yuvj420p" if codec == "mjpeg" else "yuv420p")
