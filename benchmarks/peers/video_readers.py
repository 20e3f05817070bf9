"""Other libraries that read clips from video files on a CPU, each as its documentation has it, in one thread.

decord        `VideoReader.get_batch`
torchcodec    `VideoDecoder.get_frames_at`, exact seek mode
pyav          a plain loop up to each frame, with a seek to those far away
opencv        `VideoCapture.grab` up to each frame, with a seek to those far away

A reader gives whole frames. What follows in such pipelines, a random crop and a resize to the model's size, is done
with what users of each have at hand: OpenCV's resize, torch's antialiased one for torchcodec's tensors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

Window = tuple[float, float, float, float, bool]
"""Top, left, bottom and right as shares of the picture, and whether it is mirrored."""
Read = Callable[[str, Sequence[int]], Any]
"""From a path and ascending frame indices to a clip, uint8 `[T, H, W, 3]` RGB of numpy or `[T, 3, H, W]` of torch."""
Finish = Callable[[Any, Window, int], torch.Tensor]
"""From a clip, a window and a size to uint8 `[T, size, size, 3]`."""

FAR = 60  # frames: pyav and opencv seek where the next one wanted is further away, and else pass by all in between


def decord() -> tuple[Read, Finish]:
    """Return decord's reader."""
    import decord as library  # pyright: ignore[reportMissingImports]

    def read(path: str, indices: Sequence[int]) -> Any:
        return library.VideoReader(path, ctx=library.cpu(0), num_threads=1).get_batch(list(indices)).asnumpy()

    return read, resized_by_opencv("INTER_LINEAR")


def torchcodec() -> tuple[Read, Finish]:
    """Return torchcodec's reader, whose frames are exact."""
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    def read(path: str, indices: Sequence[int]) -> torch.Tensor:
        decoder = VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1)
        return decoder.get_frames_at(list(indices)).data

    return read, resized_by_torch


def pyav() -> tuple[Read, Finish]:
    """Return PyAV's plain way: times are those of a constant rate, as the clips of the benchmark have."""
    import av
    import numpy as np

    def read(path: str, indices: Sequence[int]) -> Any:
        found: dict[int, Any] = {}
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            rate, tick = stream.average_rate or 1, stream.time_base or 1
            first, at, frames = stream.start_time or 0, -1, iter(())
            for wanted in sorted(set(indices)):
                if at < 0 or wanted - at > FAR:
                    container.seek(round(wanted / rate / tick) + first, stream=stream)
                    frames = container.decode(stream)
                for frame in frames:
                    at = round(float((frame.pts - first) * tick * rate))
                    if at >= wanted:
                        found[wanted] = frame.to_ndarray(format="rgb24")
                        break
        return np.stack([found[index] for index in indices])

    return read, resized_by_opencv("INTER_LINEAR")


def opencv(resize: str = "INTER_LINEAR") -> tuple[Read, Finish]:
    """Return OpenCV's reader, with one of its ways to resize."""
    import cv2  # pyright: ignore[reportMissingImports]
    import numpy as np

    cv2.setNumThreads(1)

    def read(path: str, indices: Sequence[int]) -> Any:
        found: dict[int, Any] = {}
        capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        at = -1
        for wanted in sorted(set(indices)):
            if wanted - at > FAR:
                capture.set(cv2.CAP_PROP_POS_FRAMES, wanted)
                at = wanted - 1
            while at < wanted and capture.grab():
                at += 1
            found[wanted] = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
        capture.release()
        return np.stack([found[index] for index in indices])

    return read, resized_by_opencv(resize)


def resized_by_opencv(interpolation: str) -> Finish:
    """Return what crops, resizes and mirrors frames by OpenCV, "INTER_LINEAR" or "INTER_AREA"."""
    import cv2  # pyright: ignore[reportMissingImports]
    import numpy as np

    cv2.setNumThreads(1)
    how = getattr(cv2, interpolation)

    def finish(clip: Any, window: Window, size: int) -> torch.Tensor:
        (y0, x0, y1, x1), flip = _pixels(window, *clip.shape[1:3]), window[4]
        frames = [cv2.resize(frame[y0:y1, x0:x1], (size, size), interpolation=how) for frame in clip]
        return torch.from_numpy(np.stack([cv2.flip(frame, 1) for frame in frames] if flip else frames))

    return finish


def resized_by_torch(clip: torch.Tensor, window: Window, size: int) -> torch.Tensor:
    """Crop, resize and mirror as torchvision's transforms of tensors do: antialiased, in uint8."""
    y0, x0, y1, x1 = _pixels(window, *clip.shape[2:])
    part = clip[..., y0:y1, x0:x1]
    small = torch.nn.functional.interpolate(part, (size, size), mode="bilinear", antialias=True)
    return (small.flip(-1) if window[4] else small).permute(0, 2, 3, 1).contiguous()


def _pixels(window: Window, height: int, width: int) -> tuple[int, int, int, int]:
    y0, x0, y1, x1, _ = window
    return round(y0 * height), round(x0 * width), round(y1 * height), round(x1 * width)


READERS: dict[str, Callable[[], tuple[Read, Finish]]] = {
    "decord": decord,
    "torchcodec": torchcodec,
    "pyav": pyav,
    "opencv": opencv,
    "opencv, area": lambda: opencv("INTER_AREA"),
}
