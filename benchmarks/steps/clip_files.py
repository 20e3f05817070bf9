"""Videos to measure readers with: made once, of any length, at a keyframe every so many frames.

The pictures are textures that move against each other under grain, at which the encoder spends about the bits of usual
footage. A long video repeats the packets of a short one with later times, so it costs a copy and no encoding.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

FPS = 25


def encode(path: Path, *, height: int, width: int, gop: int, seconds: int) -> Path:
    """Write an H.264 mp4 at `FPS` frames a second."""
    import av

    rng = np.random.default_rng(height * gop)
    far, near = _texture(rng, height, width, 6, 150), _texture(rng, height, width, 24, 100)
    grain = rng.normal(3, 2, (4, height, width, 1)).astype(np.int16)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        options = {"preset": "veryfast", "crf": "25", "threads": "1", "x264-params": "scenecut=0"}
        stream: Any = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = height, width, "yuv420p", gop
        for t in range(seconds * FPS):
            pixels = _moved(far, height, width, t, 2 * t) + _moved(near, height, width, -t, t * t // 40)
            pixels = np.clip(pixels + grain[rng.integers(4)], 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _moved(texture: np.ndarray, height: int, width: int, y: int, x: int) -> np.ndarray:
    y, x = y % height, x % width
    return texture[y : y + height, x : x + width]


def _texture(rng: np.random.Generator, height: int, width: int, cells: int, most: int) -> np.ndarray:
    """Smooth noise up to `most`, int16 `[2 H, 2 W, 3]`, of so many cells from top to bottom, which repeats itself."""
    noise = rng.uniform(0, most, (cells, cells * width // height, 3))
    rows, columns = (np.arange(n) * m // n for n, m in ((height, cells), (width, noise.shape[1])))
    picture = noise[rows][:, columns]
    for axis, reach in ((0, height // cells), (1, width // noise.shape[1])):
        summed = np.cumsum(np.concatenate([picture, picture.take(range(reach), axis)], axis), axis)
        picture = _differences(summed, axis, reach) / reach
    return np.tile(picture.astype(np.int16), (2, 2, 1))


def _differences(summed: np.ndarray, axis: int, reach: int) -> np.ndarray:
    length = summed.shape[axis] - reach
    return summed.take(range(reach, reach + length), axis) - summed.take(range(length), axis)


def repeat(source: Path, target: Path, times: int) -> Path:
    """Write a video that shows that of `encode` so many times."""
    import av

    with av.open(str(source)) as read:
        stream = read.streams.video[0]
        packets = [packet for packet in read.demux(stream) if packet.dts is not None]
        contents = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
        tick: Any = stream.time_base
        step = int(len(contents) / FPS / tick)
        with av.open(str(target), "w", options={"movflags": "faststart"}) as write:
            copy = write.add_stream_from_template(stream)
            for number in range(times):
                for content, pts, dts, is_keyframe in contents:
                    packet: Any = av.Packet(content)
                    packet.pts, packet.dts, packet.time_base = pts + number * step, dts + number * step, tick
                    packet.is_keyframe, packet.stream = is_keyframe, copy
                    write.mux(packet)
    return target
